"""The house: doors, names, sizes, and what lives where."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SOURCE = TOP / "src" / "collective"
ROOMS = sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists())
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "_pb2" not in path.name)
HARD_LIMIT_LINES = 400
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "base", "manager"}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_door(room: str) -> None:
    """`__init__` says what the room is for and lists names that exist."""
    module = importlib.import_module(f"collective.{room}")
    assert module.__doc__
    assert len(module.__doc__) > 80, "a sentence or two about the room"
    listed = module.__all__
    for name in listed:
        if not hasattr(module, name):
            importlib.import_module(f"collective.{room}.{name}")


def test_rooms_are_in_the_architecture() -> None:
    """The table of rooms names every room, and no other."""
    table = re.findall(r"^\| (\w+) \| ", (TOP / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    named = [name for name in table if name not in ("room", "question")]
    assert sorted(named) == ROOMS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_are_small_and_well_named(path: Path) -> None:
    """No module over the hard limit, none with a name that says nothing."""
    assert len(path.read_text().splitlines()) <= HARD_LIMIT_LINES
    assert path.stem not in FORBIDDEN_NAMES


def test_sql_and_fuse_stay_in_their_rooms() -> None:
    """SQL only in the catalogue, pyfuse3 only in the mount's adapter, gRPC and DNS only in net, mDNS in its process."""
    for path in MODULES:
        room = path.relative_to(SOURCE).parts[0]
        imported = imports_of(path)
        if room != "catalog":
            assert "sqlite3" not in imported, path
        if path.parent.name != "mount":
            assert "pyfuse3" not in imported, path
        if room != "net":
            assert not {name.partition(".")[0] for name in imported} & {"grpc", "dns"}, path
        if path != SOURCE / "daemon" / "mdns.py":
            assert not {name.partition(".")[0] for name in imported} & {"zeroconf", "ifaddr"}, path


def test_clocks_are_read_by_daemons_and_commands_alone() -> None:
    """Everything below takes `now` or a Clock."""
    for path in MODULES:
        if path.relative_to(SOURCE).parts[0] in ("daemon", "cli"):
            continue
        text = path.read_text()
        assert "time.time(" not in text, path
        assert "datetime.now" not in text, path


def test_help_is_instant() -> None:
    """`collective --help` loads neither gRPC nor FUSE."""
    code = (
        "import sys; from collective.cli.main import collective\n"
        "try: collective.main(['--help'], standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'pyfuse3', 'cryptography')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_mdns_process_has_no_keys() -> None:
    """What reads everybody's packets loads nothing that could open a home's identity, and is small."""
    code = (
        "import sys; import collective.cli.mdns\n"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'cryptography', 'collective.identity', 'sqlite3')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_documents_are_linked() -> None:
    """Every page under docs is reachable from its index, and no link there is dead."""
    index = (TOP / "docs" / "README.md").read_text()
    links = set(re.findall(r"\]\(([^)#]+)\)", index))
    for link in links:
        assert (TOP / "docs" / link).exists(), link
    for page in (TOP / "docs").rglob("*.md"):
        if page.name != "README.md":
            assert str(page.relative_to(TOP / "docs")) in links, page


def test_commands_exist() -> None:
    """Every command that the help lists can be loaded."""
    from collective.cli.main import collective

    context = collective.make_context("collective", [], resilient_parsing=True)
    for name in collective.list_commands(context):
        assert collective.get_command(context, name) is not None
