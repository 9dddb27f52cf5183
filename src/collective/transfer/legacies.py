"""Legacies: journals of mounts that may hold names nobody knows of yet. The brain; `serve_leases` asks it.

A mount tells a program that it created a name before the coordinator hears of it. When the mount dies the name stands
in its journal alone, and its lease is free: whoever got it now would create the name again. So while any journal is
*open* no lease is lent and nothing is changed exactly; whoever takes a journal up *claims* it, together with the
directories that it still has to change (`leases.LeaseTable.claim`), and everything goes on.

    journal     its lock      its mount                                  is open
    claimed     held          is connected and said what is unsent       no
    unclaimed   held          stands still, or is about to connect       for one term, as leases are (decision 0008)
    orphaned    free          is gone                                    until an heir claims it, or nothing is in it
"""

from __future__ import annotations

from collections.abc import Mapping

from collective.transfer.leases import TERM_SECONDS

__all__ = ["Legacies"]


class Legacies:
    """Journals by number. All times are monotonic seconds given by the caller."""

    def __init__(self) -> None:
        self._claimed: dict[int, int] = {}  # session -> journal
        self._unclaimed: dict[int, float] = {}  # journal -> since when
        self.orphaned = False
        """Whether an heir is needed."""
        self.open = False
        """Whether names may be taken that nobody knows of."""

    def claim(self, session: int, journal: int) -> None:
        """The session's mount has the journal, and said what is unsent in it. It counts from the next look on."""
        self._claimed[session] = journal

    def leave(self, session: int) -> None:
        """The session's connection ended. It counts from the next look on."""
        self._claimed.pop(session, None)

    def look(self, journals: Mapping[int, bool], now: float) -> None:
        """What lies on the disk: whether somebody has the lock of each journal that is not empty."""
        claimed = set(self._claimed.values())
        self._unclaimed = {
            number: self._unclaimed.get(number, now)
            for number, locked in journals.items()
            if locked and number not in claimed
        }
        self.orphaned = not all(journals.values())
        self.open = self.orphaned or any(now < since + TERM_SECONDS for since in self._unclaimed.values())
