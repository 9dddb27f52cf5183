"""The demo's film: made by ffmpeg on the spot, or the one that was named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collective.core.errors import CollectiveError, Full, Misconfigured, NotFound

__all__ = ["Film", "make_film", "make_noise", "need_ffmpeg", "need_room", "pace_of", "take_film"]

PLAY_SECONDS = 25.0
PACE_LIMIT_BYTES_PER_SECOND = 40_000_000  # faster than any film; a longer one simply plays longer
_INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "ffmpeg"]
_NEEDS_SEEKING = (".mp4", ".m4v", ".mov")  # their index may lie at the end, where a stream cannot look first


@dataclass(frozen=True)
class Film:
    """`seconds` is how long it plays; `sha256` in hexadecimal."""

    path: Path
    size_bytes: int
    sha256: str
    seconds: float


def need_ffmpeg(say: Callable[[str], None]) -> None:
    """ffmpeg and ffprobe, installed on the spot where that is possible. Raises: Misconfigured with the line to type."""
    if shutil.which("ffmpeg") and shutil.which("ffprobe"):
        return
    hint = f"install it: {'' if os.geteuid() == 0 else 'sudo '}apt-get install -y ffmpeg"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise Misconfigured("the demo needs ffmpeg, to make a film and to play it", hint)
    say(f"ffmpeg is missing; installing it: {' '.join(_INSTALL)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, stdout=subprocess.DEVNULL, check=False)
    done = subprocess.run(_INSTALL, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0 or shutil.which("ffmpeg") is None:
        raise Misconfigured(f"ffmpeg could not be installed: {done.stderr.strip()[-300:]}", hint)


def need_room(folder: Path, size_bytes: int) -> None:
    """Raises: Full when the disk under `folder` has less than `size_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise Full(
            f"the demo needs {size_bytes / 1e9:.1f} GB in {folder}, there are {free / 1e9:.1f} GB",
            "set TMPDIR to a folder with more room",
        )


def make_film(path: Path) -> Film:
    """25 s of 960x540 with moving noise and a tone: about 390 MB, since noise does not compress; about 5 s of work."""
    picture = "testsrc2=size=960x540:rate=24,noise=alls=60:allf=t"
    words = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", picture]
    words += ["-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000", "-t", str(PLAY_SECONDS)]
    words += ["-c:v", "mpeg2video", "-qscale:v", "2", "-threads", "2", "-g", "12", "-c:a", "mp2", str(path)]
    _run(words, "make the film")
    return _measured(path)


def take_film(source: Path, folder: Path) -> Film:
    """The person's own film; in a form that plays from its beginning on (MP4 is put into Matroska, not re-encoded).

    Raises: NotFound, Misconfigured when it is no film.
    """
    if not source.is_file():
        raise NotFound(f"there is no film {source}")
    if source.suffix.lower() in _NEEDS_SEEKING:
        need_room(folder, source.stat().st_size * 5)
        streamable = folder / "film.mkv"
        words = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-i", str(source), "-map", "0:v:0", "-map", "0:a:0?"]
        _run([*words, "-c", "copy", str(streamable)], f"put {source.name} into a Matroska file")
        source = streamable
    return _measured(source)


def make_noise(path: Path, size_bytes: int) -> str:
    """A file that nothing can compress or has seen before; its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for offset in range(0, size_bytes, 1 << 20):
            block = os.urandom(min(1 << 20, size_bytes - offset))
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def pace_of(size_bytes: int, seconds: float) -> float:
    """Bytes a second to read at: the film's own pace, hurried so that it ends in about 25 s, up to a limit."""
    natural = size_bytes / seconds if seconds > 0 else 0.0
    return max(natural, min(size_bytes / PLAY_SECONDS, PACE_LIMIT_BYTES_PER_SECOND))


def _measured(path: Path) -> Film:
    words = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "format=duration:stream=codec_name"]
    document = json.loads(_run([*words, "-of", "json", str(path)], f"look into {path.name}"))
    if not document.get("streams"):
        raise Misconfigured(f"{path} has no picture", "name a video with --film")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Film(path, path.stat().st_size, digest, float(document["format"].get("duration", 0)))


def _run(words: list[str], what: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CollectiveError(f"ffmpeg could not {what}: {done.stderr.strip()[-400:]}")
    return done.stdout
