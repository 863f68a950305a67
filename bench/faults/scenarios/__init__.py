"""What is broken, and how. Each scenario starts a place of its own, breaks it, and returns what
the checker found. ``tests/faults`` runs them small, ``bench.soak`` large."""
