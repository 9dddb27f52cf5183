"""Collective: several homes, one library. See ARCHITECTURE.md for the rooms below."""

__version__ = "0.1.0"
