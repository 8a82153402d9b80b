"""Two processes that are ranks of one job: rank 0 works, all of them hear what became of it."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context

import pytest

from rollout.errors import RolloutError, UserError
from rollout.integrations import ranks as ranks_module
from rollout.integrations.ranks import Ranks

TELL_EVERY_S = 0.05


def test_one_process_is_a_rank_of_its_own() -> None:
    alone = Ranks()
    assert alone.gather("mine") == ["mine"]
    assert alone.from_first(lambda: "done") == "done"


def test_two_processes_hear_of_the_work_of_one_however_long_it_takes_and_however_it_ends() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    try:
        answers: list[Future[dict[str, object]]] = [pool.submit(_be_a_rank, rank, port) for rank in range(2)]
        first, second = (answer.result(120) for answer in answers)
    finally:
        for process in (pool._processes or {}).values():
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
    for rank in (first, second):
        assert rank["gathered"] == ["of 0", "of 1"]
        assert rank["worked"] == 0
        assert rank["bad input"] == ("UserError", "set it right")
    assert first["failure"] == ("KeyError", "'gone'")
    assert second["failure"] == ("RolloutError", "rank 0 failed: KeyError: 'gone'")


def _be_a_rank(rank: int, port: int) -> dict[str, object]:
    from torch import distributed

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    ranks = Ranks()
    found: dict[str, object] = {"gathered": ranks.gather(f"of {rank}")}
    ranks_module.TELL_EVERY_S = TELL_EVERY_S

    def work() -> int:
        time.sleep(10 * TELL_EVERY_S)
        return rank

    found["worked"] = ranks.from_first(work)
    found["bad input"] = _raised(ranks, UserError("set it right"))
    found["failure"] = _raised(ranks, KeyError("gone"))
    distributed.destroy_process_group()
    return found


def _raised(ranks: Ranks, error: Exception) -> tuple[str, str]:
    def fail() -> None:
        raise error

    try:
        ranks.from_first(fail)
    except (RolloutError, KeyError) as raised:
        return type(raised).__name__, str(raised)
    pytest.fail("nothing was raised")
