"""An agent worker: one process that runs many agents at once.

It holds the tokenizer and an engines' client; an agent is a coroutine on its event loop. It does not know
which trajectories exist elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engines.client import ClientParts
from engines.model.kv_pattern import VOCABULARY
from engines.model.tokenizer import end_token_ids, load_tokenizer, ordinary_token_ids
from engines.types import OnPhase, SamplingParams
from rollout.agent import AgentSetup, run_agent
from rollout.agent_run import Sample
from rollout.limits import Limits
from rollout.prompt_format import open_format
from rollout.replay_agent import ReplaySetup, prepare_history, run_replay
from rollout.replay_task import ReplayTask
from rollout.replay_tokens import TokenSource
from rollout.types import Trajectory


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every agent worker of a job is made from."""

    parts: ClientParts
    model_path: str | None
    """None: paced engines, which have no text."""
    sampling: SamplingParams
    limits: Limits
    tool_wait_scale: float = 0.0
    """Of replayed sessions."""


class AgentWorker:
    """Runs agents; all methods belong to one event loop."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._engines = spec.parts.client()
        self._aborts: dict[str, asyncio.Event] = {}
        self._phases: dict[str, str] = {}

    async def run(self, sample: Sample) -> Trajectory:
        """Play one sample to its end. Its `started_s` is 0: the caller knows when the step began."""
        abort = self._aborts.setdefault(sample.trajectory_id, asyncio.Event())
        try:
            return await self._play(
                sample, abort, lambda phase: self._phases.update({sample.trajectory_id: phase})
            )
        finally:
            self._phases.pop(sample.trajectory_id, None)
            self._aborts.pop(sample.trajectory_id, None)

    async def phase(self, trajectory_id: str) -> str | None:
        """What a trajectory does or waits for now, one of PHASES; None if it does not run here."""
        return self._phases.get(trajectory_id)

    async def abort(self, trajectory_id: str) -> None:
        """End a trajectory; it comes back with what it has.

        Calls may overtake one another, so this one may be here before its `run`.
        """
        self._aborts.setdefault(trajectory_id, asyncio.Event()).set()

    async def prepare(self, task: ReplayTask) -> int:
        """Have the KV of a replayed session's history stored; the tokens that were computed for it."""
        return await prepare_history(task, self._replay_setup)

    async def _play(self, sample: Sample, abort: asyncio.Event, on_phase: OnPhase) -> Trajectory:
        if isinstance(sample.task, ReplayTask):
            return await run_replay(sample, self._replay_setup, abort, on_phase)
        return await run_agent(sample, self._agent_setup, abort=abort, on_phase=on_phase)

    @cached_property
    def _agent_setup(self) -> AgentSetup:
        path = self._spec.model_path
        assert path is not None, "agents that read and write need a model's tokenizer"
        return AgentSetup(
            engines=self._engines,
            prompt_format=open_format(load_tokenizer(path), end_token_ids(path)),
            sampling=self._spec.sampling,
            limits=self._spec.limits,
        )

    @cached_property
    def _replay_setup(self) -> ReplaySetup:
        return ReplaySetup(
            engines=self._engines,
            limits=self._spec.limits,
            tokens=TokenSource(self._vocabulary()),
            tool_wait_scale=self._spec.tool_wait_scale,
        )

    def _vocabulary(self) -> Sequence[int]:
        if self._spec.model_path is None:
            return range(VOCABULARY)
        return ordinary_token_ids(load_tokenizer(self._spec.model_path))
