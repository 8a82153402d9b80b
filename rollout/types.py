"""The vocabulary of the rollout room: trajectories, and why they ended.

A Trajectory has one or more Segments. A Segment is an append-only token sequence: text is tokenised
once, a later turn's prompt is the earlier ids plus the tool's ids, and history is never re-rendered.
Four numbers stand beside each token in `array`s, 13 bytes a token.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from engines.types import FinishReason, PhaseSeconds

NO_VERSION = -1
"""weights_version of a token the model did not sample."""


class Outcome(StrEnum):
    """What became of a trajectory; every (task, sample) comes back with exactly one."""

    COMPLETED = "completed"
    """The task said it is done."""
    TRUNCATED = "truncated"
    """A limit or the caller ended it."""
    TOOL_FAILED = "tool_failed"
    """The environment or a tool raised; the error is recorded."""
    ENGINE_FAILED = "engine_failed"
    """The engines could not serve a turn, after retries."""
    TIMED_OUT = "timed_out"
    """Wall time ran out."""


class StopReason(StrEnum):
    """Why a trajectory ended, in detail."""

    DONE = "done"
    """The environment said so."""
    MAX_TURNS = "max_turns"
    """It took the most turns it may."""
    MAX_CONTEXT = "max_context"
    """The next turn would not fit the context."""
    MAX_TOKENS = "max_tokens"
    """A turn was cut at sampling.max_tokens, and the environment ends such a trajectory."""
    WALL_TIME = "wall_time"
    """It took the longest it may."""
    ABORTED = "aborted"
    """The caller took it back."""
    DROPPED = "dropped"
    """Enough others of its group had ended well (controller.oversample)."""
    TOOL_ERROR = "tool_error"
    """The environment or a tool raised."""
    ENGINE_ERROR = "engine_error"
    """The engines could not serve a turn."""


OUTCOME_OF: dict[StopReason, Outcome] = {
    StopReason.DONE: Outcome.COMPLETED,
    StopReason.MAX_TURNS: Outcome.TRUNCATED,
    StopReason.MAX_CONTEXT: Outcome.TRUNCATED,
    StopReason.MAX_TOKENS: Outcome.TRUNCATED,
    StopReason.ABORTED: Outcome.TRUNCATED,
    StopReason.DROPPED: Outcome.TRUNCATED,
    StopReason.WALL_TIME: Outcome.TIMED_OUT,
    StopReason.TOOL_ERROR: Outcome.TOOL_FAILED,
    StopReason.ENGINE_ERROR: Outcome.ENGINE_FAILED,
}


@dataclass(slots=True)
class Segment:
    """An append-only token sequence; the four arrays always have one length."""

    token_ids: array[int] = field(default_factory=lambda: array("i"))
    loss_mask: array[int] = field(default_factory=lambda: array("b"))
    """1 on tokens the model sampled, 0 on prompt and tool tokens."""
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    """log_softmax(logits / temperature) at sampling; 0.0 on tokens the model did not sample."""
    weights_versions: array[int] = field(default_factory=lambda: array("i"))
    """The weights that sampled each token; NO_VERSION on the others."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def append_given(self, token_ids: Sequence[int]) -> None:
        """Append prompt or tool tokens."""
        self.token_ids.extend(token_ids)
        self.loss_mask.extend([0] * len(token_ids))
        self.logprobs.extend([0.0] * len(token_ids))
        self.weights_versions.extend([NO_VERSION] * len(token_ids))

    def append_sampled(
        self, token_ids: Sequence[int], logprobs: Sequence[float], weights_version: int
    ) -> None:
        """Append tokens the model sampled under `weights_version`."""
        if len(token_ids) != len(logprobs):
            raise ValueError(f"{len(token_ids)} token ids but {len(logprobs)} logprobs")
        self.token_ids.extend(token_ids)
        self.loss_mask.extend([1] * len(token_ids))
        self.logprobs.extend(logprobs)
        self.weights_versions.extend([weights_version] * len(token_ids))

    def check(self) -> None:
        """Raise AssertionError unless the arrays agree."""
        lengths = {len(self.loss_mask), len(self.logprobs), len(self.weights_versions)}
        assert lengths == {len(self.token_ids)}, lengths
        for mask, version in zip(self.loss_mask, self.weights_versions, strict=True):
            assert (mask == 1) == (version != NO_VERSION), (mask, version)


@dataclass(frozen=True, slots=True)
class Turn:
    """One model call plus the tool's answer to it."""

    segment: int
    prompt_tokens: int
    hit_tokens: int
    output_tokens: int
    tool_tokens: int
    """Tokens of the tool's answer, which the next turn's prompt ends with."""
    finish_reason: FinishReason
    weights_version: int
    started_s: float
    """Seconds since the trajectory started."""
    ttft_s: float
    ttst_s: float | None
    tpot_s: float | None
    tool_s: float
    phases: PhaseSeconds
    """Of the model call and the tool; sums to the turn's duration."""
    recomputed_tokens: int = 0
    num_attempts: int = 1
    """Times the turn was sent to engines; over 1 where one failed, preempted it or lost a block."""
    renewed_tokens: int = 0
    """Tokens of the prompt that older weights had computed, and that were computed again under these."""
    older_kv_tokens: int = 0
    """Tokens of the prompt whose KV is of older weights than those that sampled the output."""

    @property
    def miss_tokens(self) -> int:
        return self.prompt_tokens - self.hit_tokens


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One agent's whole record: one sample of one task."""

    task_id: str
    group_id: str
    """Trajectories of one task in one step share it: the baseline is taken over them."""
    sample_index: int
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    reward: float
    stop_reason: StopReason
    started_s: float
    """Seconds since the step started."""
    duration_s: float
    phases: PhaseSeconds
    """Sums to duration_s."""
    error: str | None = None

    @property
    def trajectory_id(self) -> str:
        return f"{self.group_id}/{self.sample_index}"

    @property
    def outcome(self) -> Outcome:
        return OUTCOME_OF[self.stop_reason]

    @property
    def num_tokens(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @property
    def finished_s(self) -> float:
        """Seconds since the step started."""
        return self.started_s + self.duration_s
