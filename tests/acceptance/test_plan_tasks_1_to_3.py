"""The plan's own lines for tasks 1 to 3, typed as they stand there.

`go test ./pkg/federation -v -run TestX` is `bin/test -k TestX` here; that those names find their tests is seen below.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 240.0  # the first command on a machine makes its environment


def typed(line: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """One line, typed into a shell in `directory`."""
    return subprocess.run(
        ["bash", "-c", line], cwd=directory, capture_output=True, text=True, timeout=SECONDS, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder in which `./bin/collective` is the checkout's."""
    (tmp_path / "bin").symlink_to(REPOSITORY / "bin")
    return tmp_path


@pytest.mark.timeout(SECONDS * 2)
class TestPlanTask2:
    """Federation CA generator."""

    def test_the_plans_lines(self, folder: Path) -> None:
        """They end in `alice-cert.crt: OK`."""
        for line in (
            "./bin/collective federation ca init --domain collective.local",
            "./bin/collective federation ca sign-member --member alice.collective.local",
        ):
            done = typed(line, folder)
            assert done.returncode == 0, done.stderr
        done = typed("openssl verify -CAfile root-ca.crt -untrusted alice-ca.crt alice-cert.crt", folder)
        assert (done.returncode, done.stdout) == (0, "alice-cert.crt: OK\n")

    def test_what_is_in_the_certificates(self, folder: Path) -> None:
        """Ed25519 root for five years; the federation's domain in every certificate; expiry root > member > leaf."""
        assert typed("./bin/collective federation ca init --domain collective.local", folder).returncode == 0
        assert (
            typed("./bin/collective federation ca sign-member --member alice.collective.local", folder).returncode == 0
        )
        texts = {
            name: typed(f"openssl x509 -in {name}.crt -noout -text", folder).stdout
            for name in ("root-ca", "alice-ca", "alice-cert")
        }
        assert "Public Key Algorithm: ED25519" in texts["root-ca"]
        for text in texts.values():
            assert "1.3.6.1.4.1.99999.1:" in text
            assert "collective.local" in text
        assert "CA:TRUE, pathlen:0" in texts["alice-ca"]
        assert "Name Constraints: critical" in texts["alice-ca"]
        assert "coord@alice.collective.local" in texts["alice-cert"]
        day = 86400
        for name, lasts, ended in (("root-ca", 1825, 1828), ("alice-ca", 729, 732), ("alice-cert", 89, 91)):
            assert typed(f"openssl x509 -in {name}.crt -noout -checkend {lasts * day}", folder).returncode == 0
            assert typed(f"openssl x509 -in {name}.crt -noout -checkend {ended * day}", folder).returncode == 1

    def test_a_second_try_overwrites_nothing(self, folder: Path) -> None:
        """Exit code 1, a reason, what to do; no traceback."""
        line = "./bin/collective federation ca init --domain collective.local"
        assert typed(line, folder).returncode == 0
        before = (folder / "root-ca.key").read_bytes()
        done = typed(line, folder)
        assert done.returncode == 1
        assert "not overwritten" in done.stderr
        assert "Traceback" not in done.stderr
        assert (folder / "root-ca.key").read_bytes() == before

    def test_by_request(self, folder: Path) -> None:
        """A member's key made elsewhere: only the CA's certificate comes out."""
        for line in (
            "ca init --domain collective.local --out ca",
            "ca request --member bob.collective.local --out bob",
            "ca sign-member --member bob.collective.local --csr bob/bob-ca.csr --out ca --json",
        ):
            done = typed(f"./bin/collective federation {line}", folder)
            assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["files"] == ["ca/bob-ca.crt"]
        assert sorted(path.name for path in (folder / "ca").iterdir()) == ["bob-ca.crt", "root-ca.crt", "root-ca.key"]

    def test_the_script(self, folder: Path) -> None:
        """`scripts/generate_federation_ca.sh` makes a root and its members, and openssl agrees."""
        script = REPOSITORY / "scripts" / "generate_federation_ca.sh"
        done = typed(f"{script} --out ca collective.local alice bob.garage.collective", folder)
        assert done.returncode == 0, done.stderr
        assert "ca/alice-cert.crt: OK" in done.stdout
        assert "ca/bob-cert.crt: OK" in done.stdout


@pytest.mark.parametrize(("name", "least"), [("TestAddress", 10), ("TestTrustStore", 6)], ids=["task 1", "task 3"])
def test_the_plans_test_names_find_their_tests(name: str, least: int) -> None:
    """`bin/test -k TestAddress` and `-k TestTrustStore` run what the plan lists: ten formats, six cases and more."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-k", name, "tests/core", "tests/identity"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if f"::{name}" in line]
    assert len(found) >= least
