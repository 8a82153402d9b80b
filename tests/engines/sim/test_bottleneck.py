"""What a simulation is said to have been short of."""

from __future__ import annotations

import pytest

from engines.sim.bottleneck import bottleneck, phase_seconds, resource_uses
from engines.sim.simulate import simulate
from tests.engines.sim.some_clusters import agents, rounds, spec

AGENTS = agents(4, rounds((20, 10), (20, 10)), history_tokens=1_000)


def test_a_slow_storage_nic_is_named():
    slow = spec()
    result = simulate(slow, AGENTS)
    uses = {use.resource: use.share for use in resource_uses(slow, result)}
    assert max(uses, key=lambda name: uses[name]) == "prefill SNIC"
    assert uses["prefill SNIC"] == pytest.approx(result.link("prefill SNIC").busy_s / result.jct_s)
    assert bottleneck(slow, result).startswith("prefill SNIC")


def test_where_nothing_is_busy_the_phase_that_turns_spend_their_time_in_is_named():
    idle = spec(oracle=True)
    result = simulate(idle, AGENTS[:1])
    seconds = phase_seconds(result)
    assert bottleneck(idle, result).startswith(max(seconds, key=lambda phase: seconds[phase]))


def test_what_did_not_finish_was_short_of_nothing_that_is_known():
    cut = spec(horizon_s=1e-3)
    assert bottleneck(cut, simulate(cut, AGENTS)) == "nothing finished"


def test_a_cluster_without_traffic_names_prefill_gpus_alone():
    idle = spec(oracle=True)
    assert [use.resource for use in resource_uses(idle, simulate(idle, AGENTS[:1]))] == ["prefill GPUs"]
