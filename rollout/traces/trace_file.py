"""Opens a trace file as lines of text: plain, gzip or xz, told by its first bytes and not by its name."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rollout.traces.errors import TraceError

_GZIP = b"\x1f\x8b"
_XZ = b"\xfd7zXZ\x00"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a trace file, and where it stands."""

    path: Path
    number: int
    """From 1."""
    text: str

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"


def read_lines(path: Path) -> Iterator[Line]:
    """The lines that are not blank, one at a time; raises TraceError where the file cannot be read."""
    number = 0
    with _told_in_one_line(path), _open(path) as file:
        for number, text in enumerate(file, start=1):
            if text.strip():
                yield Line(path, number, text.rstrip("\r\n"))
    if number == 0:
        raise TraceError(f"trace {path} is empty")


def read_text(path: Path) -> str:
    """The whole file."""
    with _told_in_one_line(path), _open(path) as file:
        return file.read()


@contextmanager
def _open(path: Path) -> Iterator[IO[str]]:
    with path.open("rb") as raw:
        head = raw.read(len(_XZ))
    with _opened(path, head) as file:
        yield file


def _opened(path: Path, head: bytes) -> IO[str]:
    if head.startswith(_GZIP):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    if head.startswith(_XZ):
        return lzma.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


@contextmanager
def _told_in_one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise TraceError(f"trace {path} does not exist; set trace to a file or a folder") from None
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error) as error:
        reason = str(error).partition("\n")[0]
        raise TraceError(f"trace {path} cannot be read: {reason}") from error
