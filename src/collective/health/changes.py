"""The part of the report about changes: what waits for other members, what they refused, what was kept twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from collective.catalog import Catalog
from collective.health.finding import Finding

__all__ = ["ChangesReport"]

CONFLICT_SECONDS = 86400.0  # a conflict is a finding for a day, and is listed for longer
CONFLICTS_LISTED = 50
WAITING_SECONDS = 60.0  # what waits for less is on its way


@dataclass(frozen=True)
class ChangesReport:
    """Made anew for each report."""

    catalog: Catalog

    def pending(self) -> list[dict[str, object]]:
        """Changes of this home that are not settled, by their DataStore's owner and state."""
        counts: Counter[tuple[str, str]] = Counter()
        reasons: dict[tuple[str, str], str] = {}
        oldest: dict[tuple[str, str], int] = {}
        for change in self.catalog.pending():
            key = (change.owner, change.state)
            counts[key] += 1
            reasons[key] = change.reason or reasons.get(key, "")
            oldest.setdefault(key, change.since_milliseconds)
        return [
            {
                "owner": owner,
                "state": state,
                "changes": count,
                "since_milliseconds": oldest[owner, state],
                "reason": reasons[owner, state],
                "mend": "collective pending",
            }
            for (owner, state), count in sorted(counts.items())
        ]

    def conflicts(self) -> list[dict[str, object]]:
        """What was kept under another name in own DataStores, newest first."""
        return [
            {
                "at_milliseconds": conflict.at_milliseconds,
                "datastore": self._shown(conflict.store_id, b""),
                "wanted": self._shown(conflict.store_id, conflict.wanted),
                "kept": self._shown(conflict.store_id, conflict.kept),
                "writer": conflict.writer,
                "reason": conflict.reason,
            }
            for conflict in self.catalog.conflicts(CONFLICTS_LISTED)
        ]

    def findings(self, now: float) -> Iterable[Finding]:
        """`now` in seconds since 1970."""
        for row in self.pending():
            if row["state"] == "refused":
                yield Finding(
                    "warning",
                    f"{row['owner']} refused {row['changes']} changes: {row['reason']}",
                    "collective pending lists them; collective pending --discard N forgets one",
                )
            elif now * 1000 - int(str(row["since_milliseconds"])) > WAITING_SECONDS * 1000:
                yield self._waiting_finding(row)
        fresh = [
            conflict
            for conflict in self.catalog.conflicts(CONFLICTS_LISTED)
            if now * 1000 - conflict.at_milliseconds < CONFLICT_SECONDS * 1000
        ]
        if fresh:
            kept = self._shown(fresh[0].store_id, fresh[0].kept)
            yield Finding(
                "warning",
                f"{len(fresh)} changes of the last day met others and got conflict names, the last {kept}",
                "look at both and remove or rename one; collective status --json lists them",
            )

    def _waiting_finding(self, row: Mapping[str, object]) -> Finding:
        if row["owner"] == self.catalog.own_domain:
            return Finding(
                "warning",
                f"{row['changes']} changes wait for the end of the doubt",
                "they are signed when it ends; collective pending lists them",
            )
        return Finding(
            "warning",
            f"{row['changes']} changes wait for {row['owner']}",
            "they are sent when it is reached again; collective pending lists them",
        )

    def _shown(self, store_id: bytes, path: bytes) -> str:
        top = self.catalog.store(store_id).path
        return (top + b"/" + path if path else top).decode(errors="replace")
