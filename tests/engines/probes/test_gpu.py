"""What is said of GPUs, and of a machine without."""

import pytest

from engines.probes.gpu import probe_gpus
from kvstore.probes.finding import Verdict
from rollout.compose import load_config


def has_gpu():
    import torch

    return torch.cuda.is_available()


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize(("device", "verdict"), [("auto", Verdict.WARN), ("cuda", Verdict.FAIL)])
def test_no_gpu_fails_only_where_it_was_asked_for(device, verdict):
    (finding,) = probe_gpus(load_config([f"engines.device={device}"]).engines)
    assert (finding.subject, finding.verdict) == ("GPU", verdict)
    assert finding.advice


def test_paced_engines_need_none():
    (finding,) = probe_gpus(load_config(["job=replay"]).engines)
    assert finding.verdict is Verdict.OK


@pytest.mark.gpu
def test_gpus_are_told_with_their_driver():
    if not has_gpu():
        pytest.skip("needs a CUDA device")
    gpus, peermem = probe_gpus(load_config().engines)
    assert gpus.figures["gpus"] >= 1
    assert "driver" in gpus.told
    assert peermem.subject == "GPUDirect RDMA"
