"""`mount` and `umount`; and the heir, which the coordinator starts."""

from __future__ import annotations

from pathlib import Path

import click

from collective.cli.words import home_of, start
from collective.core.sizes import parse_size
from collective.daemon.mount_writing import run_heir
from collective.daemon.mounter import MountOptions, mount_in_background, run_mounter, unmount
from collective.daemon.runtime import SystemClock, die_with_parent, raise_memory_thresholds

__all__ = ["heir", "mount", "umount"]


def _permission_bits(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Permission bits as people write them, in octal."""
    if value is None:
        return None
    try:
        bits = int(value, 8)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an octal number, such as 022") from None
    if not 0 <= bits <= 0o777:
        raise click.BadParameter(f"{value!r} is not between 0 and 777")
    return bits


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, readable=False))
@click.option("--foreground", is_flag=True, help="Stay until it is unmounted.")
@click.option("--read-only", is_flag=True, help="Nothing can be changed through this mount.")
@click.option("--allow-other", is_flag=True, help="Let other users of this machine in (Plex, Jellyfin).")
@click.option("--vfs-cache-max-size", default="128MiB", metavar="SIZE", help="RAM for plain bytes.", show_default=True)
@click.option("--vfs-read-ahead", default="32MiB", metavar="SIZE", help="At most this far ahead.", show_default=True)
@click.option(
    "--vfs-write-buffer",
    default="4GiB",
    metavar="SIZE",
    help="Written, not uploaded yet.",
    show_default=True,
)
@click.option("--uid", type=click.IntRange(0), help="Everything belongs to this user (default: as it was made).")
@click.option("--gid", type=click.IntRange(0), help="Everything belongs to this group.")
@click.option(
    "--umask", metavar="BITS", callback=_permission_bits, help="Permission bits that nothing has, in octal: 022."
)
@click.option("--ready-descriptor", type=int, default=-1, hidden=True)
@click.pass_context
def mount(
    context: click.Context,
    directory: Path,
    foreground: bool,
    read_only: bool,
    allow_other: bool,
    vfs_cache_max_size: str,
    vfs_read_ahead: str,
    vfs_write_buffer: str,
    uid: int | None,
    gid: int | None,
    umask: int | None,
    ready_descriptor: int,
) -> None:
    """Show the library as the folder DIRECTORY. Returns when it is there."""
    home = home_of(context)
    options = MountOptions(
        directory=directory.absolute(),
        allow_other=allow_other,
        cache_bytes=parse_size(vfs_cache_max_size),
        read_ahead_bytes=parse_size(vfs_read_ahead),
        read_only=read_only,
        journal_bytes=parse_size(vfs_write_buffer),
        uid=uid,
        gid=gid,
        umask=umask,
    )
    if foreground:
        raise_memory_thresholds()
        start(run_mounter(home, options, SystemClock(), ready_descriptor))
    else:
        mount_in_background(home, options)
        click.echo(f"The library is at {directory}. Take it away with: collective umount {directory}")


@click.command(hidden=True)
@click.option("--parent", type=int, required=True)
@click.pass_context
def heir(context: click.Context, parent: int) -> None:
    """Send what mounts that died left in their journals, then end."""
    die_with_parent(parent)
    raise_memory_thresholds()
    start(run_heir(home_of(context), SystemClock()))


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, readable=False))
@click.pass_context
def umount(context: click.Context, directory: Path) -> None:
    """Take the folder DIRECTORY away again."""
    unmount(home_of(context), directory.absolute())
    click.echo(f"{directory} is unmounted.")
