"""What is not as it should be, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Finding", "verdict"]


@dataclass(frozen=True)
class Finding:
    """`severity` warning or error; `message` what is; `mend` the command or act that mends it."""

    severity: str
    message: str
    mend: str


def verdict(findings: Sequence[Finding]) -> str:
    """The report's first line."""
    if any(finding.severity == "error" for finding in findings):
        return "HEALTH_ERR"
    return "HEALTH_WARN" if findings else "HEALTH_OK"
