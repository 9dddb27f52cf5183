"""`collective federation ca …`: roots, member CAs and components by hand, as files in a folder."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from collective.cli.words import home_of, json_option, print_json
from collective.daemon.runtime import SystemClock
from collective.identity import ComponentKind
from collective.identity.folder import (
    Written,
    init_root,
    renew_component,
    request_member,
    sign_component,
    sign_member,
)

__all__ = ["ca"]

FOLDER = click.Path(path_type=Path)
ADMIN = frozenset({"read", "write", "admin"})
out_option = click.option(
    "--out", type=FOLDER, default=Path("."), metavar="DIR", help="Where to write (default: here)."
)


@click.group()
def ca() -> None:
    """Make certificate authorities by hand: a root, members under it, further components."""


@ca.command("init")
@click.option("--domain", required=True, metavar="DOMAIN", help="The federation's domain, like collective.local.")
@out_option
@json_option
def init(domain: str, out: Path, as_json: bool) -> None:
    """Make a federation's root CA: root-ca.crt and root-ca.key."""
    made = init_root(out, domain, SystemClock().wall())
    tell([made], as_json, federation=made.subject)
    if not as_json:
        click.echo("Keep root-ca.key safe and offline: whoever has it admits members.")
        click.echo(f"Next: collective federation ca sign-member --member alice.{made.subject}{_out_words(out)}")


@ca.command("request")
@click.option("--member", required=True, metavar="DOMAIN", help="The member's domain, like alice.collective.local.")
@out_option
@json_option
def request(member: str, out: Path, as_json: bool) -> None:
    """Make a member CA's key and the request that the root holder signs; the key stays here."""
    made = request_member(out, member)
    tell([made], as_json, member=made.subject)
    if not as_json:
        click.echo(
            f"At the root: collective federation ca sign-member --member {made.subject} --csr {made.files[0].name}"
        )


@ca.command("sign-member")
@click.option("--member", required=True, metavar="MEMBER", help="The member's domain, like alice.collective.local.")
@click.option("--csr", type=FOLDER, metavar="FILE", help="Sign this request; then only the CA's certificate comes out.")
@click.option(
    "--root", "root_directory", type=FOLDER, metavar="DIR", help="Where the root is (default: --out, or here)."
)
@out_option
@json_option
def sign_member_command(member: str, csr: Path | None, root_directory: Path | None, out: Path, as_json: bool) -> None:
    """Sign a member's CA, and a first certificate for its coordinator: alice-ca.crt, alice-cert.crt and their keys."""
    if root_directory is None:
        root_directory = out if (out / "root-ca.crt").exists() else Path(".")
    made = sign_member(out, root_directory, member, SystemClock().wall(), csr)
    tell(made, as_json, member=made[0].subject)
    if not as_json and csr is None:
        files = root_directory / "root-ca.crt", made[0].files[0], made[1].files[0]
        click.echo("Check: openssl verify -CAfile {} -untrusted {} {}".format(*files))


@ca.command("sign-component")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["coordinator", "node", "client"]),
    default="node",
    show_default=True,
    help="What the component is.",
)
@click.option("--name", required=True, metavar="NAME", help="Its name in the member's domain, like node-02.")
@click.option("--member", default="", metavar="DOMAIN", help="Whose CA, where the folder holds several.")
@click.option("--ca", "authority", type=FOLDER, metavar="DIR", help="Where the CA is (default: this home, or here).")
@click.option("--out", type=FOLDER, metavar="DIR", help="Where to write (default: beside the CA).")
@click.option("--admin", is_flag=True, help="A client that may invite, grant and remove.")
@click.option("--renew", is_flag=True, help="A new certificate for the key that is there.")
@json_option
@click.pass_context
def sign_component_command(
    context: click.Context,
    kind: str,
    name: str,
    member: str,
    authority: Path | None,
    out: Path | None,
    admin: bool,
    renew: bool,
    as_json: bool,
) -> None:
    """Certify one more component of a member: a further node, client or coordinator."""
    if admin and (renew or kind != ComponentKind.CLIENT):
        raise click.UsageError("--admin is for a new client (--type client)")
    if authority is None:
        own = home_of(context).identity
        authority = own if (own / "member-ca.key").exists() else Path(".")
    directory = authority if out is None else out
    now = SystemClock().wall()
    if renew:
        made = renew_component(directory, authority, name, now, member)
    else:
        made = sign_component(directory, authority, ComponentKind(kind), name, now, member, ADMIN if admin else None)
    tell([made], as_json, address=made.subject)
    if not as_json and directory != authority:
        click.echo(f"Carry {directory} to the component's machine as HOME/identity (folder 0700, keys 0600).")


def tell(made: list[Written], as_json: bool, **about: str) -> None:
    """What was written, for whom and until when."""
    if as_json:
        files = [str(path) for one in made for path in one.files]
        print_json({**about, "files": files, "not_after": [_day(one) for one in made if one.not_after]})
        return
    for one in made:
        until = f", until {_day(one)}" if one.not_after else ""
        click.echo(f"Wrote {', '.join(map(str, one.files))}: {one.subject}{until}")


def _day(one: Written) -> str:
    return datetime.datetime.fromtimestamp(one.not_after, datetime.UTC).date().isoformat()


def _out_words(out: Path) -> str:
    return "" if out == Path(".") else f" --out {out}"
