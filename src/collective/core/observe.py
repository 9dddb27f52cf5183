"""One way to tell what happens inside: an event name and fields. Silent unless somebody listens.

Events are `room.what_happened`; fields are plain values. Never a key, an invite code, a ticket or plain content.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["SILENT", "Observer", "SilentObserver"]

Field = str | int | float | bool | None


class Observer(Protocol):
    """Takes events; must not raise and must not block."""

    def event(self, name: str, **fields: Field) -> None: ...


class SilentObserver:
    """Listens to nothing."""

    def event(self, name: str, **fields: Field) -> None:
        return None


SILENT: Observer = SilentObserver()
