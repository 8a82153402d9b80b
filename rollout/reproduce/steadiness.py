"""When agents that arrive at random are served steadily, and how: the paper's rule (section 7.3).

It watches TTFT in windows of 150 s. A run is over when a window's mean is above 4 s, which no capacity may
reach, or within 5 % of that of the window 30 minutes before. A turn belongs to the window in which it had its
first token. Here figures are those of the last window; what a run does that neither tips over nor settles,
is its horizon's affair.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engines.sim.result import TurnTable
from engines.sim.simulated_cluster import Watch
from rollout.replay import TTFT_SLO_S

WINDOW_S = 150.0
AGO_S = 1800.0
WITHIN = 0.05


def until_decided() -> Watch:
    """Ends a simulation when the rule does."""
    return Watch(WINDOW_S, lambda turns, now_s: is_too_slow(turns, now_s) or is_steady(turns, now_s))


def is_too_slow(turns: TurnTable, end_s: float) -> bool:
    """Whether the mean TTFT of the window that ends then is above the limit."""
    return (_ttft_s(turns, end_s) or 0.0) > TTFT_SLO_S


def is_steady(turns: TurnTable, end_s: float) -> bool:
    """Whether it is what it was half an hour before."""
    now_s, then_s = _ttft_s(turns, end_s), _ttft_s(turns, end_s - AGO_S)
    return now_s is not None and then_s is not None and abs(now_s - then_s) <= WITHIN * then_s


def in_window(turns: TurnTable, end_s: float) -> npt.NDArray[np.bool_]:
    """The turns of the window that ends then."""
    first_s = turns.submit_s + turns.ttft_s
    found: npt.NDArray[np.bool_] = (first_s > end_s - WINDOW_S) & (first_s <= end_s)
    return found


def _ttft_s(turns: TurnTable, end_s: float) -> float | None:
    """Mean of a whole window; None of one that had begun before the first turn, or had none."""
    found = in_window(turns, end_s)
    if end_s < WINDOW_S or not found.any():
        return None
    return float(turns.ttft_s[found].mean(dtype=np.float64))
