"""The versions of a wire that one side speaks: N and, while homes are updated one by one, N-1.

On the lane they stand in the greeting, on the control wire in every call's metadata (`collective-versions: 1-1`, oldest
and newest; who says nothing speaks the first). What is new in a version is used when both speak it; fields and kinds
that one side does not know are passed over, as the form they stand in says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from collective.core.errors import Refused

__all__ = ["CONTROL", "LANE", "Spoken"]

_WRITTEN = re.compile(r"(\d{1,9})-(\d{1,9})")


@dataclass(frozen=True)
class Spoken:
    """Versions `oldest` to `newest` of a wire."""

    wire: str
    newest: int = 1
    oldest: int = 1

    def __str__(self) -> str:
        return f"{self.oldest}-{self.newest}"

    def check(self, newest: int, oldest: int) -> None:
        """Raises: Refused when the other side speaks none of these versions."""
        if newest < self.oldest or oldest > self.newest or newest < oldest:
            raise Refused(
                f"the peer speaks {self.wire} versions {oldest}-{newest}, this side {self}",
                "update the older of the two",
            )

    def check_written(self, text: str) -> None:
        """As `check`, of the written form. Raises: Refused, also when it is none."""
        written = _WRITTEN.fullmatch(text)
        if written is None:
            raise Refused(f"the peer's {self.wire} versions cannot be read")
        self.check(newest=int(written[2]), oldest=int(written[1]))


LANE = Spoken("lane")
CONTROL = Spoken("control")
