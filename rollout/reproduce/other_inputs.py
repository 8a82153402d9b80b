"""Rows with other inputs: which of them would explain the distance to the paper's times.

What a forward or a decode step of the paper took is told nowhere; ours are sums of single operations measured
on an H200. Nor is it told whether the indexer's keys are stored beside the KV: table 1 leaves them out, the
working set of section 8.2 has room for them. Each variant changes one of these for all steps alike, or both;
none is used for any other row.
"""

from __future__ import annotations

from dataclasses import replace

from rollout.reproduce.ablation import CUTS, READ_OFF, case_of
from rollout.reproduce.case import DUALPATH, FLOOR, FOOT, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.large_scale import STATED_S, unit_case
from rollout.reproduce.node_ratio import CASES
from rollout.reproduce.paper import Comparison, PaperValue

_AGENTS = 1024
_FACTOR = 2.0
_TIMES = ("attention_s", "rest_s", "decode_s", "decode_collective_s")
_KEYS = ("model_profile.indexer_bytes=132",)
"""Of a token in one layer: 128 in fp8 and a scale."""


def other_inputs(desk: Desk) -> None:
    base = case_of(_AGENTS, FOOT)
    slow = slower(base, _FACTOR)
    variants = {
        "gpu_x2": (slow, "GPU times x2"),
        "keys": (replace(base, overrides=_KEYS), "indexer keys stored"),
        "gpu_x2_keys": (
            replace(slow, overrides=(*slow.overrides, *_KEYS)),
            "GPU times x2, indexer keys stored",
        ),
    }
    for name, (foot, changed) in variants.items():
        _tell_ablation(desk, name, foot, f"{base.setup}, {changed}")
    for case in CASES.values():
        _tell_ratios(desk, slower(case, _FACTOR), f"{case.setup}, GPU times x2")
    unit = unit_case(1)
    unit_s, paper = desk.runner.jct_s(slower(unit, _FACTOR)), PaperValue.within(0.25, STATED_S[1])
    desk.tell(Comparison("other_inputs", "jct_48k_gpu_x2", f"{unit.setup}, GPU times x2", unit_s, "s", paper))


def slower(case: Case, factor: float) -> Case:
    """The same where GPUs take `factor` times as long for everything."""
    profile = case.config().model_profile
    assert profile is not None
    times = {name: [factor * part for part in getattr(profile, name)] for name in _TIMES}
    changed = (f"model_profile.{name}={parts}" for name, parts in times.items())
    return replace(case, overrides=(*case.overrides, *changed))


def _tell_ablation(desk: Desk, name: str, foot: Case, setup: str) -> None:
    foot_s, floor_s = desk.runner.jct_s(foot), desk.runner.jct_s(foot.served(FLOOR))
    read_off = PaperValue.told(READ_OFF[_AGENTS][0], "read off")
    desk.tell(Comparison("other_inputs", f"jct_no_layerwise_{name}", setup, foot_s, "s", read_off))
    desk.tell(Comparison("other_inputs", f"jct_oracle_{name}", setup, floor_s, "s"))
    for part, (step, paper) in CUTS.items():
        cut, told = 100 * (1 - desk.runner.jct_s(foot.served(step)) / foot_s), PaperValue.told(paper)
        desk.tell(Comparison("other_inputs", f"cut_{part}_{name}", setup, cut, "% of JCT", told))


def _tell_ratios(desk: Desk, case: Case, setup: str) -> None:
    foot_s, ours_s, floor_s = (desk.runner.jct_s(case.served(step)) for step in (FOOT, DUALPATH, FLOOR))
    nodes = case.cluster.lower()
    desk.tell(Comparison("other_inputs", f"speedup_{nodes}_gpu_x2", setup, foot_s / ours_s, "x"))
    desk.tell(Comparison("other_inputs", f"over_oracle_{nodes}_gpu_x2", setup, ours_s / floor_s, "ratio"))
