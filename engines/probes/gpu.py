"""GPUs, their driver, and whether the network card may write into their memory."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.config import EnginesConfig
from kvstore.probes.finding import Finding, Verdict
from kvstore.probes.rdma import kernel_devices

_DRIVER = Path("/proc/driver/nvidia/version")
_OTHER_DEVICES = (Path("/dev/kfd"), Path("/dev/dxg"))
"""Of AMD's driver, and of Windows' subsystem for Linux."""
_PEERMEM = Path("/sys/module/nvidia_peermem")


def probe_gpus(config: EnginesConfig) -> Sequence[Finding]:
    """The GPUs that torch sees, against what the engines are told to run on."""
    if config.kind == "paced":
        return [Finding("GPU", Verdict.OK, "engines=paced needs none: a GPU's time is modelled")]
    lacking = Verdict.FAIL if config.device == "cuda" else Verdict.WARN
    driver = _driver()
    if driver is None and not any(path.exists() for path in _OTHER_DEVICES):
        advice = "engines compute on the CPU, which is for trials; a GPU needs its driver"
        return [Finding("GPU", lacking, "none: no driver of a GPU is loaded", advice)]
    # Slow to import, and broken together with a driver: here, and only where there is one.
    import torch

    if not torch.cuda.is_available():
        told = f"driver {driver or 'unknown'} is there, and torch {torch.__version__} sees no GPU"
        advice = "see nvidia-smi; then install a CUDA build of torch that this driver is new enough for"
        return [Finding("GPU", lacking, told, advice)]
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [_gpus(config, found, driver), _peermem()]


def _gpus(config: EnginesConfig, found: Sequence[Any], driver: str | None) -> Finding:
    """`found`: torch's properties of each."""
    each = sorted({f"{one.name}, {one.total_memory / 1e9:.0f} GB" for one in found})
    told = f"{len(found)} x {' / '.join(each)}; driver {driver or 'unknown'}"
    figures = {"gpus": float(len(found))}
    num_engines = config.num_prefill_engines + config.num_decode_engines
    if config.device == "cpu":
        advice = "engines.device=cpu leaves them idle; engines.device=auto uses them"
        return Finding("GPU", Verdict.WARN, told, advice, figures)
    if num_engines > len(found):
        advice = f"{num_engines} engines share what this host has; lower engines.decode_engines_per_node"
        return Finding("GPU", Verdict.WARN, told, advice, figures)
    return Finding("GPU", Verdict.OK, told, figures=figures)


def _peermem() -> Finding:
    """GPUDirect RDMA by address needs the module; without RDMA it is of no use."""
    if _PEERMEM.exists():
        return Finding("GPUDirect RDMA", Verdict.OK, "nvidia-peermem is loaded")
    if not kernel_devices():
        return Finding("GPUDirect RDMA", Verdict.OK, "not asked for: this host has no RDMA device")
    advice = "modprobe nvidia-peermem (it comes with the driver); until then KV is staged in host memory"
    return Finding("GPUDirect RDMA", Verdict.WARN, "nvidia-peermem is not loaded", advice)


def _driver() -> str | None:
    """Version of the kernel's NVIDIA driver."""
    if not _DRIVER.is_file():
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text())
    return found.group() if found else "unknown"
