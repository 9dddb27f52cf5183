"""Real processes and a year: a member that was away comes back to renewed certificates, folded feeds, ended rights."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration.test_snapshots import fold_often, told
from support.calendar import days_later
from support.homes import Federation, Home, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]  # many commands, each a process of its own

COMPONENTS = (("coordinator", "coord"), ("node", "node-01"), ("client", "client"))


def put(home: Home, tmp_path: Path, path: str) -> None:
    file = tmp_path / "content"
    file.write_text(f"the content of {path}")
    home.ok("put", file, path)


def names(home: Home, path: str) -> set[str]:
    return set(home.run("ls", path).out.split())


def a_year_later(home: Home) -> None:
    """Its machine's clock goes on; its certificates, which have ended, are renewed by the CA that it holds."""
    home.prefix = days_later(366)
    for kind, name in COMPONENTS:
        home.ok("federation", "ca", "sign-component", "--type", kind, "--name", name, "--renew")


def not_hosted_by(member: str, home: Home) -> str:
    """The path of a new DataStore that this member does not host: chance has a few tries."""
    for number in range(40):
        path = f"/lent-{number}"
        home.ok("datastore", "create", path)
        if member not in home.ok("datastore", "show", path, "--json").json["hosts"]:
            return path
    raise AssertionError(f"{member} hosts every DataStore")


def test_a_member_away_for_a_year(federation: Federation, tmp_path: Path) -> None:
    """carol left with rights to two DataStores. When she is back, the ended right opens nothing new, the standing one
    brings a year's changes, and a right given anew brings the other DataStore, whose entries were dropped meanwhile."""
    days_later(1)
    alice = federation.found("alice")
    fold_often(alice)
    alice.start()
    bob, dave, carol = (federation.join(name) for name in ("bob", "dave", "carol"))
    for home in (bob, dave, carol):
        home.start()
    federation.connected()
    alice.ok("datastore", "create", "/shared")
    lent = not_hosted_by("carol.media.collective", alice)
    for path, until in (("/shared", ()), (lent, ("--until", "30d"))):
        alice.ok("datastore", "grant", path, "read", "carol@media.collective", *until)
        put(alice, tmp_path, f"{path}/before")
        wait_for(lambda path=path: names(carol, path) == {"before"}, f"carol to list {path}")
    for home in federation.homes.values():
        home.stop()

    for home in (alice, bob, dave):
        a_year_later(home)
        home.start()
    for number in range(14):  # one after the other: what is put at once may share an entry
        put(alice, tmp_path, f"{lent}/new-{number}")
    put(alice, tmp_path, "/shared/new")
    wait_for(lambda: told(alice, "snapshot.dropped"), "alice to drop entries that carol may not follow", 90)

    a_year_later(carol)
    carol.start()
    wait_for(lambda: names(carol, "/shared") == {"before", "new"}, "carol to have a year's changes")
    carol.ok("get", "/shared/new", tmp_path / "back")
    assert (tmp_path / "back").read_text() == "the content of /shared/new"
    assert carol.status()["doubt"] is None
    assert "new-3" not in names(carol, lent)
    assert carol.run("get", f"{lent}/new-3", tmp_path / "none").code == 1

    alice.ok("datastore", "grant", lent, "read", "carol@media.collective")
    everything = {"before", *(f"new-{number}" for number in range(14))}
    wait_for(lambda: names(carol, lent) == everything, "carol to list what is lent to her again")
    assert told(carol, "snapshot.started_from")
    carol.ok("get", f"{lent}/new-3", tmp_path / "again")
    assert (tmp_path / "again").read_text() == f"the content of {lent}/new-3"
    put(alice, tmp_path, f"{lent}/last")
    wait_for(lambda: "last" in names(carol, lent), "carol to follow on")
