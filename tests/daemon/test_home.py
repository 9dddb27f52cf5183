"""What the processes of a home tell each other by the files in it."""

from __future__ import annotations

import json
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from collective.daemon.home import Home
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
