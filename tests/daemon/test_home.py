"""What the processes of a home tell each other by the files in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from collective.daemon.home import Home
from collective.mount.journal_lock import process_start
from collective.wire import feed_pb2


def book(place: str) -> dict[str, list[feed_pb2.Endpoint]]:
    return {"bob.media.collective": [feed_pb2.Endpoint(type="lan", grpc=place)]}


def test_a_book_that_was_saved_again_is_told_once(tmp_path: Path) -> None:
    """Also when there was none before; one that is broken, or gone, tells nothing."""
    home = Home(tmp_path)
    saved_since = home.peers_saved_since()
    assert saved_since() is None
    for place in ("192.0.2.1:8001", "192.0.2.2:8001"):
        home.save_peers(book(place))
        assert saved_since() == book(place)
        assert saved_since() is None
    unheard_of = MessageToDict(book("192.0.2.9:8001")["bob.media.collective"][0]) | {"ofALaterVersion": 1}
    for broken in ("{", '{"bob.media.collective": null}', '{"bob.media.collective": [{"grpc": 5}]}', "[]"):
        (tmp_path / "peers.json").write_text(broken)
        assert saved_since() is None
    (tmp_path / "peers.json").write_text(json.dumps({"bob.media.collective": [unheard_of]}))
    assert saved_since() == book("192.0.2.9:8001")
    (tmp_path / "peers.json").unlink()
    assert saved_since() is None
    home.save_peers(book("192.0.2.3:8001"))
    assert saved_since() == book("192.0.2.3:8001")


def test_a_process_that_ended_is_none() -> None:
    """Also before its parent has asked how it ended."""
    child = subprocess.Popen(["sleep", "60"])
    assert process_start(child.pid) > 0
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) == -1
    child.wait()
    assert process_start(child.pid) == -1
