"""Supervised warm start of the tiny model, so that reinforcement learning has something to work on.

First all demonstrations use the tool, and the model learns to call it and to copy results. Then, for a
few steps, most of them give up at once: the model comes to use the tool only now and then, and it is
left to reinforcement learning to find out that it pays. So what a run of `experiment=tiny_rl` shows is
that the loop learns, not that the model can reason.
Axes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.chain_arithmetic import ALPHABET, demonstration, sample_problem
from rollout.warm_start_config import WarmStartConfig

if TYPE_CHECKING:
    from torch import Tensor

RAMP_STEPS = 30
"""Steps over which the learning rate rises."""
LOWEST_SHARE = 0.1
"""Of the learning rate, at the end of the cosine and in the give-up steps."""
MAX_GRAD_NORM = 1.0
NOT_LEARNT = -100
"""Target that cross-entropy leaves out: what the model does not write, and padding."""

_TOKEN_ID = {char: index for index, char in enumerate(ALPHABET)}


@dataclass(frozen=True, slots=True)
class WarmStartProgress:
    """How far a warm start is."""

    steps_done: int
    steps_total: int
    loss: float


@dataclass(frozen=True, slots=True)
class WarmStartReport:
    """What a warm start took and reached."""

    steps: int
    tool_loss: float
    """Cross-entropy per written token of the last step in which all demonstrations used the tool."""
    loss: float
    """Of the last step."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """A demonstration as the rollout's token sequence; True marks what the model is to write."""

    token_ids: list[int]
    written: list[bool]


def warm_start(
    directory: Path,
    config: WarmStartConfig,
    seed: int,
    on_progress: Callable[[WarmStartProgress], None],
) -> WarmStartReport:
    """Train the model in `directory` on demonstrations and save it there."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    started_s = time.monotonic()
    torch.set_num_threads(config.threads)
    rng = random.Random(seed)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    steps_total, tool_loss, loss_value = config.steps + config.give_up_steps, 0.0, 0.0
    for step in range(steps_total):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        token_ids_BT, targets_BT = _tensors(demonstrations(config, step, rng))
        logits_BTV = model(input_ids=token_ids_BT, use_cache=False).logits
        loss = cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten(), ignore_index=NOT_LEARNT
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        loss_value = loss.item()
        tool_loss = loss_value if step < config.steps else tool_loss
        on_progress(WarmStartProgress(step + 1, steps_total, loss_value))
    model.save_pretrained(directory)
    return WarmStartReport(steps_total, tool_loss, loss_value, time.monotonic() - started_s)


def learning_rate(config: WarmStartConfig, step: int) -> float:
    """A ramp, then a cosine down to a tenth by the end of the tool steps, then level."""
    ramp = min(1.0, (step + 1) / RAMP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(step / config.steps, 1.0)))
    return config.learning_rate * ramp * max(LOWEST_SHARE, cosine)


def demonstrations(config: WarmStartConfig, step: int, rng: random.Random) -> list[Transcript]:
    """A step's batch."""
    give_up_share = config.give_up_share if step >= config.steps else 0.0
    return [
        transcript(
            demonstration(
                sample_problem(rng, config.min_operators, config.max_operators),
                use_tool=rng.random() >= give_up_share,
            )
        )
        for _ in range(config.batch_size)
    ]


def transcript(parts: Iterable[tuple[str, bool]]) -> Transcript:
    """One token per character, exactly as a rollout's turns follow on each other."""
    token_ids: list[int] = []
    written: list[bool] = []
    for text, is_model in parts:
        token_ids += [_TOKEN_ID[char] for char in text]
        written += [is_model] * len(text)
    return Transcript(token_ids, written)


def _tensors(transcripts: list[Transcript]) -> tuple[Tensor, Tensor]:
    """Token ids and targets, padded on the right, where causal attention does not see it."""
    import torch

    shape = (len(transcripts), max(len(one.token_ids) for one in transcripts))
    token_ids_BT = torch.full(shape, 0)
    targets_BT = torch.full(shape, NOT_LEARNT)
    for row, one in enumerate(transcripts):
        ids_T, written_T = torch.tensor(one.token_ids), torch.tensor(one.written)
        token_ids_BT[row, : len(ids_T)] = ids_T
        targets_BT[row, : len(ids_T)] = torch.where(written_T, ids_T, NOT_LEARNT)
    return token_ids_BT, targets_BT
