"""Places to dial and to listen on, and what a failed bind says."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective.core.errors import Misconfigured
from collective.net.endpoints import (
    ENDPOINT_TYPES,
    NetworkEndpoint,
    free_port,
    open_listeners,
    parse_endpoint,
    parse_host_port,
    reached_from_here,
)

hosts = st.sampled_from(["localhost", "10.0.0.7", "home.example.org", "::1", "fd00::12"])


@given(kind=st.sampled_from(ENDPOINT_TYPES), host=hosts, port=st.integers(0, 65535))
def test_round_trip(kind, host, port):
    """What is printed can be read."""
    endpoint = NetworkEndpoint(kind, host, port)
    assert parse_endpoint(str(endpoint)) == endpoint
    assert parse_host_port(endpoint.address) == (host, port)


@given(host=hosts, port=st.integers(0, 65535))
def test_who_listens_there_is_reached_there(host, port):
    assert parse_host_port(reached_from_here(host, port)) == (host, port)


def test_who_listens_everywhere_is_reached_by_loopback():
    assert reached_from_here("0.0.0.0", 8001) == "127.0.0.1:8001"
    assert reached_from_here("::", 8001) == "[::1]:8001"


def test_without_a_type_it_is_direct():
    assert parse_endpoint("home.example.org:8001") == NetworkEndpoint("direct", "home.example.org", 8001)


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":8001", "host:port", "host:65536", "host:-1", "a b:1", "::1:8001", "http://h:1", "h:²"],
)
def test_not_host_port(text):
    """Refused with an example of how it is written."""
    with pytest.raises(Misconfigured, match="HOST:PORT") as raised:
        parse_host_port(text)
    assert raised.value.hint


@pytest.mark.parametrize("text", ["wan:host:8001", "lan:host", "lan", "lan:::1"])
def test_not_an_endpoint(text):
    with pytest.raises(Misconfigured):
        parse_endpoint(text)


def test_a_port_in_use_is_named():
    """The owner learns which port, and how to see who has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Misconfigured, match=f"port {port} on 127.0.0.1 is already in use") as raised:
            open_listeners("127.0.0.1", port)
    assert f":{port}" in raised.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_foreign_address_is_named(host):
    with pytest.raises(Misconfigured, match=host):
        open_listeners(host, 0)


def test_every_address_of_a_host_gets_the_same_port():
    """`localhost` may be 127.0.0.1 and ::1; both are listened on."""
    listeners = open_listeners("localhost", 0)
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    for listener in listeners:
        with socket.create_connection(listener.getsockname()[:2], timeout=5):
            pass
        listener.close()


def test_a_free_port_can_be_listened_on():
    for listener in open_listeners("127.0.0.1", free_port()):
        listener.close()
