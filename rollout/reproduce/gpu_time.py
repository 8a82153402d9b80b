"""The ablation with slower GPUs: how much of the distance to the paper's times theirs would explain.

Ours are sums of single operations measured on an H200. What a forward or a decode step of the paper took is
told nowhere; here all of ours are multiplied by one number, and nothing else is changed.
"""

from __future__ import annotations

from dataclasses import replace

from rollout.reproduce.ablation import CUTS, READ_OFF, case_of
from rollout.reproduce.case import FLOOR, FOOT, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

_AGENTS = 1024
_FACTORS = (2.0, 3.0)
_TIMES = ("attention_s", "rest_s", "decode_s", "decode_collective_s")


def gpu_time(desk: Desk) -> None:
    run = desk.runner
    for factor in _FACTORS:
        foot = slower(case_of(_AGENTS, FOOT), factor)
        setup = f"{foot.setup}, GPU times x{factor:g}"
        foot_s, floor_s = run.jct_s(foot), run.jct_s(foot.served(FLOOR))
        read_off = PaperValue.told(READ_OFF[_AGENTS][0], "read off")
        desk.tell(Comparison("gpu_time", f"jct_no_layerwise_x{factor:g}", setup, foot_s, "s", read_off))
        desk.tell(Comparison("gpu_time", f"jct_oracle_x{factor:g}", setup, floor_s, "s"))
        for name, (step, paper) in CUTS.items():
            cut = 100 * (1 - run.jct_s(foot.served(step)) / foot_s)
            told = PaperValue.told(paper)
            desk.tell(Comparison("gpu_time", f"cut_{name}_x{factor:g}", setup, cut, "% of JCT", told))


def slower(case: Case, factor: float) -> Case:
    """The same where GPUs take `factor` times as long for everything."""
    profile = case.config().model_profile
    assert profile is not None
    times = {name: [factor * part for part in getattr(profile, name)] for name in _TIMES}
    changed = (f"model_profile.{name}={parts}" for name, parts in times.items())
    return replace(case, overrides=(*case.overrides, *changed))
