"""Runs agents on a cluster in virtual time."""

from __future__ import annotations

from collections.abc import Sequence

from engines.sim.result import SimResult
from engines.sim.spec import SimSpec
from engines.sim.workload import SimAgent


def simulate(spec: SimSpec, agents: Sequence[SimAgent]) -> SimResult:
    """Raises ValueError, in one line, for an agent that cannot work: a context that no buffer holds."""
    raise NotImplementedError
