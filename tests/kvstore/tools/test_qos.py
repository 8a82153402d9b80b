"""Two classes on one limited link: what the class table's marks are worth where somebody goes by them."""

from pathlib import Path

import pytest

from kvstore.tools.qos.measure import MODEL_SHARE_GOAL, RECOVERED_GOAL, Wire, measure

WIRE = Wire("rxe0", "rxe1", "ve0", bits_per_s=32e6)
NO_CABLE = not Path("/sys/class/net", WIRE.network_device).exists()


@pytest.mark.rdma
@pytest.mark.slow
@pytest.mark.skipif(
    NO_CABLE, reason="RDMA hardware goes past tc: docs/network.md says how to check its classes"
)
def test_model_keeps_its_share_and_kv_takes_the_rest_and_recovers_without_a_failed_transfer():
    findings = measure(WIRE, phase_s=2.0)
    figures = {figure.name: figure.value for figure in findings.figures}
    assert figures["qos/failed_transfers"] == 0, findings.series
    assert figures["qos/model_share"] >= MODEL_SHARE_GOAL, findings.series
    assert figures["qos/kv_recovered"] >= RECOVERED_GOAL, findings.series
    assert figures["qos/model_share_unmarked"] < MODEL_SHARE_GOAL, findings.series
    assert findings.series["bytes_per_s"]["beside"]["kv"] > 0
