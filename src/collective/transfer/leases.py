"""Directory leases: which session may change which directory from memory. The brain; `serve_leases` drives it.

A session is one connection of a mount. While it holds the lease on a directory, nobody else creates, renames or
removes names in it, so the mount may do so from memory and send the changes later, in batches. Whoever else wants to
change the directory has the lease recalled first: the holder sends what it has and answers.

    free --ask--> held --recall sent--> recalled --answered--> free
                    |                      |
                    +---- the session's term is over, or its connection ended ----> free

The term runs per session, from the last word heard of it, and only as long as its connection lives. The holder counts
it from when it *sent* that word, and stops at two thirds: whatever a suspended mount believes when it wakes up, it has
stopped before the term is over here. A recalled lease is not granted again to its holder before it was given up: the
grant could not be told from the one that is being given up. A connection that the mount's own side closed frees its
leases at once; one that ended otherwise, perhaps unknown to the mount, frees them when the term is over. A session
whose term was over once is *lapsed* for good: the mount has to connect anew, so that it never takes old leases for
standing ones.

While somebody changes a directory (`begin` .. `finish`) no lease on it is given out, so that a fresh holder always sees
the change. A coordinator that starts while leases of an earlier run may be out gives none for one term (`quiet_until`).
What a session says it has not sent yet (`claim`) is its own until it is recalled, like a lease.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["LEASES_PER_SESSION", "TERM_SECONDS", "Directory", "LeaseAnswer", "LeaseTable"]

TERM_SECONDS = 3.0  # docs/decisions/0008
MINIMUM_HOLD_SECONDS = 0.010  # against two mounts that take a directory from each other at every file
BUSY_RETRY_SECONDS = 0.010
LEASES_PER_SESSION = 8192  # then the oldest is recalled; a mount rarely changes more directories at once

Directory = tuple[bytes, int]
"""(store id, inode number within the store)"""


@dataclass(frozen=True)
class LeaseAnswer:
    """`granted`; else `recall` names the session to be asked first, no sooner than in `retry_seconds`.

    `lapsed`: the asking session's term was over once.
    """

    granted: bool
    recall: int | None = None
    retry_seconds: float = 0.0
    lapsed: bool = False


@dataclass
class _Session:
    """`held` maps each directory to when it was granted, the oldest first."""

    expires: float
    connected: bool = True
    held: dict[Directory, float] = field(default_factory=dict)


class LeaseTable:
    """Leases of all sessions. All times are monotonic seconds given by the caller."""

    def __init__(self, quiet_until: float = 0.0) -> None:
        self.quiet_until = quiet_until
        self._sessions: dict[int, _Session] = {}
        self._holders: dict[Directory, int] = {}
        self._recalled: set[Directory] = set()
        self._busy: Counter[Directory] = Counter()

    # ------------------------------------------------------------ sessions

    def open(self, session: int, now: float) -> None:
        """A mount's connection is there."""
        self._sessions[session] = _Session(expires=now + TERM_SECONDS)

    def renew(self, session: int, now: float) -> bool:
        """The session was heard of: all of its leases hold for another term. False when it has lapsed."""
        standing = self._sessions.get(session)
        if standing is None or not standing.connected:
            return False
        if standing.expires <= now:
            self._lapse(session)
            return False
        standing.expires = now + TERM_SECONDS
        return True

    def end(self, session: int, now: float, *, known_there: bool) -> None:
        """The connection ended. `known_there`: by the mount's side, so that it counts on no lease any more."""
        standing = self._sessions.get(session)
        if standing is None:
            return
        standing.connected = False
        if known_there or standing.expires <= now:
            self._drop_leases(standing)
            del self._sessions[session]

    # ------------------------------------------------------------ leases

    def ask(self, session: int, directory: Directory, now: float) -> LeaseAnswer:
        """Grant the lease, or say what stands in its way. Asking for what one holds is granted again."""
        if not self.renew(session, now):
            return LeaseAnswer(False, lapsed=True)
        if now < self.quiet_until:
            return LeaseAnswer(False, retry_seconds=self.quiet_until - now)
        holder = self.holder(directory, now)
        if holder == session and directory not in self._recalled:
            return LeaseAnswer(True)
        if holder == session or directory in self._busy:
            return LeaseAnswer(False, retry_seconds=BUSY_RETRY_SECONDS)
        if holder is not None:
            return LeaseAnswer(False, recall=holder, retry_seconds=self.hold_left(directory, now))
        self._give(session, directory, now)
        return LeaseAnswer(True)

    def created(self, session: int, parent: Directory, directory: Directory, now: float) -> bool:
        """A new directory inside one that the session holds is the session's too; whether it is.

        Said before the creation is committed: nobody else can know its number yet.
        """
        if self.holder(parent, now) != session or self.holder(directory, now) not in (None, session):
            return False
        self._give(session, directory, now)
        return True

    def claim(self, session: int, directory: Directory, now: float) -> bool:
        """The session has changes of the directory to send, made before it connected: nobody else gets the lease before
        that is done, unless somebody has it already. Whether it is the session's now."""
        if not self.renew(session, now) or self.holder(directory, now) is not None:
            return False
        self._give(session, directory, now)
        return True

    def recall(self, session: int, directory: Directory) -> None:
        """The session is being asked to give the lease up."""
        if self._holders.get(directory) == session:
            self._recalled.add(directory)

    def give_up(self, session: int, directory: Directory) -> None:
        """The session answered a recall: it does not change the directory from memory any more."""
        if self._holders.get(directory) == session:
            del self._holders[directory]
            del self._sessions[session].held[directory]
            self._recalled.discard(directory)

    def holder(self, directory: Directory, now: float) -> int | None:
        """Whose lease it is now."""
        session = self._holders.get(directory)
        if session is not None and self._sessions[session].expires <= now:
            self._lapse(session)
            return None
        return session

    def hold_left(self, directory: Directory, now: float) -> float:
        """How long its holder keeps it at least, in seconds."""
        session = self._holders.get(directory)
        if session is None:
            return 0.0
        return max(0.0, self._sessions[session].held[directory] + MINIMUM_HOLD_SECONDS - now)

    def lapses_in(self, session: int, now: float) -> float:
        """Seconds until the session has lost its leases if nothing more is heard of it."""
        standing = self._sessions.get(session)
        return max(0.0, standing.expires - now) if standing is not None else 0.0

    def over_limit(self, session: int) -> list[Directory]:
        """The oldest leases of a session that holds too many; to be recalled."""
        standing = self._sessions.get(session)
        if standing is None:
            return []
        excess = max(0, len(standing.held) - LEASES_PER_SESSION)
        return [directory for directory, _ in zip(standing.held, range(excess), strict=False)]

    def all_held(self, now: float) -> list[tuple[int, Directory]]:
        """Every lease that is out: (session, directory)."""
        for session in list(self._sessions):
            if self._sessions[session].expires <= now:
                self._lapse(session)
        return [(session, directory) for directory, session in self._holders.items()]

    # ------------------------------------------------------------ changes by others than the holder

    def begin(self, directories: Iterable[Directory]) -> None:
        """From now on no lease on these is given out; those that are out stay until recalled."""
        self._busy.update(directories)

    def finish(self, directories: Iterable[Directory]) -> None:
        """The change is committed, or was given up. One `finish` for each `begin`."""
        for directory in directories:
            self._busy[directory] -= 1
            if not self._busy[directory]:
                del self._busy[directory]

    def in_the_way(self, session: int | None, directories: Iterable[Directory], now: float) -> list[Directory]:
        """Those that another session than this one holds; None is nobody's change but a command's or a member's."""
        return [directory for directory in directories if self.holder(directory, now) not in (None, session)]

    # ------------------------------------------------------------ inside

    def _give(self, session: int, directory: Directory, now: float) -> None:
        self._holders[directory] = session
        self._sessions[session].held[directory] = now

    def _lapse(self, session: int) -> None:
        standing = self._sessions[session]
        standing.expires = float("-inf")
        self._drop_leases(standing)
        if not standing.connected:
            del self._sessions[session]

    def _drop_leases(self, standing: _Session) -> None:
        for directory in standing.held:
            del self._holders[directory]
            self._recalled.discard(directory)
        standing.held.clear()
