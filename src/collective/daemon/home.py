"""A home: the folder where one component keeps everything, and the lock that makes its feeds have one writer."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from collective.admission import Household
from collective.catalog import Catalog, FolderHeadKeeper, HeadKeeper
from collective.chunks.disk import sync_folder
from collective.core.clock import Clock
from collective.core.errors import Conflict, Misconfigured
from collective.core.observe import SILENT, Observer
from collective.daemon.config import CoordinatorConfig, load_coordinator_config, save_config
from collective.identity import ensure_private_directory
from collective.mount.journal_lock import process_start
from collective.transfer.placing import choose_hosts
from collective.wire import feed_pb2

__all__ = ["Home"]

LAST_FILE = "coord.crt"  # a folder is a home when its identity has this
LOCK_WAIT_SECONDS = 5.0  # a command holds the lock for well under a second
LOCK_POLL_SECONDS = 0.05


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Home:
    """Paths inside one home. Nothing is created by naming it."""

    path: Path
    config_file: Path | None = None

    @property
    def identity(self) -> Path:
        return self.path / "identity"

    @property
    def database(self) -> Path:
        return self.path / "catalog.db"

    @property
    def heads(self) -> Path:
        return self.path / "heads"

    @property
    def socket(self) -> Path:
        return self.path / "control.sock"

    @property
    def start_line(self) -> str:
        """What a person types to start the coordinator."""
        return f"collective --home {self.path} coordinator --federation --storage 1TB"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def mounts(self) -> Path:
        return self.path / "mounts"

    @property
    def config_path(self) -> Path:
        return self.config_file or self.path / "config.json"

    def config(self) -> CoordinatorConfig:
        """The settings in force. Raises: Misconfigured."""
        return load_coordinator_config(self.config_path)

    def save_config(self, config: CoordinatorConfig) -> None:
        ensure_private_directory(self.path)
        save_config(self.config_path, config)

    def storage_path(self, named: str = "") -> Path:
        """Where the coordinator's own node keeps its chunks."""
        return Path(named or self.config().coordinator.storage_path or self.path / "storage")

    def check(self) -> None:
        """Raises: Misconfigured when no component was ever set up here."""
        if not (self.identity / LAST_FILE).exists():
            raise Misconfigured(
                f"there is no home at {self.path}",
                "make one with `collective federation init` or `federation join`, or name it with --home",
            )

    @contextlib.contextmanager
    def being_made(self) -> Iterator[Home]:
        """A home inside this one that takes its place when the block ends well; until then there is none.

        What an interrupted attempt left is made anew; what `join --request` keeps here is taken along. Raises:
        Misconfigured when this is a home already.
        """
        ensure_private_directory(self.path)
        with self.locked():
            if (self.identity / LAST_FILE).exists():
                raise Misconfigured(f"{self.path} is the home of a member already", "choose another one with --home")
            unfinished = Home(self.path / "unfinished")
            shutil.rmtree(unfinished.path, ignore_errors=True)
            ensure_private_directory(unfinished.path)
            ensure_private_directory(unfinished.identity)
            if self.identity.exists():
                shutil.copytree(self.identity, unfinished.identity, dirs_exist_ok=True)
            try:
                yield unfinished
            except BaseException:
                shutil.rmtree(unfinished.path, ignore_errors=True)
                raise
            self._take_over(unfinished)

    def _take_over(self, unfinished: Home) -> None:
        """Move everything to its place; the file that makes a home of it comes last, and all is synced before."""
        ensure_private_directory(self.identity)
        shutil.rmtree(self.heads, ignore_errors=True)
        for path in unfinished.path.iterdir():
            if path != unfinished.identity:
                path.replace(self.path / path.name)
        for path in sorted(unfinished.identity.iterdir(), key=lambda path: path.name == LAST_FILE):
            if path.name == LAST_FILE:
                os.sync()
            path.replace(self.identity / path.name)
        os.sync()
        shutil.rmtree(unfinished.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the home for writing its feeds. Raises: Conflict while another process does."""
        if not self.path.is_dir():
            raise Misconfigured(
                f"there is no home at {self.path}", "make one with `collective federation init`, or name it with --home"
            )
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_WAIT_SECONDS
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise Conflict(
                        f"another process is using the home {self.path}",
                        "a coordinator that is starting or stopping, or another command: try again in a moment",
                    )
                time.sleep(LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def head_keeper(self, storage_path: str = "") -> FolderHeadKeeper:
        """Keeps the signed heads in folders of this machine: the home's own and, when it is there, its node's disk."""
        storage = self.storage_path(storage_path)
        return FolderHeadKeeper([self.heads, storage / "heads"] if storage.is_dir() else [self.heads])

    def catalog_opener(
        self,
        clock: Clock,
        observer: Observer = SILENT,
        federation_domain: str = "",
        heads: HeadKeeper | None = None,
    ) -> Callable[[Household, x509.Certificate], Catalog]:
        """How this home's catalogue is opened for writing; the lock must be held."""

        def open_catalog(household: Household, root: x509.Certificate) -> Catalog:
            return Catalog(
                self.database,
                federation_domain=federation_domain or household.coordinator.identity.federation_domain,
                root_certificate=root,
                own=household.keys,
                heads=heads or self.head_keeper(),
                clock=clock,
                observer=observer,
                choose_hosts=choose_hosts,
            )

        return open_catalog

    def read_mounts(self) -> list[dict[str, object]]:
        """What the home's mount processes say of themselves. Records of those that are gone are removed."""
        rows = []
        for record in sorted(self.mounts.glob("*.json")):
            with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
                row = json.loads(record.read_text())
                if process_start(row["pid"]) == row["started"]:  # a number alone may be another process by now
                    rows.append(row)
                else:
                    record.unlink(missing_ok=True)
        return rows

    # ------------------------------------------------------------ left

    def has_left(self) -> bool:
        """Whether this home left its federation on purpose and did not come back."""
        return (self.path / "left").exists()

    def note_left(self) -> None:
        """Durable: no start of the coordinator, by a service manager for one, undoes it."""
        with (self.path / "left").open("w") as file:
            os.fsync(file.fileno())
        sync_folder(self.path)

    def come_back(self) -> None:
        (self.path / "left").unlink(missing_ok=True)

    # ------------------------------------------------------------ listening.json

    def note_listening(self, endpoint: feed_pb2.Endpoint) -> None:
        """Where this home's coordinator is reached from this machine, whatever it tells others."""
        self._replace("listening.json", json.dumps(MessageToDict(endpoint)).encode() + b"\n")

    def listening(self) -> list[feed_pb2.Endpoint]:
        """Where the coordinator listens, or listened last; empty when it never did."""
        try:
            return [ParseDict(json.loads((self.path / "listening.json").read_text()), feed_pb2.Endpoint())]
        except (FileNotFoundError, ValueError, ParseError):  # a broken one is written anew when it next starts
            return []

    # ------------------------------------------------------------ gossip.state

    def saved_gossip(self) -> bytes:
        """What an earlier run's gossip kept, b"" when there is nothing."""
        try:
            return (self.path / "gossip.state").read_bytes()
        except FileNotFoundError:
            return b""

    def save_gossip(self, state: bytes) -> None:
        """Replace it. Not synced: an older one, after a crash of the machine, costs one round of questions."""
        self._replace("gossip.state", state)

    # ------------------------------------------------------------ peers.json

    def saved_peers(self) -> dict[str, list[feed_pb2.Endpoint]]:
        """Endpoints learned earlier. A broken file is an empty book: everything in it is learned again."""
        try:
            document = json.loads((self.path / "peers.json").read_text())
            return {
                domain: [ParseDict(endpoint, feed_pb2.Endpoint(), ignore_unknown_fields=True) for endpoint in endpoints]
                for domain, endpoints in document.items()
            }
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError, TypeError, ParseError) as error:
            raise Misconfigured(
                f"{self.path}/peers.json is broken: {error}", "delete it; peers are met again"
            ) from error

    def peers_saved_since(self) -> Callable[[], dict[str, list[feed_pb2.Endpoint]] | None]:
        """To be asked often: what the book says when it was replaced since it was asked last, else None.

        Raises nothing: what was known serves until the book can be read, or is written anew.
        """
        seen = self._peers_stamp()

        def look() -> dict[str, list[feed_pb2.Endpoint]] | None:
            nonlocal seen
            stamp = self._peers_stamp()
            if stamp in (seen, None):
                return None
            try:
                book = self.saved_peers()
            except OSError:
                return None
            except Misconfigured:
                seen = stamp
                return None
            seen = stamp
            return book

        return look

    def _peers_stamp(self) -> tuple[int, int] | None:
        """Another one each time the file is replaced."""
        try:
            found = (self.path / "peers.json").stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def save_peers(self, book: Mapping[str, Iterable[feed_pb2.Endpoint]]) -> None:
        document = {domain: [MessageToDict(endpoint) for endpoint in ends] for domain, ends in book.items()}
        self._replace("peers.json", json.dumps(document, indent=2).encode() + b"\n")

    def _replace(self, name: str, content: bytes) -> None:
        temporary = self.path / f"{name}.new"
        temporary.write_bytes(content)
        temporary.replace(self.path / name)
