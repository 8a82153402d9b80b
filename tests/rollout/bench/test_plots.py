from __future__ import annotations

from pathlib import Path
from typing import Any

from rollout.bench.plots import plot_all
from tests.rollout.bench.runs import replayed


def answer() -> dict[str, Any]:
    steps = {"no_layerwise": 40.0, "basic": 30.0, "dual": 20.0, "dual_scheduler": 15.0, "split": 12.0}
    runs = {step: [replayed(step, jct_s).told()] for step, jct_s in steps.items()}
    return {"series": {"ladder_equal": {"runs": runs, "failed": []}}}


def test_a_study_gets_its_three_pictures(tmp_path: Path) -> None:
    written = plot_all(answer(), tmp_path / "plots")
    assert [path.name for path in written] == [
        "ladder_equal-ladder.png",
        "ladder_equal-breakdown.png",
        "ladder_equal-nics.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    measured = answer()
    for runs in measured["series"]["ladder_equal"]["runs"].values():
        runs[0]["rates"]["snic_bytes_per_s"] = None
    measured["series"]["steady"] = {"runs": {"basic": []}, "failed": ["basic: it stopped"]}
    assert [path.name for path in plot_all(measured, tmp_path)] == [
        "ladder_equal-ladder.png",
        "ladder_equal-breakdown.png",
    ]
