"""Runs rows and writes JSON and pictures after each, so that nothing is lost whatever happens next."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvstore.tools.bench.figures import Findings
from kvstore.tools.errors import WrongInput
from kvstore.tools.output import check_writable, make_console
from rollout import __version__
from rollout.errors import UserError
from rollout.reproduce.desk import Desk
from rollout.reproduce.plots import plot_all
from rollout.reproduce.report import comparison_table
from rollout.reproduce.rows import Row
from rollout.reproduce.runner import Runner

SIMULATED = (
    "nothing was run: times are virtual, GPU times are fitted to single operations (H200) or scaled from "
    "them, sets are made to the means of the paper's; nothing is tuned per row"
)


def main(
    program: str, rows: Mapping[str, Row], long_rows: Sequence[str], arguments: Sequence[str] | None = None
) -> int:
    """0 when it simulated, 1 when no row gave a figure, 2 for bad input, 130 when interrupted.

    `long_rows` run only where they are asked for by name.
    """
    options = _parser(program, rows, long_rows).parse_args(arguments)
    errors = make_console(stderr=True)
    try:
        chosen = _chosen(rows, long_rows, options.only)
        check_writable(options.json)
    except (UserError, WrongInput) as error:
        errors.print(f"{program}: error: {error}", soft_wrap=True)
        return 2
    runner = Runner(lambda text: errors.print(text, soft_wrap=True), quick=options.quick)
    desk = Desk(runner, tuple(options.trace or ()))
    conditions, began_s, code = _conditions(quick=options.quick), time.monotonic(), 0
    try:
        for name in chosen:
            _one(desk, name, rows[name])
            conditions["seconds"] = round(time.monotonic() - began_s)
            conditions["cpu_seconds"] = round(time.process_time())
            _write(options.json, desk.findings(), conditions, quick=options.quick)
    except KeyboardInterrupt:
        desk.left_out["the rest"] = "interrupted"
        _write(options.json, desk.findings(), conditions, quick=options.quick)
        code = 130
    console = make_console()
    console.print(comparison_table(desk.comparisons, quick=options.quick))
    for name, reason in desk.left_out.items():
        console.print(f"not had: {name}: {reason}", soft_wrap=True)
    if options.quick:
        console.print("quick: fewer agents, 3 rounds of each; set-ups name the full size")
    console.print(SIMULATED, soft_wrap=True)
    return code or int(not desk.comparisons)


def _one(desk: Desk, name: str, row: Row) -> None:
    """A row that cannot go on leaves a reason; the others go on."""
    try:
        row(desk)
    except Exception as error:  # noqa: BLE001  (one row's trouble must not cost the others' figures)
        make_console(stderr=True).print(traceback.format_exc())
        desk.left_out[name] = f"{type(error).__name__}: {error}"


def _chosen(rows: Mapping[str, Row], long_rows: Sequence[str], only: Sequence[str] | None) -> list[str]:
    unknown = [name for name in only or () if name not in rows]
    if unknown:
        raise UserError(f"--only {unknown[0]} is no row; known: {', '.join(rows)}")
    return list(only or (name for name in rows if name not in long_rows))


def _parser(program: str, rows: Mapping[str, Row], long_rows: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"scripts/{program}")
    parser.add_argument(
        "--json", type=Path, help="write the figures here after every row, and pictures in a folder beside it"
    )
    parser.add_argument("--quick", action="store_true", help="the same, small; nothing is judged")
    last = f"; only so: {', '.join(long_rows)}" if long_rows else ""
    parser.add_argument(
        "--only", action="append", metavar="ROW", help=f"one of {', '.join(rows)}; may be repeated{last}"
    )
    parser.add_argument(
        "--trace",
        action="append",
        metavar="PATH",
        help="recorded agents, for rows that replay some; may be repeated",
    )
    return parser


def _conditions(*, quick: bool) -> dict[str, Any]:
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "version": __version__,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "simulated": SIMULATED,
    }


def _write(path: Path | None, findings: Findings, conditions: dict[str, Any], *, quick: bool) -> None:
    if path is None:
        return
    answer = findings.answer(conditions, quick=quick)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(answer, indent=1))
    new.replace(path)
    plot_all(answer, path.with_suffix(""))
