"""A program that saves into a folder as programs do, and remembers what it was told is safe."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from pathlib import Path

from support.homes import wait_for

SIZES = (0, 10, 4096, 5_000, 200_000, 3_000_000, 12_000_000)
OFTEN = (10, 10, 10, 10, 10, 2, 1)  # every version stays on the disk: 0.4 MB a step, on average


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Writer(threading.Thread):
    """Writes files without end and keeps the ledger: path below the DataStore -> SHA-256 of what was closed.

    While a step goes on its paths are not in the ledger; when it fails they stay out: they may hold either.
    """

    def __init__(self, folder: Path, number: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.folder, self.number = folder, number
        self.random = random.Random(seed * 1000 + number)
        self.ledger: dict[str, str] = {}
        self.wrong = ""
        self.stopping = threading.Event()

    def run(self) -> None:
        count = 0
        while not self.stopping.is_set():
            count += 1
            path = f"w{self.number}-{count % 400}"
            try:
                self.step(path)
            except OSError:  # the mount is away
                self.stopping.wait(0.05)
            except AssertionError as error:
                self.wrong = str(error)
                return

    def step(self, path: str) -> None:
        """One save, append, replacement, renaming or removal. Raises: OSError, AssertionError (wrong bytes)."""
        content = self.random.randbytes(*self.random.choices(SIZES, OFTEN))
        target = self.folder / path
        kind = self.random.choice(("write", "write", "replace", "append", "rename", "unlink"))
        aside = self.folder / (path + "+")
        before = {name: self.ledger.pop(name) for name in (path, aside.name) if name in self.ledger}
        after = dict(before)
        if kind == "replace":  # as editors do: write aside, sync, rename over
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(target)
            after.pop(aside.name, None)
            after[path] = digest(content)
        elif kind == "append" and path in before:
            held = target.read_bytes()
            assert digest(held) == before[path], f"{path} is not what was closed"
            with target.open("ab") as file:
                file.write(content[:100_000])
            after[path] = digest(held + content[:100_000])
        elif kind == "rename" and path in before:
            target.rename(aside)
            after[aside.name] = after.pop(path)
        elif kind == "unlink" and path in before:
            target.unlink()
            del after[path]
        else:
            with target.open("wb") as file:
                for start in range(0, len(content), 1 << 20):
                    file.write(content[start : start + (1 << 20)])
            after[path] = digest(content)
        self.ledger.update(after)


def check(folder: Path, expected: dict[str, str], where: str) -> None:
    """That everything closed is there, whole. Errors are waited out (a node may be starting), wrong bytes are not."""
    for path, held in expected.items():
        found = wait_for(lambda path=path: _read(folder / path), f"{path} to be readable {where}")
        assert found != _GONE, f"{path} was closed and is gone {where}"
        assert found == held, f"{path} was closed and is not whole {where}"


_GONE = "gone"


def _read(path: Path) -> str:
    """The digest of a file; "gone" when there is none, "" when it cannot be read now."""
    try:
        return digest(path.read_bytes())
    except FileNotFoundError:
        return _GONE
    except OSError:
        return ""
