"""`collective federation …`: found one, sign for it, admit to it."""

from __future__ import annotations

import click

from collective.cli.lazy import LazyGroup

__all__ = ["federation"]


@click.command(
    cls=LazyGroup,
    table={
        "ca": ("collective.cli.federation_ca", "ca", "certificate authorities by hand"),
        "init": ("collective.cli.membership", "init", "found a federation with this home as its first member"),
        "bundle": ("collective.cli.membership", "bundle", "admit a member by a file carried by hand"),
        "join": ("collective.cli.membership", "join", "become a member with such a file"),
        "members": ("collective.cli.membership", "members", "who is in"),
        "leave": ("collective.cli.leaving", "leave", "go on purpose; says what that means first"),
    },
)
def federation() -> None:
    """Found a federation, sign for it, admit members to it."""
