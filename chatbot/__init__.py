"""Frontdesk: the part that talks to customers and agents."""

__version__ = "0.1.0"
