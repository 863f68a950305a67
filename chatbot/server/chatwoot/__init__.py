"""Frontdesk as an agent bot of Chatwoot (docs/calls.md): webhooks in, replies out."""
