"""How even storage NICs are with one GPU behind each and with eight: the study of scripts/bench_paths.

There nodes have one GPU, as no machine of ours has more, and so an eighth of the requests a second that the
paper's nodes have. Here the same agents, as many for each prefill GPU, are simulated on nodes of either kind.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from rollout.bench.snic_balance import AGENTS, GPUS_OF_PAPER_NODE, LOAD, SNIC_BYTES_PER_S, UNEVEN
from rollout.explore.steps import DUAL, OURS
from rollout.reproduce.case import DUAL_PATH, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison

_ROUNDS = 4 * AGENTS.rounds
"""More windows than the paced study has."""
_GOAL = 1.10
_CLUSTER = (
    f"cluster.snic_bytes_per_s={SNIC_BYTES_PER_S:g}",
    "engines.decode_kv_bytes=20000000000",
    "engines.prefill_hbm_bytes=20000000000",
)
_NO_WEIGHTS = ("model_profile.weights_bytes=[0.0,0.0]",)
"""One GPU holds no 660B model; a paced one need not either."""


def nic_balance(desk: Desk) -> None:
    """Busiest over mean by second; judged where taking nodes in turn leaves the NICs uneven."""
    for gpus in (1, GPUS_OF_PAPER_NODE):
        with tempfile.TemporaryDirectory() as folder:
            ratios = _ratios(desk, Path(folder), gpus)
        uneven = (ratios.get(DUAL_PATH.name) or 0.0) >= UNEVEN
        for name, ratio in ratios.items():
            figure = f"snic_max_over_mean_{name}_{gpus}_gpus"
            if ratio is None:
                desk.left_out[f"nic_balance_{figure}"] = "no second had such a load"
                continue
            desk.tell(
                Comparison(
                    "nic_balance",
                    figure,
                    f"1P2D, GPUs a node: {gpus}; seconds at {LOAD[0]:.0%} to {LOAD[1]:.0%} load",
                    ratio,
                    "max/avg by second",
                    at_most=_GOAL if uneven and name != DUAL_PATH.name else None,
                )
            )


def _ratios(desk: Desk, folder: Path, gpus: int) -> dict[str, float | None]:
    agents = replace(AGENTS, agents=gpus * AGENTS.agents, rounds=_ROUNDS)
    path = folder / f"{agents.name}.csv"
    agents.write(path)
    base = Case(
        "dsv32_660b",
        str(path),
        1,
        2,
        agents.agents,
        DUAL,
        window=agents.rounds,
        overrides=(
            *_CLUSTER,
            f"simulation.gpus_per_node={gpus}",
            *(_NO_WEIGHTS if gpus < GPUS_OF_PAPER_NODE else ()),
        ),
    )
    steps = (DUAL_PATH, DUAL, OURS)
    return {step.name: desk.runner.run(base.served(step)).snic_busy_max_over_avg for step in steps}
