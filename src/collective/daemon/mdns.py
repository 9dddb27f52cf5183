"""The mDNS process of a coordinator: tells the own network where this home is, and asks it where others are.

    a member's instance   NAME-HASH._collective._tcp.local.     HASH of the federation's root and the member's domain
      SRV  gRPC port, at NAME-HASH.local. with this machine's addresses
      TXT  address=coord@alice.media.collective  root=SHA-256 of the root certificate  lane=PORT

Its coordinator (daemon/neighbours) asks by lines on stdin, `{"member": DOMAIN}`. Answers are lines on stdout,
`{"member": DOMAIN, "places": [HOST:PORT]}`; so is what happened, `{"announced": [ADDRESS]}`, `{"unavailable": REASON}`.

It is a process of its own because everybody on the network can send it anything: what they send is parsed where no key
is, and a flood of it holds nobody's event loop up (measured: 40 ms at a time). It imports little for the same reason.
Anybody can answer, too: an answer is a hint where to dial, and proves nothing. Source: RFC 6762, RFC 6763.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import ifaddr
from blake3 import blake3
from zeroconf import DNSAddress, DNSQuestionType, DNSService, Error, RecordUpdate, RecordUpdateListener, Zeroconf  # type: ignore[attr-defined]
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from collective.core.errors import Unreachable

__all__ = ["Announcement", "run_mdns"]

SERVICE = "_collective._tcp.local."
INSTANCE_CONTEXT = "collective 2026 mdns instance 1"
NAME_CHARACTERS = 40  # of a member's name, for people; with the hash they fit a label of 63
ASK_SECONDS = 1.5  # two questions, in case one is lost; who said it in the last second answers after that (RFC 6762, 6)
MAX_PLACES = 8
MAX_ANSWERS = 64  # places that one question takes in
MAX_ADDRESSES = 16  # of this machine; more would not fit one packet beside the rest
LOOK_SECONDS = 10.0  # until a changed address of this machine is noticed
RETRY_SECONDS = 10.0  # where there is no multicast, or no network yet

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Tell = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class Announcement:
    """Who is where: `host` as it is listened on, `port` gRPC's, `root` 64 hex digits of the root's SHA-256."""

    member: str
    root: str
    host: str
    port: int
    lane: int

    def instance(self, member: str) -> str:
        """The name under which a member of the same federation is announced; nobody has to be trusted to compute it."""
        digest = blake3(f"{self.root} {member}".encode(), derive_key_context=INSTANCE_CONTEXT).hexdigest(8)
        return f"{member.partition('.')[0][:NAME_CHARACTERS]}-{digest}"


async def run_mdns(own: Announcement) -> None:
    """Announce and answer until stdin ends, with its coordinator, or a signal says so."""
    loop = asyncio.get_running_loop()
    questions = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(questions), sys.stdin)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, questions.feed_eof)
    await _Process(own, lambda told: print(json.dumps(told), flush=True)).run(questions)


class _Process:
    """`tell` takes what is to be told to the coordinator."""

    def __init__(self, own: Announcement, tell: Tell) -> None:
        self._own = own
        self._tell = tell
        self._network: _Network | None = None

    async def run(self, questions: asyncio.StreamReader) -> None:
        """Announce and answer until the questions end; then say that this home is gone."""
        async with asyncio.TaskGroup() as group:
            tasks = {group.create_task(self._announce_for_ever())}
            while line := await questions.readline():
                task = group.create_task(self._answer(json.loads(line)["member"]))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            for task in tasks:
                task.cancel()

    async def _answer(self, member: str) -> None:
        places: list[str] = []
        if self._network is not None:
            with contextlib.suppress(Error):  # it was left meanwhile; the next question goes to the new one
                places = await self._network.places(self._own.instance(member))
        self._tell({"member": member, "places": places})

    async def _announce_for_ever(self) -> None:
        """Anew when this machine's addresses change, and again and again where there is no multicast."""
        while True:
            try:
                here = own_interfaces(self._own.host)
                async with _announced(self._own, here) as self._network:
                    self._tell({"announced": [str(interface.ip) for interface in here]})
                    await self._address_changed(here)
            except (OSError, RuntimeError, Error, Unreachable) as error:
                self._tell({"unavailable": str(error)})
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                self._network = None

    async def _address_changed(self, here: list[Interface]) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if own_interfaces(self._own.host) != here:
                return


class _Network:
    """The own network while it is listened to."""

    def __init__(self, zeroconf: AsyncZeroconf, here: list[Interface]) -> None:
        self._zeroconf = zeroconf.zeroconf
        self._here = here

    async def places(self, instance: str) -> list[str]:
        """HOST:PORT of everybody who says to be this instance, on own networks first, at most `MAX_PLACES`.

        Asked anew each time: what was heard earlier may be stale, or a lie that was told with a long life.
        """
        name, host, cache = f"{instance}.{SERVICE}", _host_of(instance), self._zeroconf.cache
        for known in (name, host):
            cache.async_remove_records(cache.async_entries_with_name(known))
        answers = _Answers(name, host)
        self._zeroconf.async_add_listener(answers, None)
        try:
            # by multicast: an answer to this address alone may reach another responder of this machine, like avahi
            ask = AsyncServiceInfo(SERVICE, name).async_request(self._zeroconf, ASK_SECONDS * 1000, DNSQuestionType.QM)
            await asyncio.gather(ask, asyncio.sleep(ASK_SECONDS))  # the first to answer may be a liar
        finally:
            self._zeroconf.async_remove_listener(answers)
        found = [place for place in answers.places if self._may_be(place[0])]
        some = random.sample(found, min(len(found), MAX_PLACES))
        some.sort(key=lambda place: not self._is_near(place[0]))
        return [f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}" for address, port in some]

    def _may_be(self, address: Address) -> bool:
        """Who answers here lives here: no word from this network sends anybody out into the world, or to itself."""
        if address.is_loopback != all(interface.ip.is_loopback for interface in self._here):
            return False
        if address.is_unspecified or address.is_multicast or address.is_reserved:
            return False
        if address.version == 6 and address.is_link_local:
            return False
        return address.is_private or self._is_near(address)

    def _is_near(self, address: Address) -> bool:
        return any(address in interface.network for interface in self._here)


class _Answers(RecordUpdateListener):
    """What is said of one instance, taken as it comes: the library's cache keeps what lives longest, lies first."""

    def __init__(self, name: str, host: str) -> None:
        self._name, self._host = name.lower(), host.lower()
        self.places: list[tuple[Address, int]] = []

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """One packet: somebody's ports, and the same one's addresses."""
        said = [update.new for update in records]
        ports = [record.port for record in said if isinstance(record, DNSService) and record.key == self._name]
        hosts = [record for record in said if isinstance(record, DNSAddress) and record.key == self._host]
        for record in hosts[:MAX_ADDRESSES] if ports else ():
            place = ipaddress.ip_address(record.address), ports[0]
            if place not in self.places:
                if len(self.places) >= MAX_ANSWERS:  # at random: no crowd of liars hides the right one for good
                    self.places.pop(random.randrange(MAX_ANSWERS))
                self.places.append(place)


def _host_of(instance: str) -> str:
    """The machine's name for this service alone; the one it has elsewhere is nobody's business here."""
    return f"{instance}.local."


@contextlib.asynccontextmanager
async def _announced(own: Announcement, here: list[Interface]) -> AsyncIterator[_Network]:
    """Multicast on these interfaces, with this home announced. Raises: OSError, Unreachable (no multicast)."""
    if not here:
        raise Unreachable("this machine has no address but its own loopback")
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)  # what matters is told here, in our words
    old = [str(interface.ip) for interface in here if interface.version == 4]
    zeroconf = AsyncZeroconf(interfaces=old or [str(interface.ip) for interface in here])
    try:
        await zeroconf.zeroconf.async_wait_for_start()
        if not zeroconf.zeroconf.engine.senders:
            raise Unreachable("no network interface takes multicast")
        instance = own.instance(own.member)
        info = AsyncServiceInfo(
            SERVICE,
            f"{instance}.{SERVICE}",
            port=own.port,
            properties={"address": f"coord@{own.member}", "root": own.root, "lane": str(own.lane)},
            server=_host_of(instance),
            parsed_addresses=[str(interface.ip) for interface in here],
        )
        # not asked first whether somebody has the name: it would be this member, or a liar who cannot prove it
        await (await zeroconf.async_register_service(info, cooperating_responders=True))
        yield _Network(zeroconf, here)
    finally:
        await zeroconf.async_close()


def own_interfaces(host: str) -> list[Interface]:
    """Where somebody who listens on `host` is reached, with the networks: all but loopback for 0.0.0.0 and ::.

    Raises: OSError, for a name that nobody knows.
    """
    all_there_are = [_interface(address) for adapter in ifaddr.get_adapters() for address in adapter.ips]
    everywhere = [interface for interface in all_there_are if not _means_nothing_elsewhere(interface.ip)]
    found: Iterable[Interface]
    if host == "0.0.0.0":
        found = (interface for interface in everywhere if interface.version == 4)
    elif host == "::":
        found = everywhere
    else:
        told = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        named = {ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in told}
        known = [interface for interface in everywhere if interface.ip in named]
        found = known or map(ipaddress.ip_interface, named)
    return sorted(found, key=lambda interface: (interface.version, interface.ip.packed))[:MAX_ADDRESSES]


def _interface(address: ifaddr.IP) -> Interface:
    ip = address.ip[0] if isinstance(address.ip, tuple) else address.ip
    return ipaddress.ip_interface(f"{ip}/{address.network_prefix}")


def _means_nothing_elsewhere(address: Address) -> bool:
    """This machine's own, or of one cable in a way that says not which."""
    return address.is_loopback or (address.version == 6 and address.is_link_local)
