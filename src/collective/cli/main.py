"""`collective`: finds the command, turns errors into one message on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from collective import __version__
from collective.cli.lazy import LazyGroup
from collective.core.errors import CollectiveError, codes_of

__all__ = ["main"]


@click.command(
    cls=LazyGroup,
    table={
        "federation": ("collective.cli.federation", "federation", "found a federation, sign and admit members"),
        "coordinator": ("collective.cli.daemons", "coordinator", "run this home's coordinator"),
        "node": ("collective.cli.daemons", "node", "run a storage node"),
        "datastore": ("collective.cli.datastore", "datastore", "make DataStores, say who may do what in them"),
        "put": ("collective.cli.files", "put", "store a file or a folder"),
        "get": ("collective.cli.files", "get", "fetch a file or a folder"),
        "ls": ("collective.cli.files", "ls", "list names"),
        "rm": ("collective.cli.files", "rm", "remove names"),
        "mv": ("collective.cli.files", "mv", "rename"),
        "cp": ("collective.cli.versions", "cp", "copy within a DataStore, without moving bytes"),
        "versions": ("collective.cli.versions", "versions", "what a file was before"),
        "restore": ("collective.cli.versions", "restore", "bring an earlier version back"),
        "pending": ("collective.cli.versions", "pending", "changes that wait to be committed, or were refused"),
        "mkdir": ("collective.cli.files", "mkdir", "make a folder"),
        "mount": ("collective.cli.mounts", "mount", "show the library as a folder"),
        "umount": ("collective.cli.mounts", "umount", "take the folder away"),
        "heir": ("collective.cli.mounts", "heir", ""),
        "mdns": ("collective.cli.mdns", "mdns", ""),
        "status": ("collective.cli.status", "status", "how this home and its peers are"),
        "ping": ("collective.cli.status", "ping", "reach another member's coordinator"),
        "demo": ("collective.cli.demo", "demo", "three homes on this machine, one film, one of them killed"),
    },
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--home",
    type=click.Path(path_type=Path),
    envvar="COLLECTIVE_HOME",
    help="Where this component keeps everything.",
)
@click.version_option(__version__, prog_name="collective")
@click.pass_context
def collective(context: click.Context, home: Path | None) -> None:
    """Several homes, one library."""
    context.obj = home


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave the process with its exit code."""
    try:
        collective.main(args=arguments, prog_name="collective", standalone_mode=False)
    except click.exceptions.Exit as error:
        _leave(error.exit_code)
    except click.ClickException as error:
        error.show()
        _leave(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        _leave(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(1)
    except CollectiveError as error:
        print(f"collective: {_plain(str(error))}", file=sys.stderr)
        _leave(codes_of(error).exit_code)
    except OSError as error:  # a file that a person named, or where the output goes
        if os.environ.get("COLLECTIVE_DEBUG"):
            traceback.print_exc()
        where = f": {error.filename}" if error.filename else ""
        print(f"collective: {_plain(f'{error.strerror or error}{where}')}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what could not be written is not tried again
        _leave(1)
    except Exception as error:
        if os.environ.get("COLLECTIVE_DEBUG"):
            traceback.print_exc()
        print(f"collective: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        print("  set COLLECTIVE_DEBUG=1 and run it again to see where; please report it", file=sys.stderr)
        _leave(1)


def _plain(text: str) -> str:
    """A message without what would steer a terminal: names of files stand in it as others made them."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape", "replace").decode()
        for letter in text
    )


def _leave(code: int) -> None:
    sys.stdout.flush()
    raise SystemExit(code)


if __name__ == "__main__":
    main()
