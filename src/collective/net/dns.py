"""Where DNS says that a member's coordinator is: the SRV records of its domain, else the domain itself.

    _collective._tcp.alice.media.collective.  SRV  0 0 9001 home.example.org.   ->  home.example.org:9001
    no such record                                                              ->  alice.media.collective:8001

Hosts are looked up (A, AAAA, /etc/hosts) by whoever dials them. Source: RFC 2782.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import dns.exception
from dns.rdtypes.IN.SRV import SRV
from dns.resolver import Resolver

from collective.core.errors import Misconfigured
from collective.net.endpoints import parse_host_port

__all__ = ["DEFAULT_PORT", "ServiceRecords"]

DEFAULT_PORT = 8001  # of a member that is known by its domain alone
MAX_RECORDS = 64  # looked at in one answer; it may have come from anywhere


@dataclass(frozen=True)
class ServiceRecords:
    """`servers` are addresses of DNS servers, asked at `port`; without any this machine's own are (resolv.conf)."""

    servers: Sequence[str] = ()
    port: int = 53
    timeout_seconds: float = 2.0

    async def places(self, domain: str) -> list[str]:
        """HOST:PORT of gRPC ports, by priority, then weight. A DNS that does not answer knows of no record."""
        return await asyncio.to_thread(self._look_up, domain)  # an answer of 58 KB took 100 ms to read

    def _look_up(self, domain: str) -> list[str]:
        try:
            answer = self._resolver().resolve(
                f"_collective._tcp.{domain}.", "SRV", lifetime=self.timeout_seconds, raise_on_no_answer=False
            )
            records = [record for record in list(answer)[:MAX_RECORDS] if isinstance(record, SRV)]
        except (dns.exception.DNSException, OSError):
            records = []
        if not records:
            return [f"{domain}:{DEFAULT_PORT}"]
        records.sort(key=lambda record: (record.priority, -record.weight))
        named = [f"{record.target.to_text(omit_final_dot=True)}:{record.port}" for record in records]
        return [place for place in named if _is_place(place)]

    def _resolver(self) -> Resolver:
        """Made anew each time: another network has other servers."""
        if not self.servers:
            return Resolver()
        resolver = Resolver(configure=False)
        resolver.nameservers = list(self.servers)
        resolver.port = self.port
        return resolver


def _is_place(text: str) -> bool:
    """A name in DNS may hold what a place may not: gRPC takes `unix:` and the like for another kind of network."""
    try:
        host, port = parse_host_port(text)
    except Misconfigured:
        return False
    return port > 0 and host != "." and "\\" not in host  # odd bytes are written as escapes
