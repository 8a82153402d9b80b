"""The table of comparisons, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rollout.reproduce.paper import Comparison

_MET = {True: "yes", False: "no", None: ""}


def comparison_table(comparisons: Sequence[Comparison], *, quick: bool) -> Table:
    """Ours beside the paper's; nothing is judged in a quick run."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("figure", no_wrap=True)
    table.add_column("set-up", overflow="fold")
    for header in ("ours", "paper", "goal", "met"):
        table.add_column(header, justify="right", no_wrap=True)
    row = ""
    for each in comparisons:
        if each.row != row:
            row = each.row
            table.add_row(f"[bold]{row}[/bold]")
        table.add_row(
            f"  {each.name}",
            each.setup,
            f"{number(each.ours)} {each.unit}",
            _paper(each),
            _goal(each),
            "" if quick else _MET[each.met],
        )
    return table


def _paper(comparison: Comparison) -> str:
    paper = comparison.paper
    return "" if paper is None else f"{number(paper.value)} ({paper.source})"


def _goal(comparison: Comparison) -> str:
    if comparison.at_most is not None:
        return f"<= {number(comparison.at_most)}"
    if comparison.paper is None or comparison.paper.tolerance is None:
        return ""
    return f"+- {number(comparison.paper.tolerance)}"


def number(value: float) -> str:
    """Three digits, or whole thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
