"""Pictures of a run: ours beside the paper's for each row, and lines where a row varied something.

Reads the JSON that the script writes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from rollout.reproduce.report import number

_TOLD, _NEAR, _FAR = "#3f7fbf", "#1b9e77", "#b2182b"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "figure.dpi": 130,
}


def plot_all(answer: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write a picture for each row that has something to show."""
    folder.mkdir(parents=True, exist_ok=True)
    series = answer["series"]
    figures: dict[str, Callable[[], Figure]] = {}
    for row in dict.fromkeys(each["row"] for each in series["comparisons"]):
        compared = [each for each in series["comparisons"] if each["row"] == row and each["paper"]]
        if compared:
            figures[row] = partial(_compared, row, compared)
    for name, lines in series.items():
        if isinstance(lines, Mapping) and "lines" in lines:
            figures[f"{name}-lines"] = partial(_lines, name, lines)
    written = []
    with mpl.rc_context(_STYLE):
        for name, draw in figures.items():
            path = folder / f"{name}.png"
            draw().savefig(path)
            written.append(path)
    return written


def _compared(row: str, compared: Sequence[Mapping[str, Any]]) -> Figure:
    """Ours over the paper's, so that figures of all units share an axis; what is near enough is shaded."""
    figure = Figure(figsize=(8.0, 1.2 + 0.32 * len(compared)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(1, color="#444444", lw=0.8)
    for place, each in enumerate(compared):
        ratio = each["ours"] / each["paper"]
        if each["tolerance"] is not None:
            share = each["tolerance"] / abs(each["paper"])
            axes.barh(place, 2 * share, left=1 - share, height=0.8, color="#e6e6e6", zorder=0)
        colour = {True: _NEAR, False: _FAR, None: _TOLD}[each["met"]]
        axes.plot([ratio], [place], "o", color=colour, ms=6)
        axes.annotate(
            f"{number(each['ours'])} / {number(each['paper'])}", (ratio, place), xytext=(7, -3),
            textcoords="offset points", fontsize=7,
        )  # fmt: skip
    axes.set_yticks(range(len(compared)), [f"{each['name']} ({each['paper_source']})" for each in compared])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("ours over the paper's; shaded: near enough")
    axes.set_title(row.replace("_", " "), loc="left")
    return figure


def _lines(name: str, lines: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6.5, 4.0), layout="constrained")
    axes = figure.subplots()
    for label, points in lines["lines"].items():
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", ms=4, lw=1.4, label=label)
    if lines.get("log_x"):
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(lines["x"])
    axes.set_ylabel(lines["y"])
    axes.set_title(name.replace("_", " "), loc="left")
    axes.legend()
    return figure
