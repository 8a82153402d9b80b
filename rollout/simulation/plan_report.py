"""The table that job=plan ends with."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kvstore.tools.output import make_console
from rollout.simulation.plan import Split


def print_plan(best: Sequence[Split], num_simulated: int) -> None:
    """Print the best divisions to stdout."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for header in ("nodes", "JCT", "TTFT", "TPOT", "4 s and 50 ms"):
        table.add_column(header, justify="left" if header == "nodes" else "right", no_wrap=True)
    table.add_column("held up by")
    for split in best:
        table.add_row(
            split.name,
            f"{split.jct_s:,.0f} s",
            _seconds(split.ttft_s),
            _seconds(split.tpot_s),
            {True: "within", False: "beyond", None: "-"}[split.within_slo],
            split.bottleneck,
        )
    console = make_console()
    console.print(f"best {len(best)} of {num_simulated} divisions, simulated")
    console.print(table)


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"
