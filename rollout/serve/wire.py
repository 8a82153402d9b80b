"""Requests and answers as they stand on the wire: OpenAI's, with vLLM's names for token ids.

What a request asks for and would change its answer, and is not to be had here, is refused by name; other
unknown fields are passed over, as agents send many. Nothing is known here of engines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from engines.types import PHASES
from rollout.types import Outcome, StopReason, Trajectory

SESSION_ID = r"^[A-Za-z0-9][A-Za-z0-9._:~-]{0,199}$"
_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
_LARGEST = 2**31 - 1
Count = Annotated[int, Field(ge=1, le=_LARGEST)]
TokenId = Annotated[int, Field(ge=0, le=_LARGEST)]


# -- requests ------------------------------------------------------------------------------------------


class TextPart(BaseModel):
    """A piece of a message; the model reads nothing but text."""

    type: Literal["text"]
    text: str


class CalledFunction(BaseModel):
    name: str
    arguments: str
    """JSON."""


class Call(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class FunctionSpec(BaseModel):
    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of an object."""


class ToolSpec(BaseModel):
    type: Literal["function"]
    function: FunctionSpec


class StreamOptions(BaseModel):
    include_usage: bool = False


class SamplingFields(BaseModel):
    """What both kinds of requests say of how to sample; what they leave out is as the job's `sampling`
    says."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_LARGEST)] | None = None
    """-1 and 0 keep all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    """Whether to go on past the tokens that end the model's turn."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    """Whether to tell the prompt's and the answer's token ids."""

    def stop_strings(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)


class ChatRequest(SamplingFields):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[ToolSpec] | None = None
    tool_choice: Any = None
    """`auto`, or `none` to have calls left in the text."""
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None


class CompletionRequest(SamplingFields):
    prompt: str | list[TokenId] | list[str] | list[list[TokenId]]
    """One prompt: a text, in which special tokens are read, or token ids."""
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    """Any number tells the logprobs of sampled tokens; no others are known."""


class SessionSpec(BaseModel):
    """Whose trajectory a session is; None: the session's own name."""

    task_id: str | None = None
    group_id: str | None = None
    """Trajectories of one task in one step share it."""
    sample_index: Annotated[int, Field(ge=0, le=_LARGEST)] = 0


class SessionEnd(BaseModel):
    """What became of a session, as whoever ran its agent saw it."""

    reward: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    stop_reason: StopReason = StopReason.DONE
    error: str | None = None


# -- answers -------------------------------------------------------------------------------------------


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    error: ErrorBody


class CachedTokens(BaseModel):
    cached_tokens: int
    """Tokens whose KV was loaded."""


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[Any]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[Call] | None = None
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    token_ids: list[int] | None = None


class _Answer(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    """The weights version that sampled."""
    usage: Usage


class ChatAnswer(_Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: None = None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionAnswer(_Answer):
    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(BaseModel):
    status: Literal["ok", "failed"]
    weights_version: int
    failures: dict[str, str]
    """What ended engines that no longer work."""


class SessionCard(BaseModel):
    session_id: str
    base_url: str
    """Relative to the endpoint."""


class SegmentAnswer(BaseModel):
    token_ids: list[int]
    loss_mask: list[int]
    logprobs: list[float]
    weights_versions: list[int]


class TurnAnswer(BaseModel):
    segment: int
    prompt_tokens: int
    hit_tokens: int
    output_tokens: int
    finish_reason: str
    weights_version: int
    started_s: float
    tool_s: float


class TrajectoryAnswer(BaseModel):
    """A Trajectory: one agent's whole record."""

    trajectory_id: str
    task_id: str
    group_id: str
    sample_index: int
    reward: float
    outcome: Outcome
    stop_reason: StopReason
    error: str | None
    started_s: float
    duration_s: float
    phases: dict[str, float]
    segments: list[SegmentAnswer]
    turns: list[TurnAnswer]

    @classmethod
    def of(cls, trajectory: Trajectory) -> TrajectoryAnswer:
        return cls(
            **{
                name: getattr(trajectory, name)
                for name in cls.model_fields.keys() - {"phases", "segments", "turns"}
            },
            phases=dict(zip(PHASES, trajectory.phases.values(), strict=True)),
            segments=[
                SegmentAnswer(**{name: list(getattr(segment, name)) for name in SegmentAnswer.model_fields})
                for segment in trajectory.segments
            ],
            turns=[
                TurnAnswer(**{name: getattr(turn, name) for name in TurnAnswer.model_fields})
                for turn in trajectory.turns
            ],
        )
