"""The composition root: the only floor that picks the real clock, disk and sockets, starts parts and stops them.

*Home*: the folder where a component keeps everything. *Foundation*: an opened home, with what all parts of its
coordinator stand on. *Coordinator*, *node*, *mounter*: the three long-lived
processes. *Control*: how a command reaches the running coordinator, or the home itself when none runs. Modules are
imported by name, since each pulls in the adapters of its own process.
"""

__all__ = ["config", "control", "coordinator", "foundation", "home", "mounter", "node", "parts", "runtime"]
