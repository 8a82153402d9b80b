"""Pictures of what the benchmark measured: the ladder, the storage NICs over time, where the time went.

Reads the JSON that the benchmark writes, and nothing else. A picture per study that has what it shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rollout.bench.ladder_study import PAPER_CUTS

_LEAST_STEPS = 2
_STEP_COLOURS = {
    "no_layerwise": "#9a9a9a",
    "basic": "#6b7a8f",
    "dual": "#8fb8de",
    "dual_scheduler": "#3f7fbf",
    "split": "#1b9e77",
    "oracle": "#d8d8d8",
}
_SIDE_COLOURS = {
    "prefill": ("#b2182b", "#ef8a62", "#d6604d"),
    "decode": ("#2166ac", "#67a9cf", "#4393c3", "#92c5de"),
}
_PHASE_COLOURS = {
    "queue": "#d9d9d9",
    "buffer_wait": "#bdbdbd",
    "kv_load": "#e6550d",
    "kv_transfer": "#fdae6b",
    "prefill": "#3182bd",
    "decode": "#9ecae1",
    "persist_wait": "#756bb1",
    "tool": "#74c476",
    "other": "#f0f0f0",
}
_PAPER_STEPS = {"basic": "layerwise", "dual": "dual", "dual_scheduler": "scheduler"}
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "figure.dpi": 130,
}

Run = Mapping[str, Any]


def plot_all(answer: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write every picture that `answer` has numbers for; raises OSError if the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for study, series in answer["series"].items():
            runs = {step: done for step, done in series.get("runs", {}).items() if done}
            if len(runs) < _LEAST_STEPS:
                continue
            pictures = {
                "ladder": ladder_figure(study, runs),
                "breakdown": breakdown_figure(study, runs),
                "nics": nics_figure(study, runs),
            }
            for name, figure in pictures.items():
                if figure is not None:
                    path = folder / f"{study}-{name}.png"
                    figure.savefig(path)
                    written.append(path)
    return written


def ladder_figure(study: str, runs: Mapping[str, Sequence[Run]]) -> Figure:
    """JCT of every step, each run a dot; what the paper's cuts would give is marked."""
    figure, axes = _figure(max(5.0, 1.3 * len(runs) + 1.5), 4.0)
    medians = {step: statistics.median(_full_s(run) for run in done) for step, done in runs.items()}
    for place, (step, done) in enumerate(runs.items()):
        axes.bar(place, medians[step], width=0.66, color=_colour(step))
        axes.plot([place] * len(done), [_full_s(run) for run in done], "o", ms=4, mfc="white", mec="#333333")
        invalid = not any(run["valid"] for run in done)
        axes.annotate(
            f"{medians[step]:.1f}{' (invalid)' if invalid else ''}",
            (place, max(_full_s(run) for run in done)),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
            zorder=5,
        )
    _mark_paper(axes, list(runs), medians)
    axes.set_xticks(range(len(runs)), [_words(step) for step in runs])
    axes.set_ylabel("job completion time (s, full size)")
    axes.set_title(f"{_words(study, ' ')}: job completion time", loc="left")
    axes.margins(y=0.12)
    return figure


def breakdown_figure(study: str, runs: Mapping[str, Sequence[Run]]) -> Figure:
    """Where the mean trajectory's time went, of each step's run nearest to its median."""
    figure, axes = _figure(9.0, 1.4 + 0.5 * len(runs))
    middle = {step: _middle(done) for step, done in runs.items()}
    left = dict.fromkeys(runs, 0.0)
    for phase, colour in _PHASE_COLOURS.items():
        widths = [
            run["trajectory_breakdown_mean"].get(phase, 0.0) * run["time_scale"] for run in middle.values()
        ]
        if max(widths) < 0.005 * max(_full_s(run) for run in middle.values()):
            continue
        axes.barh(range(len(runs)), widths, left=list(left.values()), color=colour, label=_words(phase, " "))
        for step, width in zip(left, widths, strict=True):
            left[step] += width
    axes.set_yticks(range(len(runs)), [_words(step, " ") for step in runs])
    axes.invert_yaxis()
    axes.set_xlabel("s of the mean trajectory (full size)")
    axes.set_title(f"{_words(study, ' ')}: where the time went", loc="left")
    figure.legend(loc="outside right center")
    return figure


def nics_figure(study: str, runs: Mapping[str, Sequence[Run]]) -> Figure | None:
    """How busy each storage NIC was, second by second; None where none was limited."""
    shown = {step: run for step, done in runs.items() if (run := _middle(done)) and _has_nics(run)}
    if not shown:
        return None
    figure = Figure(figsize=(9.0, 0.9 + 1.35 * len(shown)), layout="constrained")
    all_axes = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (step, run) in zip(all_axes, shown.items(), strict=True):
        _draw_nics(axes, run)
        axes.set_title(_words(step, " "), loc="left", fontsize=9, pad=2)
        axes.set_ylim(0, 1.15)
        axes.set_yticks((0, 0.5, 1), ("0", "50 %", "100 %"))
        axes.axhline(1, color="#cccccc", lw=0.8, zorder=0)
    handles, labels = max(
        (axes.get_legend_handles_labels() for axes in all_axes), key=lambda found: len(found[1])
    )
    figure.legend(handles, labels, loc="outside right center")
    all_axes[-1].set_xlabel("s since the start (as run)")
    figure.suptitle(
        f"{_words(study, ' ')}: reads through each storage NIC, share of its rate", x=0.01, ha="left"
    )
    return figure


def _draw_nics(axes: Axes, run: Run) -> None:
    rate, snic = run["rates"]["snic_bytes_per_s"], run["snic"]
    ends, at_s = [0.0], 0.0
    for length_s in snic["lengths_s"]:
        at_s += length_s
        ends.append(at_s)
    seen = {"prefill": 0, "decode": 0}
    for place, node in enumerate(_nodes(run)):
        side = "prefill" if node.startswith("prefill") else "decode"
        colours = _SIDE_COLOURS[side]
        shares = [
            window[place] / (rate * length_s)
            for window, length_s in zip(snic["bytes"], snic["lengths_s"], strict=True)
        ]
        axes.stairs(shares, ends, color=colours[seen[side] % len(colours)], lw=1.6, label=node)
        seen[side] += 1


def _mark_paper(axes: Axes, steps: Sequence[str], medians: Mapping[str, float]) -> None:
    """Where the paper's cuts would put the steps, from the foot of this ladder."""
    foot = medians.get("no_layerwise")
    if foot is None:
        return
    places = [(place, _PAPER_STEPS[step]) for place, step in enumerate(steps) if step in _PAPER_STEPS]
    for number, (place, cut) in enumerate(places):
        axes.hlines(
            foot * (1 - PAPER_CUTS[cut]),
            place - 0.4,
            place + 0.4,
            colors="#b2182b",
            linestyles="dashed",
            lw=1.5,
            label="with the paper's cuts" if number == 0 else "_again",
        )
    if places:
        axes.legend(loc="upper right")


def _nodes(run: Run) -> list[str]:
    snic = run["snic"]
    return list(snic.get("nodes") or (f"node {index}" for index in range(len(snic["bytes"][0]))))


def _has_nics(run: Run) -> bool:
    moved = sum(map(sum, run.get("snic", {}).get("bytes", [])))
    return bool(moved and run["rates"]["snic_bytes_per_s"])


def _middle(done: Sequence[Run]) -> Run:
    """The valid run whose JCT is the median's nearest, or any if none is valid."""
    chosen = [run for run in done if run["valid"]] or done
    median = statistics.median(_full_s(run) for run in chosen)
    return min(chosen, key=lambda run: abs(_full_s(run) - median))


def _full_s(run: Run) -> float:
    return float(run["jct_s"] * run["time_scale"])


def _colour(step: str) -> str:
    longest = max((name for name in _STEP_COLOURS if step.startswith(name)), key=len, default="basic")
    return _STEP_COLOURS[longest]


def _words(name: str, space: str = "\n") -> str:
    return name.replace("_", space)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()
