from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvstore.tools.bench.figures import Findings
from rollout import load_config
from rollout.bench.bench import Bench
from rollout.bench.rounds import MOST_SLOWINGS
from rollout.bench.snic_balance import mean_max_over_avg
from rollout.bench.steady import steady
from rollout.bench.studies import STUDIES
from rollout.preflight import check
from rollout.replay import plan_replay
from tests.rollout.bench.runs import RATE, Script, summary


def bench_of(tmp_path: Path, answers: list[dict[str, Any] | str]) -> Bench:
    return Bench(
        runner=Script(answers),
        findings=Findings(),
        folder=tmp_path,
        say=lambda text: None,
        quick=True,
        num_rounds=1,
        reported_rounds=1,
        trace=None,
    )


def values(bench: Bench) -> dict[str, float]:
    return {figure.name: figure.value for figure in bench.findings.figures}


def test_the_steady_study_tells_ratios_and_the_distance_from_the_bound(tmp_path: Path) -> None:
    # 300 bytes through three NICs of 100 bytes/s take 1 s; the oracle takes 0.25 s.
    bench = bench_of(tmp_path, [summary(3.0), summary(1.5), summary(1.1), summary(0.25)])
    steady(bench)
    assert values(bench) == pytest.approx(
        {
            "steady_basic_over_split": 2.7273,
            "steady_basic_over_dual_scheduler": 2.0,
            "steady_1p2d_terms_apart": 4.0,
            "steady_1p2d_split_over_bound": 1.1,
        }
    )


def test_the_bound_is_not_judged_where_its_terms_are_near_one_another(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, [summary(3.0), summary(1.5), summary(1.1), summary(0.5)])
    steady(bench)
    targets = {figure.name: figure.target for figure in bench.findings.figures}
    assert targets["steady_1p2d_split_over_bound"] is None
    assert "2.00 times" in bench.findings.left_out["steady_1p2d_split_over_bound: its verdict"]


def test_a_figure_without_a_run_is_left_out_with_a_reason(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, [summary(3.0), "no answer", summary(1.1), summary(0.25)])
    steady(bench)
    assert "steady_basic_over_dual_scheduler" not in values(bench)
    assert bench.findings.left_out["steady_basic_over_dual_scheduler"] == "no run of dual_scheduler"
    assert bench.findings.series["steady_1p2d"]["failed"] == ["dual_scheduler: no answer"]


def test_a_figure_whose_step_has_no_valid_run_has_no_goal(tmp_path: Path) -> None:
    busy = summary(1.1, cpu_use=0.95)
    too_fast = [summary(3.0), summary(1.5), busy]
    bench = bench_of(tmp_path, [*too_fast * (MOST_SLOWINGS + 1), busy, summary(0.25)])
    steady(bench)
    targets = {figure.name: figure.target for figure in bench.findings.figures}
    assert targets["steady_basic_over_split"] is None
    assert targets["steady_basic_over_dual_scheduler"] == 2.0


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_lives_through_runs_that_all_fail(name: str, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, ["it stopped"] * 20)
    STUDIES[name](bench)
    assert bench.findings.left_out
    assert not bench.findings.figures


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", [name for name in STUDIES if name != "real_model"])
def test_every_run_of_every_study_can_start(
    name: str, quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How much memory is free just now is not the study's fault.
    monkeypatch.setattr("rollout.preflight.available_bytes", lambda: 1 << 40)
    bench = bench_of(tmp_path, ["it stopped"] * 20)
    bench.quick = quick
    STUDIES[name](bench)
    assert isinstance(bench.runner, Script)
    assert bench.runner.lines
    for line in bench.runner.lines:
        config = load_config(["job=replay", f"run_dir={tmp_path / 'run'}", *line])
        check(config)
        assert plan_replay(config).tasks


def test_only_windows_of_the_right_load_are_judged() -> None:
    idle, uneven, even, full = [10, 10, 10], [90, 60, 60], [60, 60, 60], [100, 100, 90]
    lengths_s = [1.0] * 4
    assert mean_max_over_avg([idle, uneven, even, full], lengths_s, RATE) == pytest.approx((9 / 7 + 1) / 2)
    assert mean_max_over_avg([idle, full], [1.0, 1.0], RATE) is None
    assert mean_max_over_avg([uneven], [1.0], None) is None
