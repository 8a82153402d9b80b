"""vLLM reads these when it is imported: one process, loopback, nothing fetched, nothing reported."""

from __future__ import annotations

import os
from importlib.util import find_spec

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
if find_spec("vllm") is not None:
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
