"""Who else is on the own network: asked of the mDNS process (daemon/mdns), which also tells others of this home."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from collective.core.clock import Clock
from collective.core.observe import Observer
from collective.daemon.supervise import keep_running, start_process, stop_process

__all__ = ["Neighbours", "is_wanted"]

ANSWER_SECONDS = 4.0


def is_wanted(configured: bool | None, host: str) -> bool:
    """Whether to announce a home that listens on `host`: as configured, else when others can reach it there."""
    if configured is not None:
        return configured
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


class Neighbours:
    """One home's. Where its mDNS process does not run nobody is found, and nothing else is amiss."""

    def __init__(self, member: str, root: x509.Certificate, log_path: Path, clock: Clock, observer: Observer) -> None:
        self._arguments = ["mdns", "--member", member, "--root", root.fingerprint(SHA256()).hex()]
        self._log_path = log_path
        self._clock = clock
        self._observer = observer
        self._process: asyncio.subprocess.Process | None = None
        self._running = False
        self._settled = asyncio.Event()  # the process is on the network, or knows that it cannot be
        self._asked: dict[str, asyncio.Future[list[str]]] = {}
        self._unavailable = ""

    async def run(self, host: str, port: int, lane: int) -> None:
        """Announce this home, which listens on `host`, gRPC on `port`. Ends only by cancellation."""
        self._arguments += ["--host", host, "--port", str(port), "--lane", str(lane)]
        self._running = True
        await keep_running(self._run_one, self._clock)

    async def places(self, domain: str) -> list[str]:
        """HOST:PORT of the gRPC ports of whoever says to be this member here and now."""
        if not self._running:
            return []
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._settled.wait()
                return await asyncio.shield(self._ask(domain))
        except TimeoutError:
            return []
        finally:
            self._asked.pop(domain, None)

    def _ask(self, domain: str) -> asyncio.Future[list[str]]:
        """The answer to come, asked for once at a time."""
        if domain not in self._asked:
            self._asked[domain] = asyncio.get_running_loop().create_future()
            if self._process is None or self._process.stdin is None:
                self._asked[domain].set_result([])  # it ended a moment ago
            else:
                self._process.stdin.write(json.dumps({"member": domain}).encode() + b"\n")
        return self._asked[domain]

    async def _run_one(self) -> None:
        try:
            process = await start_process(self._arguments, self._log_path, talking=True)
        except OSError as error:  # no memory, no descriptors: tried again
            self._observer.event("mdns.not_started", reason=str(error))
            return
        assert process.stdout is not None
        self._process = process
        try:
            async for line in process.stdout:
                self._take(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._observer.event("mdns.broken", reason=f"{type(error).__name__}: {error}")
        finally:
            self._process = None
            self._settled.clear()
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_result([])
            await stop_process(process)
        self._observer.event("mdns.ended", exit_code=process.returncode, log=str(self._log_path))

    def _take(self, told: dict[str, object]) -> None:
        """A line of the process. Raises: ValueError, LookupError, TypeError, AttributeError for what is none."""
        if isinstance(places := told.get("places"), list):
            answer = self._asked.get(str(told["member"]))
            if answer is not None and not answer.done():
                answer.set_result([str(place) for place in places])
            return
        if isinstance(addresses := told.get("announced"), list):
            self._unavailable = ""
            self._observer.event("mdns.announced", addresses=", ".join(map(str, addresses)))
        elif (reason := str(told["unavailable"])) != self._unavailable:  # it tries again and again, and is told once
            self._unavailable = reason
            self._observer.event("mdns.unavailable", reason=reason, hint="others are found by address or DNS alone")
        self._settled.set()
