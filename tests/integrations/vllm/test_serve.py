"""`vllm serve` as docs/vllm.md has it: two servers, one store."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import httpx

from tests.integrations.vllm.models import save_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
START_S, ANSWER_S, END_S = 600.0, 120.0, 60.0
BLOCK_TOKENS = 128
"""vLLM's block on a CPU."""


def documented(model: Path, store: Path) -> list[str]:
    """The command as it stands there, with the program of this environment."""
    (shown,) = re.findall(r"^vllm serve .*?'$", (ROOT / "docs/vllm.md").read_text(), re.MULTILINE | re.DOTALL)
    program, *said = shlex.split(shown.replace("MODEL", str(model)).replace("/ssd/kv", str(store)))
    return [str(Path(sys.executable).with_name(program)), *said]


@dataclass(frozen=True, slots=True)
class Server:
    client: httpx.Client

    def complete(self, prompt: list[int]) -> dict[str, Any]:
        """Greedy; the choice."""
        asked = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 0, "ignore_eos": True}
        answer = self.client.post("/v1/completions", json=asked | {"model": "small"}).raise_for_status()
        (choice,) = answer.json()["choices"]
        return dict(choice)

    @property
    def loaded_tokens(self) -> int:
        """Tokens whose KV the connector has brought."""
        metrics = self.client.get("/metrics").raise_for_status().text
        (found,) = re.findall(r"^vllm:external_prefix_cache_hits_total\{.*\} (\S+)$", metrics, re.MULTILINE)
        return int(float(found))


@contextmanager
def serving(model: Path, store: Path, log: Path) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    said = ["--served-model-name", "small", "--host", "127.0.0.1", "--port", str(port)]
    said += ["--dtype", "float32", "--enforce-eager"]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (
        log.open("w") as told,
        subprocess.Popen(
            [*documented(model, store), *said], stdout=told, stderr=told, env=environment
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=ANSWER_S) as client,
    ):
        try:
            wait_until_healthy(process, client, log)
            yield Server(client)
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def wait_until_healthy(process: subprocess.Popen[bytes], client: httpx.Client, log: Path) -> None:
    end_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end_s:
        try:
            if client.get("/health").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def test_a_server_loads_what_another_one_has_computed(tmp_path):
    model, store = save_model("gqa", tmp_path / "gqa"), tmp_path / "kv"
    prompt = [i * 7 % 250 for i in range(300)]
    with ExitStack() as stack:
        first = stack.enter_context(serving(model, store, tmp_path / "first.log"))
        computed = first.complete(prompt)
        assert first.loaded_tokens == 0
        second = stack.enter_context(serving(model, store, tmp_path / "second.log"))
        loaded = second.complete(prompt)
        assert second.loaded_tokens == 299 // BLOCK_TOKENS * BLOCK_TOKENS
    assert loaded["text"] == computed["text"]
    assert loaded["logprobs"]["token_logprobs"] == pytest.approx(
        computed["logprobs"]["token_logprobs"], abs=1e-4
    )
