"""What DNS says of a member: SRV records in their order, else the domain; and nothing that could not be a place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from collective.net.dns import ServiceRecords

ALICE = "alice.media.collective"


class Answerer(asyncio.DatagramProtocol):
    """A DNS server of one name, which says what a test wants."""

    def __init__(self, records: Sequence[str], code: dns.rcode.Rcode) -> None:
        self.records, self.code = records, code
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        reply = dns.message.make_response(query)
        reply.set_rcode(self.code)
        name = query.question[0].name
        self.asked.append(name.to_text())
        if self.records:
            reply.answer.append(dns.rrset.from_text(name, 60, "IN", "SRV", *self.records))
        self.transport.sendto(reply.to_wire(max_size=65535), address)


@asynccontextmanager
async def answering(
    *records: str, code: dns.rcode.Rcode = dns.rcode.NOERROR
) -> AsyncIterator[tuple[Answerer, ServiceRecords]]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: Answerer(records, code), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server, ServiceRecords(["127.0.0.1"], transport.get_extra_info("sockname")[1])
    finally:
        transport.close()


async def test_records_by_priority_then_weight() -> None:
    """The one question, and the places in the order in which RFC 2782 tries them."""
    records = ("20 0 8001 late.example.org.", "10 1 9001 light.example.org.", "10 5 9002 heavy.example.org.")
    async with answering(*records) as (server, dns_of):
        assert await dns_of.places(ALICE) == [
            "heavy.example.org:9002",
            "light.example.org:9001",
            "late.example.org:8001",
        ]
        assert server.asked == [f"_collective._tcp.{ALICE}."]


@pytest.mark.parametrize("code", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL], ids=str)
async def test_without_records_the_domain_is_the_host(code: dns.rcode.Rcode) -> None:
    """An address record of the member's domain is enough, at the default port."""
    async with answering(code=code) as (_, dns_of):
        assert await dns_of.places(ALICE) == [f"{ALICE}:8001"]


async def test_a_server_that_is_not_there_holds_nobody_up(unused_udp_port: int) -> None:
    """Then too the domain is tried, by whatever means the machine has."""
    nobody = ServiceRecords(["127.0.0.1"], unused_udp_port, timeout_seconds=0.2)
    assert await nobody.places(ALICE) == [f"{ALICE}:8001"]


async def test_a_record_can_say_that_there_is_no_service() -> None:
    """The target "." (RFC 2782)."""
    async with answering("0 0 0 .") as (_, dns_of):
        assert await dns_of.places(ALICE) == []


async def test_what_is_no_place_is_left_out() -> None:
    """Names in DNS may hold anything; gRPC would take some of it for files and other protocols."""
    hostile = (
        r"0 0 8001 unix\:\047run\047docker.sock.",
        r"1 0 8001 xds\:x.",
        r"2 0 8001 a\032b.",
        "3 0 0 port.example.org.",
    )
    async with answering(*hostile, "4 0 8001 good.example.org.") as (_, dns_of):
        assert await dns_of.places(ALICE) == ["good.example.org:8001"]


async def test_endless_answers_are_cut() -> None:
    """Whoever answers with a thousand records is not followed through all of them."""
    async with answering(*(f"{number} 0 8001 h{number}.x." for number in range(300))) as (_, dns_of):
        assert len(await dns_of.places(ALICE)) <= 64
