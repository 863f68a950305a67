"""Breaking a running Frontdesk on purpose: real stores and processes on loopback, cut sockets,
visitors that record what they saw, and a checker that compares it with the log and the record.
``tests/faults`` and ``bench.soak`` use it."""
