"""What dead mounts left: when the coordinator has to wait for an heir, and when it does not."""

from __future__ import annotations

from collective.transfer.leases import TERM_SECONDS
from collective.transfer.legacies import Legacies


def test_a_journal_that_nobody_has_waits_for_its_heir_as_long_as_it_takes() -> None:
    """Open and orphaned, however late it is; closed when an heir has claimed it, or nothing is in it any more."""
    book = Legacies()
    book.look({1: False}, 0.0)
    assert (book.open, book.orphaned) == (True, True)
    book.look({1: False}, 1e6)
    assert (book.open, book.orphaned) == (True, True)
    book.look({1: True}, 1e6)
    assert (book.open, book.orphaned) == (True, False), "locked, but its heir has not said yet what is in it"
    book.claim(7, 1)
    book.look({1: True}, 1e6)
    assert not book.open
    book.leave(7)
    book.look({}, 1e6)
    assert not book.open


def test_a_mount_that_says_nothing_is_waited_for_one_term() -> None:
    """It stands still, or speaks an older protocol; each time it leaves is another term."""
    book = Legacies()
    book.claim(1, 4)
    book.look({4: True}, 10.0)
    assert not book.open
    book.leave(1)
    book.look({4: True}, 20.0)
    assert book.open
    book.look({4: True}, 20.0 + TERM_SECONDS - 0.01)
    assert book.open
    book.look({4: True}, 20.0 + TERM_SECONDS)
    assert not book.open
    book.claim(2, 4)
    book.look({4: True}, 30.0)
    book.leave(2)
    book.look({4: True}, 40.0)
    assert book.open


def test_one_heir_is_not_enough_for_two_journals() -> None:
    """Each journal is answered for by itself."""
    book = Legacies()
    book.claim(1, 1)
    book.look({1: True, 2: False}, 0.0)
    assert book.open
    book.claim(1, 2)
    book.look({1: False, 2: True}, 0.0)
    assert book.orphaned, "a claim of a journal without its lock is worth nothing"
