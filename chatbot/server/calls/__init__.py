"""``/v1/assist``: help for agents who are on the phone (docs/calls.md)."""
