"""The words every room speaks: addresses, clocks, errors, sizes, layouts, observation.

A closed list of small pure modules; nothing here opens a socket, a file or an event loop. Each is imported by its
own name (`from collective.core.errors import Refused`), so that a reader sees where a word comes from.
"""

__all__ = ["address", "clock", "errors", "layout", "observe", "sizes"]
