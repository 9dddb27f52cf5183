"""`federation init | bundle | join | members`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from collective.admission import found_federation, join_with_bundle, make_join_request
from collective.cli.words import (
    NewFile,
    describe_peer,
    endpoint_option,
    home_of,
    json_option,
    note,
    parse_endpoint,
    print_json,
    start,
)
from collective.core.address import member_identity, validate_domain
from collective.core.errors import Misconfigured, NotFound
from collective.daemon.client import read_members
from collective.daemon.config import (
    CoordinatorConfig,
    CoordinatorSection,
    EndpointConfig,
    FederationSection,
    NetworkSection,
)
from collective.daemon.control import open_control
from collective.daemon.home import Home
from collective.daemon.runtime import SystemClock
from collective.identity import ensure_private_directory
from collective.wire import control_pb2, feed_pb2

__all__ = ["bundle", "init", "join", "members"]

DEFAULT_DATASTORES = ((b"/media", feed_pb2.MEDIA, 2), (b"/backups", feed_pb2.BACKUP, 3))


@click.command()
@click.option("--domain", required=True, help="The federation's domain, for example media.collective.")
@click.option("--member", required=True, help="This home's name (alice) or whole domain.")
@endpoint_option
@click.option("--root", "root_directory", type=click.Path(path_type=Path), help="Found upon root-ca.crt/.key in DIR.")
@click.option("--no-datastores", is_flag=True, help="Do not make /media and /backups.")
@json_option
@click.pass_context
def init(
    context: click.Context,
    domain: str,
    member: str,
    endpoints: tuple[str, ...],
    root_directory: Path | None,
    no_datastores: bool,
    as_json: bool,
) -> None:
    """Found a federation; this home is its first member and holds its root key."""
    home = home_of(context)
    federation_domain = validate_domain(domain)
    member_domain = validate_domain(member if "." in member else f"{member}.{federation_domain}")
    reachable = [parse_endpoint(text) for text in endpoints]
    clock = SystemClock()
    with home.being_made() as made_home:
        opener = made_home.catalog_opener(clock, federation_domain=federation_domain)
        found_federation(
            made_home.identity, federation_domain, member_domain, reachable, clock.wall(), opener, root_directory
        )
        made_home.save_config(_config(home, federation_domain, member_domain, reachable))
    made = [] if no_datastores else list(DEFAULT_DATASTORES)
    start(_make_datastores(home, made))
    paths = [path.decode() for path, _, _ in made]
    if as_json:
        print_json(
            {"federation": federation_domain, "member": member_domain, "home": str(home.path), "datastores": paths}
        )
        return
    click.echo(f"Founded {federation_domain}; this home is {member_identity(member_domain)}, in {home.path}.")
    if paths:
        click.echo(f"DataStores made: {', '.join(paths)}")
    click.echo(f"Next: {home.start_line}")


async def _make_datastores(home: Home, wanted: Sequence[tuple[bytes, feed_pb2.Strategy.ValueType, int]]) -> None:
    if not wanted:
        return
    async with open_control(home, SystemClock()) as control:
        for path, strategy, replicas in wanted:
            request = control_pb2.CreateDataStoreRequest(path=path, strategy=strategy, replicas=replicas)
            await control.call("CreateDataStore", request, control_pb2.DataStoreReply)


@click.command()
@click.option("--member", default="", help="The new member's name or domain.")
@click.option("--request", "request_file", type=click.Path(path_type=Path), help="What `join --request` wrote there.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The bundle to carry to the new home.")
@json_option
@click.pass_context
def bundle(context: click.Context, member: str, request_file: Path | None, out: Path, as_json: bool) -> None:
    """Admit a member and write the file that its home joins with."""
    if not member and request_file is None:
        raise click.UsageError("name the new member with --member, or give the request it made with --request")
    request = control_pb2.BundleRequest(member=member, join_request=_read(request_file) if request_file else b"")
    with NewFile(out) as file:
        reply = start(_bundle(home_of(context), request))
        file.write(reply.bundle)
    for text in reply.notes:
        note(text)
    if as_json:
        print_json({"bundle": str(out), "notes": list(reply.notes)})
    else:
        click.echo(f"Wrote {out}. In the new home: collective federation join --bundle {out.name}")


async def _bundle(home: Home, request: control_pb2.BundleRequest) -> control_pb2.BundleReply:
    async with open_control(home, SystemClock()) as control:
        return await control.call("Bundle", request, control_pb2.BundleReply)


@click.command()
@click.option("--bundle", "bundle_file", type=click.Path(path_type=Path), help="The file the root holder wrote.")
@click.option("--request", "request_file", type=click.Path(path_type=Path), help="Write a request there instead.")
@click.option("--member", default="", help="This home's name or domain (with --request).")
@endpoint_option
@json_option
@click.pass_context
def join(
    context: click.Context,
    bundle_file: Path | None,
    request_file: Path | None,
    member: str,
    endpoints: tuple[str, ...],
    as_json: bool,
) -> None:
    """Become a member with a bundle, or write the request that a bundle answers."""
    if (bundle_file is None) == (request_file is None):
        raise click.UsageError("give either --bundle FILE or --request FILE")
    home = home_of(context)
    reachable = [parse_endpoint(text) for text in endpoints]
    if request_file is not None:
        if not member:
            raise click.UsageError("--request needs --member, this home's name or domain")
        with NewFile(request_file) as file:
            _make_home(home)
            file.write(make_join_request(home.identity, member, reachable).SerializeToString())
        click.echo(f"Wrote {request_file}. At the root holder: collective federation bundle --request {request_file}")
        return
    assert bundle_file is not None
    raw = _read(bundle_file)
    clock = SystemClock()
    with home.being_made() as made_home:
        opener = made_home.catalog_opener(clock)
        household, read = join_with_bundle(made_home.identity, raw, reachable, clock.wall(), opener)
        config = _config(home, read.federation_domain, read.member_domain, reachable, read.issuer_domain)
        made_home.save_config(config)
        made_home.save_peers({read.issuer_domain: list(read.issuer_endpoints)})
    if as_json:
        print_json({"federation": read.federation_domain, "member": read.member_domain, "home": str(home.path)})
        return
    click.echo(f"This home is {member_identity(household.member_domain)} of {read.federation_domain} now.")
    click.echo(f"Next: {home.start_line}")


@click.command()
@json_option
@click.pass_context
def members(context: click.Context, as_json: bool) -> None:
    """Who is a member, with what this home knows of them."""
    home = home_of(context)
    rows = read_members(home)
    seen = {peer["member"]: peer for peer in start(_peers(home))}
    if as_json:
        print_json({"members": [dataclasses.asdict(row) | _seen(seen.get(row.domain)) for row in rows]})
        return
    for row in rows:
        state = "removed" if row.removed else describe_peer(seen[row.domain]) if row.domain in seen else ""
        click.echo(f"{row.identity}  {row.domain}  {' '.join(row.endpoints)}  {state}".rstrip())


async def _peers(home: Home) -> list[dict[str, Any]]:
    """What the running coordinator thinks of the others; nothing when none runs."""
    if not home.socket.exists():
        return []
    async with open_control(home, SystemClock()) as control:
        reply = await control.call("Status", control_pb2.StatusRequest(), control_pb2.StatusReply)
        peers: list[dict[str, Any]] = json.loads(reply.json)["peers"]
        return peers


def _seen(peer: dict[str, Any] | None) -> dict[str, Any]:
    keys = ("state", "entries_behind", "entries_ahead", "heard_seconds_ago")
    return {key: peer[key] if peer else None for key in keys}


def _make_home(home: Home) -> None:
    if (home.identity / "coord.crt").exists():
        raise Misconfigured(f"{home.path} is the home of a member already", "choose another one with --home")
    ensure_private_directory(home.path)


def _config(
    home: Home, federation_domain: str, member_domain: str, endpoints: list[feed_pb2.Endpoint], issuer: str = ""
) -> CoordinatorConfig:
    return CoordinatorConfig(
        federation=FederationSection(
            domain=federation_domain,
            member_domain=member_domain,
            root_ca=str(home.identity / "root-ca.crt"),
        ),
        network=NetworkSection(
            endpoints=tuple(
                EndpointConfig.model_validate({"type": end.type, "address": end.grpc, "lane": end.lane})
                for end in endpoints
            )
        ),
        coordinator=CoordinatorSection(
            address=f"coord@{member_domain}", bootstrap_peers=(f"coord@{issuer}",) if issuer else ()
        ),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise Misconfigured(f"cannot read {path}: {error.strerror}") from error
