"""Made trajectories, tiny models, and trainer ranks in processes of their own, for the trainer's tests."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from engines.types import PhaseSeconds
from rollout.trainer import TrainerRank
from rollout.trainer_config import TrainerConfig
from rollout.types import Segment, StopReason, Trajectory

CALL_DEADLINE_S = 120.0
VOCAB_SIZE = 1600
"""Times the hidden size it is above ZeRO-3's 100,000 elements, so the embedding really is cut up."""


def make_trajectory(
    reward: float,
    *segments: Segment,
    group_id: str = "g0",
    sample_index: int = 0,
    stop_reason: StopReason = StopReason.DONE,
) -> Trajectory:
    return Trajectory(
        task_id=group_id,
        group_id=group_id,
        sample_index=sample_index,
        segments=segments or (make_segment([1, 2], [3]),),
        turns=(),
        reward=reward,
        stop_reason=stop_reason,
        started_s=0.0,
        duration_s=0.0,
        phases=PhaseSeconds(),
    )


def make_segment(prompt: list[int], sampled: list[int], logprob: float = -1.0) -> Segment:
    segment = Segment()
    segment.append_given(prompt)
    segment.append_sampled(sampled, [logprob] * len(sampled), 0)
    return segment


def random_trajectories(seed: int, num_groups: int = 3, group_size: int = 3) -> list[Trajectory]:
    """Two-turn trajectories of many lengths, rewards 0 and 1, one group of three agreeing."""
    rng = random.Random(seed)
    trajectories = []
    for group in range(num_groups):
        for sample in range(group_size):
            segment = Segment()
            for _ in range(2):
                segment.append_given(rng.choices(range(VOCAB_SIZE), k=rng.randint(2, 12)))
                sampled = rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 6))
                segment.append_sampled(sampled, [-7.3 + rng.random() / 10 for _ in sampled], 0)
            reward = 1.0 if group == 2 else float(sample == 0)
            trajectories.append(make_trajectory(reward, segment, group_id=f"g{group}", sample_index=sample))
    return trajectories


def tiny_qwen3(folder: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def trainer_config(**changes: object) -> TrainerConfig:
    values: dict[str, object] = {
        "steps": 1,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "betas": (0.9, 0.95),
        "grad_clip": 0.05,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "old_logprobs": "trainer",
        "normalise_std": True,
        "skip_zero_advantage": False,
        "micro_batch_tokens": 50,
        "epochs_per_step": 1,
        "zero_stage": 0,
        "ranks": 1,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "save_every_steps": 0,
        "collective_deadline_s": 60.0,
    }
    return TrainerConfig(**(values | changes))  # type: ignore[arg-type]


class Ranks:
    """Calls a method of every rank at once and returns their answers in order of rank."""

    def __init__(self, pools: list[ProcessPoolExecutor]) -> None:
        self._pools = pools

    def call(self, method: str, *args: object) -> list[object]:
        answers: list[Future[object]] = [pool.submit(_call_rank, method, *args) for pool in self._pools]
        return [answer.result(CALL_DEADLINE_S) for answer in answers]

    def weights(self) -> dict[str, torch.Tensor]:
        """Gathered bucket by bucket on rank 0."""
        plan = self.call("bucket_plan", 100_000)[0]
        assert isinstance(plan, list)
        weights = {}
        for index in range(len(plan)):
            gathered, *others = self.call("gather_bucket", index)
            assert all(other is None for other in others)
            assert isinstance(gathered, list)
            weights |= {name: torch.from_numpy(array) for name, array in gathered}
        return weights


@contextmanager
def running_ranks(config: TrainerConfig, model_path: Path) -> Iterator[Ranks]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(config.ranks)]
    try:
        started = [
            pool.submit(_start_rank, config, str(model_path), rank, port) for rank, pool in enumerate(pools)
        ]
        for start in started:
            start.result(CALL_DEADLINE_S)
        ranks = Ranks(pools)
        yield ranks
        ranks.call("close")
    finally:
        for pool in pools:
            for process in (pool._processes or {}).values():
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)


_ranks: list[TrainerRank] = []
"""In a rank's process: the rank."""


def _start_rank(config: TrainerConfig, model_path: str, rank: int, port: int) -> None:
    trainer = TrainerRank(config, model_path, rank=rank, world_size=config.ranks, master_port=port, seed=0)
    trainer.setup()
    _ranks.append(trainer)


def _call_rank(method: str, *args: object) -> object:
    return getattr(_ranks[0], method)(*args)
