"""How answers look: tables for people, JSON for machines.

Decides units, dashes and where JSON goes; it knows nothing of what is shown. With `--json -` the JSON is
all of standard output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import filesize
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table

from kvstore.tools.errors import WrongInput

PLAIN_COLUMNS = 110
DASH = "-"
STDOUT = Path("-")


def report(json_path: Path | None, answer: Mapping[str, Any], shown: Sequence[RenderableType]) -> None:
    """Show people `shown` and, where `json_path` is given, machines `answer`.

    Raises WrongInput where the file cannot be written.
    """
    if json_path is not None:
        _write(json_path, json.dumps(answer, indent=1) + "\n")
    if json_path != STDOUT:
        console = make_console()
        with console.capture() as captured:  # rich ends the process itself where a reader hung up
            for part in shown:
                console.print(Padding(part, (0, 0, 0, 1), expand=False))
        sys.stdout.write(captured.get())
        sys.stdout.flush()


def check_writable(json_path: Path | None) -> None:
    """Find out before hours of work that its result has nowhere to go. Raises WrongInput."""
    if json_path is None or json_path == STDOUT:
        return
    folder = json_path.parent
    if json_path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise WrongInput(f"--json {json_path} cannot be written: name a file in a folder that takes files")


def make_console(*, stderr: bool = False) -> Console:
    """As wide as the terminal, or PLAIN_COLUMNS where there is none."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PLAIN_COLUMNS
    return Console(file=stream, highlight=False, width=width)


def make_table(*headers: str, left: Sequence[int] = (0,), gives_way: int = 0) -> Table:
    """Columns of numbers, but for those in `left`; on a narrow terminal column `gives_way` is folded."""
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        border_style="dim",
    )
    for index, header in enumerate(headers):
        table.add_column(
            header,
            justify="left" if index in left else "right",
            no_wrap=index != gives_way,
            overflow="fold",
        )
    return table


def size(nbytes: int) -> str:
    """Decimal units, as disks are sold and `df -H` shows them."""
    return filesize.decimal(nbytes)


def moment(epoch_s: float | None) -> str:
    """Seconds since the epoch as UTC to the second."""
    if epoch_s is None:
        return DASH
    return f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """The unit that fits: `850 ms`, `12.3 s`, `14 min`, `3.2 h`, `5.1 d`."""
    for limit, unit_s, name, digits in (
        (1, 0.001, "ms", 0),
        (120, 1, "s", 1),
        (7200, 60, "min", 0),
        (172800, 3600, "h", 1),
    ):
        if seconds < limit:
            return f"{seconds / unit_s:.{digits}f} {name}"
    return f"{seconds / 86400:.1f} d"


def _write(path: Path, text: str) -> None:
    if path == STDOUT:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        path.write_text(text)
    except OSError as error:
        raise WrongInput(f"--json {path} cannot be written: {error.strerror}") from error
