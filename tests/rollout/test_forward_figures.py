from __future__ import annotations

import pytest

from engines.measured import Forward
from engines.model.step_time import StepTimes
from engines.types import EngineId
from rollout import load_config
from rollout.forward_figures import attention_figures, decode_figures
from rollout.paced_engines import paced_spec

ONE, OTHER = EngineId("prefill-0-0"), EngineId("prefill-1-0")


def prefill(round_number: int, attention_s: float) -> Forward:
    return Forward(0.0, 1.0, attention_s, 400, 30_000, round_number)


def times() -> StepTimes:
    paced = paced_spec(load_config(["job=replay"]))
    assert paced is not None
    return paced.step_times


def test_attention_is_compared_in_rounds_that_have_every_engine() -> None:
    figures = attention_figures(
        {ONE: [prefill(1, 3.0), prefill(2, 2.0), prefill(3, 9.0)], OTHER: [prefill(1, 1.0), prefill(2, 2.0)]}
    )
    assert (figures["rounds"], figures["whole_rounds"]) == (3, 2)
    assert figures["max_over_avg"] == pytest.approx((1.5 + 1.0) / 2)


def test_engines_without_rounds_have_no_balance() -> None:
    assert attention_figures({ONE: [prefill(0, 1.0)]})["max_over_avg"] is None


def test_a_decode_step_counts_once_for_each_of_its_rows() -> None:
    small, large = (Forward(0.0, took_s, 0.0, rows, rows * 1_000) for took_s, rows in ((0.1, 1), (0.3, 3)))
    figures = decode_figures({ONE: [small], OTHER: [large]}, times())
    assert figures["step_tpot_s"] == pytest.approx((0.1 + 3 * 0.3) / 4)
    modelled_s = (times().decode_s(1, 1_000) + 3 * times().decode_s(3, 3_000)) / 4
    assert figures["modelled_tpot_s"] == pytest.approx(modelled_s)
    assert figures["rows_mean"] == 2


def test_no_step_has_no_figures() -> None:
    assert decode_figures({}, times())["modelled_tpot_s"] is None
