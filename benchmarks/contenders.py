"""Who is compared: each serves one folder over an encrypted connection on loopback and mounts it, cold, on demand."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from collective.cli.demo_homes import DemoHome, end_group, three_free_ports, wait_until
from collective.cli.demo_mount import DemoMount, is_mounted


class Contender(Protocol):
    """`start` serves what lies in the source folder; `mount` gives a folder that shows it with nothing cached."""

    name: str

    def start(self) -> None: ...

    def mount(self) -> Path: ...

    def unmount(self) -> None: ...

    def stop(self) -> None: ...

    def roots(self) -> dict[str, int]:
        """Role (`server`, `client`) to the process whose whole tree plays it."""
        ...


@dataclass
class Mounted:
    """A foreign mount program in the foreground, in a session of its own."""

    directory: Path
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self, words: list[str]) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.process = spawn(words, self.log)
        wait_until(self._is_ready, f"mounting with {words[0]} (its log: {self.log})")
        return self.directory

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise SystemExit(f"the mount ended at once: {self.log.read_text(errors='replace')[-400:]}")
        return is_mounted(self.directory)

    def stop(self) -> None:
        if is_mounted(self.directory):
            subprocess.run(["fusermount3", "-u", str(self.directory)], check=False, stderr=subprocess.DEVNULL)
        if is_mounted(self.directory):
            subprocess.run(["fusermount3", "-u", "-z", str(self.directory)], check=False)
        if self.process is not None:
            end_group(self.process)
            self.process = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0


@dataclass
class Sshfs:
    """sshd with keys of its own on a free port, sshfs in front; `cipher` empty means ssh's own choice."""

    source: Path
    folder: Path
    name: str = "sshfs"
    cipher: str = ""
    writable: bool = False
    port: int = field(default_factory=three_free_ports)
    server: subprocess.Popen[bytes] | None = None
    client: Mounted = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.client = Mounted(self.folder / "mount", self.folder / "client.log")

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd refuses to start without it
        for name in ("host", "user"):
            key = str(self.folder / name)
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (self.folder / "authorized").write_text((self.folder / "user.pub").read_text())
        host_key = " ".join((self.folder / "host.pub").read_text().split()[:2])
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {host_key}\n")
        lines = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": self.folder / "host",
            "AuthorizedKeysFile": self.folder / "authorized",
            "PasswordAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
            "PidFile": "none",
            "Subsystem": "sftp internal-sftp",
        }
        config = self.folder / "sshd_config"
        config.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if sshd is None:
            raise SystemExit("sshd is missing: apt-get install -y openssh-server")
        self.server = spawn([sshd, "-D", "-e", "-f", str(config)], self.folder / "server.log")
        wait_for_port(self.port)

    def mount(self) -> Path:
        options = [f"IdentityFile={self.folder / 'user'}", f"UserKnownHostsFile={self.folder / 'known'}"]
        options += ["IdentitiesOnly=yes", "BatchMode=yes", *([] if self.writable else ["ro"])]
        if self.cipher:
            options.append(f"Ciphers={self.cipher}")
        words = ["sshfs", "-f", "-p", str(self.port), f"{getpass.getuser()}@127.0.0.1:{self.source}"]
        words.append(str(self.client.directory))
        for option in options:
            words += ["-o", option]
        return self.client.start(words)

    def unmount(self) -> None:
        self.client.stop()

    def stop(self) -> None:
        self.client.stop()
        if self.server is not None:
            end_group(self.server)
            self.server = None

    def roots(self) -> dict[str, int]:
        return {"server": self.server.pid if self.server else 0, "client": self.client.pid}


@dataclass
class Rclone:
    """`rclone serve webdav` over TLS with a CA of its own, `rclone mount` in front; `cache_mode` off or full."""

    source: Path
    folder: Path
    cache_mode: str
    name: str = ""
    writable: bool = False
    port: int = field(default_factory=three_free_ports)
    server: subprocess.Popen[bytes] | None = None
    client: Mounted = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.name or f"rclone {self.cache_mode}"
        self.folder.mkdir(parents=True)
        self.client = Mounted(self.folder / "mount", self.folder / "client.log")

    def start(self) -> None:
        make_certificates(self.folder)
        read_only = [] if self.writable else ["--read-only"]
        words = ["rclone", "serve", "webdav", str(self.source), "--addr", f"127.0.0.1:{self.port}", *read_only]
        words += ["--cert", str(self.folder / "server.crt"), "--key", str(self.folder / "server.key")]
        self.server = spawn([*words, "--config", str(self.folder / "none.conf")], self.folder / "server.log")
        wait_for_port(self.port)

    def mount(self) -> Path:
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        remote = f':webdav,url="https://127.0.0.1:{self.port}",vendor=other:'
        words = ["rclone", "mount", remote, str(self.client.directory), *([] if self.writable else ["--read-only"])]
        words += ["--vfs-cache-mode", self.cache_mode, "--cache-dir", str(cache)]
        words += ["--ca-cert", str(self.folder / "ca.crt"), "--config", str(self.folder / "none.conf")]
        return self.client.start(words)

    def unmount(self) -> None:
        self.client.stop()
        shutil.rmtree(self.folder / "cache", ignore_errors=True)

    def stop(self) -> None:
        self.unmount()
        if self.server is not None:
            end_group(self.server)
            self.server = None

    def roots(self) -> dict[str, int]:
        return {"server": self.server.pid if self.server else 0, "client": self.client.pid}


@dataclass
class Collective:
    """alice stores (one copy, so nothing lies at the reader's), bob mounts."""

    source: Path
    folder: Path
    parts: tuple[str, ...]
    pledge: str = "20GB"
    name: str = "collective"
    put_seconds: dict[str, float] = field(default_factory=dict)
    alice: DemoHome = field(init=False)
    bob: DemoHome = field(init=False)
    client: DemoMount = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.alice, self.bob = (DemoHome(name, self.folder / name, self.pledge, _silent) for name in ("alice", "bob"))
        self.client = DemoMount(self.bob, self.folder / "mount", options=())

    def start(self) -> None:
        alice, bob = self.alice, self.bob
        alice.run(
            "federation", "init", "--domain", "media.collective", "--member", "alice",
            "--endpoint", alice.endpoint, "--no-datastores",
        )  # fmt: skip
        alice.start()
        bundle = str(self.folder / "bob.bundle")
        alice.run("federation", "bundle", "--member", "bob", "--out", bundle)
        bob.run("federation", "join", "--bundle", bundle, "--endpoint", bob.endpoint)
        bob.start()
        for home in (alice, bob):
            wait_until(lambda home=home: home.hears(1), f"{home.name} meeting the other")  # type: ignore[misc]
        alice.run("datastore", "create", "/media/bench", "--strategy", "media", "--replicas", "1")
        alice.run("datastore", "grant", "/media/bench", "read", bob.identity)
        for part in self.parts:
            print(f"storing {part}; 10,000 files take some minutes: an entry, synced, each", file=sys.stderr)
            done = alice.ask("put", str(self.source / part), f"/media/bench/{part}", timeout_seconds=3600)
            self.put_seconds[part] = float(done["seconds"])
        wait_until(lambda: _shows(bob, self.parts), "bob seeing what alice stored", timeout_seconds=120)

    def mount(self) -> Path:
        self.client.start()
        shown = self.client.directory / "media" / "bench"
        wait_until(shown.exists, "the DataStore in bob's mount")
        return shown

    def unmount(self) -> None:
        self.client.stop()

    def stop(self) -> None:
        self.client.stop()
        self.bob.stop()
        self.alice.stop()

    def roots(self) -> dict[str, int]:
        processes = {"server": self.alice.process, "reader's coordinator": self.bob.process}
        roots = {role: process.pid for role, process in processes.items() if process is not None}
        return roots | {"client": self.client.process.pid if self.client.process else 0}


@dataclass
class CollectiveAtHome:
    """alice writes into her own library through her mount: coordinator, node and mount on this machine, two homes'
    bytes nowhere (one copy), as the others keep one copy too."""

    source: Path
    folder: Path
    name: str = "collective"
    alice: DemoHome = field(init=False)
    client: DemoMount = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.alice = DemoHome("alice", self.folder / "alice", "20GB", _silent)
        self.client = DemoMount(self.alice, self.folder / "mount", options=(), read_only=False)

    def start(self) -> None:
        self.alice.run(
            "federation", "init", "--domain", "media.collective", "--member", "alice",
            "--endpoint", self.alice.endpoint, "--no-datastores",
        )  # fmt: skip
        self.alice.start()
        self.alice.run("datastore", "create", "/media/bench", "--strategy", "media", "--replicas", "1")

    def mount(self) -> Path:
        self.client.start()
        shown = self.client.directory / "media" / "bench"
        wait_until(shown.exists, "the DataStore in alice's mount")
        return shown

    def unmount(self) -> None:
        self.client.stop()

    def stop(self) -> None:
        self.client.stop()
        self.alice.stop()

    def roots(self) -> dict[str, int]:
        roots = {"server": self.alice.process.pid} if self.alice.process is not None else {}
        return roots | {"client": self.client.process.pid if self.client.process else 0}


def _silent(line: str) -> None:
    """Benchmarks do not narrate their commands."""


def _shows(home: DemoHome, parts: tuple[str, ...]) -> bool:
    rows = home.ask("ls", "/media/bench")["files"]
    return {Path(row["path"]).name for row in rows} >= set(parts)


def make_certificates(folder: Path) -> None:
    """A CA and a server certificate for 127.0.0.1, P-256 like Collective's own."""
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=bench", cwd=folder)
    _openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=127.0.0.1", cwd=folder)
    sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
    _openssl(*sign, "-days", "2", "-extfile", "san", "-out", "server.crt", cwd=folder)


def _openssl(*words: str, cwd: Path) -> None:
    subprocess.run(["openssl", *words], cwd=cwd, check=True, capture_output=True)


def spawn(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a long-lived process in a session of its own, its output in a log."""
    with log.open("ab") as sink:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for_port(port: int) -> None:
    """Until somebody listens there."""

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listens, f"a server on port {port}")
