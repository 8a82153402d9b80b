"""The table a run ends with: what summary.json says, for people.

It decides only how figures look. A figure that was not measured is a dash.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from rich import filesize
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rollout.run_dir import RunDir
from rollout.summary import Distribution, JobSummary, ReplayFigures, SimulationFigures, Slowest, StepFigures

PLAIN_COLUMNS = 100
MOST_STEPS = 4
"""Rows of the steps' table; where there are more steps, the middle ones are left out."""
BAR_CELLS = 14
MOST_RESOURCES = 4
TIMES = ("attention_s", "rest_s", "decode_s", "decode_collective_s")
DASH = "-"
PHASE_WORDS = {
    "queue": "waiting for engines",
    "buffer_wait": "waiting for staging memory",
    "kv_load": "waiting for KV from storage",
    "prefill": "computing prompts",
    "kv_transfer": "waiting for KV between engines",
    "persist_wait": "waiting for KV being written",
    "decode": "generating",
    "tool": "running tools",
    "other": "anything else",
}
FILE_WORDS = {
    "summary.json": "these figures",
    "metrics.jsonl": "every series, by step",
    "trajectories.parquet": "tokens, logprobs, rewards, timings",
    "config.yaml": "the whole configuration",
    "journal": "every finished turn, for `resume`",
    "stalls.txt": "who waited where when nothing moved",
    "trace.json": "what engines and NICs did when, for ui.perfetto.dev",
    "wandb": "W&B run, for `wandb sync`",
    "checkpoints": "weights and optimiser, to resume from",
}


def print_report(summary: JobSummary, run_dir: RunDir, stream: TextIO | None = None) -> None:
    """Print it to stdout or `stream`, as wide as the terminal or PLAIN_COLUMNS where there is none."""
    stream = stream or sys.stdout
    if stream.isatty():
        console = Console(file=stream, highlight=False)
    else:
        console = Console(file=stream, highlight=False, width=PLAIN_COLUMNS, force_terminal=False)
    bar = "#" if console.options.ascii_only else "\N{FULL BLOCK}"
    parts: list[RenderableType] = [
        _headline(summary),
        _breakdown(summary, bar),
        *_abreast(console.width, _latencies(summary), _tokens(summary), _kv(summary)),
        *([] if summary["replay"] is None else [_replay(summary["replay"])]),
        *([] if summary["simulation"] is None else [_simulation(summary["simulation"])]),
        _steps(summary["steps"]),
        _files(run_dir),
    ]
    for part in parts:
        console.print()
        console.print(Padding(part, (0, 0, 0, 1), expand=False))


def _headline(summary: JobSummary) -> RenderableType:
    jct = Text.assemble((f"JCT {_seconds(summary['jct_s'])}", "bold green"))
    beside = [f"{name} {_seconds(took_s)}" for name, took_s in summary["timing_s"].items()]
    if beside:
        jct.append(f"   not in it: {', '.join(beside)}")
    outcomes = [f"{count} {name}" for name, count in summary["outcomes"].items() if count]
    told = [
        f"{summary['job']} job, seed {summary['seed']}",
        f"reward {_number(summary['reward_mean'])}",
        f"{summary['num_turns']:,} turns",
        f"{summary['num_trajectories']:,} trajectories ({', '.join(outcomes) or 'none'})",
    ]
    lines = [jct, Text(", ".join(told))]
    resumed = summary["resumed"]
    if resumed is not None:
        lines.append(
            Text(
                f"resumed in step {resumed['step']} at {_seconds(resumed['elapsed_s'])}: "
                f"{resumed['ended']} trajectories had ended, {resumed['continued']} went on after "
                f"{resumed['continued_turns']} turns, {resumed['begun_anew']} began anew"
            )
        )
    return Group(*lines)


def _breakdown(summary: JobSummary, bar: str) -> Table:
    """Phases of the trajectories that finished last, and of the mean trajectory."""
    of_jct, of_mean = summary["jct_breakdown"], summary["trajectory_breakdown_mean"]
    jct_s, mean_s = sum(of_jct.values()), sum(of_mean.values())
    table = _table("where the JCT went", "s", "%", "", "mean trajectory s", "%", left=(0, 3), gives_way=0)
    for phase, seconds in of_jct.items():
        table.add_row(
            _one_line(f"{phase:13}", (PHASE_WORDS[phase], "dim")),
            f"{seconds:.2f}",
            _percent(seconds, jct_s),
            Text(bar * round(BAR_CELLS * _share(seconds, jct_s)), "cyan"),
            f"{of_mean[phase]:.2f}",
            _percent(of_mean[phase], mean_s),
        )
    table.add_row("sum", f"{jct_s:.2f}", "", "", f"{mean_s:.2f}", "", style="bold")
    return table


def _latencies(summary: JobSummary) -> Table:
    table = _table("latency", "mean", "p50", "p99", left=(0,))
    rows: list[tuple[str, Distribution]] = [
        ("TTFT", summary["ttft_s"]),
        ("TTST", summary["ttst_s"]),
        ("TPOT", summary["tpot_s"]),
    ]
    for name, values in rows:
        table.add_row(name, *(_seconds(v) for v in (values["mean"], values["p50"], values["p99"])))
    return table


def _tokens(summary: JobSummary) -> Table:
    tokens = summary["tokens"]
    table = _table("tokens", "", left=(0,))
    table.add_row("prompt", f"{tokens['prompt']:,}")
    table.add_row("  hit", f"{tokens['hit']:,}")
    table.add_row("  miss", f"{tokens['miss']:,}")
    table.add_row("output", f"{tokens['output']:,}")
    hit_rate = summary["hit_rate"]
    table.add_row("hit rate", DASH if hit_rate is None else f"{hit_rate:.1%}", style="bold")
    return table


def _kv(summary: JobSummary) -> Table:
    kv = summary["kv"]
    table = _table("KV", "", left=(0,))
    table.add_row("read on the prefill side", filesize.decimal(kv["read_bytes"]["prefill_side"]))
    table.add_row("read on the decode side", filesize.decimal(kv["read_bytes"]["decode_side"]))
    table.add_row("read from DRAM", filesize.decimal(kv["read_bytes"]["dram"]))
    table.add_row("written", filesize.decimal(kv["written_bytes"]))
    table.add_row("busiest SNIC over mean", _number(kv["snic_max_over_avg"]))
    return table


def _replay(replay: ReplayFigures) -> Table:
    """What was replayed, and how much of the machine it took."""
    table = _table("replay", "", left=(0,))
    table.add_row("agents, of sessions", f"{replay['agents']:,} of {replay['sessions']:,}")
    if replay["setting"] is not None:
        table.add_row("setting, model", f"{replay['setting']}, {replay['model_profile']}")
        table.add_row(
            "scale, time scale", f"{replay['effective_scale']:.4g}, {_number(replay['time_scale'])}"
        )
    rate = replay["rates"]["snic_bytes_per_s"]
    table.add_row("a storage NIC", "not limited" if rate is None else f"{filesize.decimal(int(rate))}/s")
    if "snic" in replay:
        table.add_row("busiest SNIC over mean, by second", _number(replay["snic"]["max_over_avg"]))
    if "verified_bytes" in replay:
        table.add_row("KV verified", filesize.decimal(replay["verified_bytes"]))
    oracle_s = replay["oracle_s_estimated"]
    if oracle_s is not None:
        table.add_row("JCT cannot be below about", _seconds(oracle_s))
    if "slo" in replay and replay["slo"]["met"] is not None:
        limits = (
            f"TTFT {_seconds(replay['slo']['ttft_limit_s'])}, TPOT {_seconds(replay['slo']['tpot_limit_s'])}"
        )
        table.add_row(f"within {limits}", "yes" if replay["slo"]["met"] else "no")
    if "cpu_use" in replay:
        table.add_row("CPU used, of all cores", f"{replay['cpu_use']:.0%}")
    return table


def _simulation(simulation: SimulationFigures) -> Table:
    """What was simulated, what it was short of, and how sure its numbers are."""
    table, cluster = _table("simulated, nothing was run", "", left=(0,)), simulation["cluster"]
    nodes = f"{cluster['prefill_nodes']}P{cluster['decode_nodes']}D"
    table.add_row("nodes, GPUs of each", f"{nodes}, {cluster['gpus_per_node']}")
    table.add_row("held up by", simulation["bottleneck"])
    for resource, share in [*simulation["resources"].items()][:MOST_RESOURCES]:
        table.add_row(f"  {resource}", f"{share:.0%} busy")
    table.add_row("busiest SNIC over mean, by second", _number(simulation["snic_max_over_avg_by_second"]))
    table.add_row("longest attention over mean", _number(simulation["attention_max_over_avg"]))
    for origin in ("measured", "derived", "assumed"):
        names = [name for name, of in simulation["origins"].items() if of == origin and name in TIMES]
        if names:
            table.add_row(f"{origin} times of {simulation['model_profile']}", ", ".join(names))
    table.add_row("simulating took", _seconds(simulation["wall_s"]))
    return table


def _steps(steps: Sequence[StepFigures]) -> Table:
    table = _table(
        "step",
        "weights",
        "JCT",
        "reward",
        "hit rate",
        "done",
        "turns",
        "TTFT p50",
        "slowest trajectory",
        gives_way=8,
    )
    first, last = steps, steps[:0]
    if len(steps) > MOST_STEPS:
        first, last = steps[: MOST_STEPS // 2], steps[-(MOST_STEPS // 2) :]
    for step in first:
        table.add_row(*_step_cells(step))
    if last:
        table.add_row("...", *[""] * 7, _one_line(f"{len(steps) - MOST_STEPS} steps not shown"))
    for step in last:
        table.add_row(*_step_cells(step))
    return table


def _step_cells(step: StepFigures) -> list[str | Text]:
    slowest, hit_rate = step["slowest"], step["hit_rate"]
    return [
        str(step["step"]),
        f"v{step['weights_version']}",
        _seconds(step["jct_s"]),
        _number(step["reward_mean"]),
        DASH if hit_rate is None else f"{hit_rate:.1%}",
        f"{step['outcomes']['completed']}/{step['num_trajectories']}",
        str(step["num_turns"]),
        _seconds(step["ttft_s"]["p50"]),
        DASH if slowest is None else _one_line(_turns_and_seconds(slowest)),
    ]


def _files(run_dir: RunDir) -> RenderableType:
    lines = [Text.assemble("files in ", (_shown(run_dir.path), "bold"))]
    for name, words in FILE_WORDS.items():
        if (run_dir.path / name).exists():
            lines.append(Text.assemble(f"  {name:22}", (words, "dim")))
    return Group(*lines)


def _shown(path: Path) -> str:
    """As a person in this folder would type it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _abreast(width: int, *tables: Table) -> list[RenderableType]:
    """Beside each other, or one below the other where they do not fit."""
    if width < PLAIN_COLUMNS:
        return list(tables)
    grid = Table.grid(padding=(0, 4, 0, 0))
    grid.add_row(*tables)
    return [grid]


def _table(*headers: str, left: Sequence[int] = (), gives_way: int = 0) -> Table:
    """Columns of numbers, but for those in `left`; on a narrow terminal column `gives_way` is cut."""
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
        border_style="dim",
    )
    for index, header in enumerate(headers):
        justify: JustifyMethod = "left" if index in left else "right"
        table.add_column(header, justify=justify, no_wrap=index != gives_way)
    return table


def _turns_and_seconds(slowest: Slowest) -> str:
    return f"{slowest['turns']} turns, {_seconds(slowest['duration_s'])}"


def _one_line(*parts: str | tuple[str, str]) -> Text:
    """Text that is cut rather than wrapped."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _percent(part: float, whole: float) -> str:
    return f"{100 * _share(part, whole):.1f}"


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    """Three digits and the unit that fits: `12.3 ms`, `1.23 s`, `1,234 s`."""
    if value is None:
        return DASH
    if value == 0:
        return "0 s"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"
