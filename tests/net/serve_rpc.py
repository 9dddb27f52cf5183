"""A control server in a process of its own: `serve_rpc.py IDENTITY_DIRECTORY` prints its port, streams one message."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from collective.identity import ComponentKind, Credentials, Level, TrustStore
from collective.net.rpc import Caller, Row, RpcServer, contract_methods
from collective.wire import control_pb2


class MachineClock:
    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


async def one_message(caller: Caller, request: Any) -> AsyncIterator[control_pb2.FollowReply]:
    yield control_pb2.FollowReply()
    await asyncio.Event().wait()


async def serve() -> None:
    credentials = Credentials.load(Path(sys.argv[1]), "coord")
    trust = TrustStore(credentials.root, credentials.identity.member_domain)
    rows = [
        Row(method, frozenset(ComponentKind), False, "", Level.FEDERATED, one_message) for method in contract_methods()
    ]
    print(await RpcServer(rows, trust, credentials, MachineClock()).start("127.0.0.1:0"), flush=True)
    await asyncio.Event().wait()


asyncio.run(serve())
