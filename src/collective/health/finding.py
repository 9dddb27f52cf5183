"""What is not as it should be, and what mends it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True)
class Finding:
    """`severity` warning or error; `message` what is; `mend` the command or act that mends it."""

    severity: str
    message: str
    mend: str
