"""An agent worker: one process that runs many agents at once.

It holds the tokenizer and an engines' client; an agent is a coroutine on its event loop. It does not know
which trajectories exist elsewhere.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from engines.client import ClientParts
from engines.model.tokenizer import end_token_ids, load_tokenizer
from engines.types import SamplingParams
from rollout.agent import AgentSetup, run_agent
from rollout.agent_run import Sample
from rollout.limits import Limits
from rollout.prompt_format import open_format
from rollout.types import Trajectory


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every agent worker of a job is made from."""

    parts: ClientParts
    model_path: str
    sampling: SamplingParams
    limits: Limits


class AgentWorker:
    """Runs agents; all methods belong to one event loop."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._setup = AgentSetup(
            engines=spec.parts.client(),
            prompt_format=open_format(load_tokenizer(spec.model_path), end_token_ids(spec.model_path)),
            sampling=spec.sampling,
            limits=spec.limits,
        )
        self._aborts: dict[str, asyncio.Event] = {}
        self._phases: dict[str, str] = {}

    async def run(self, sample: Sample) -> Trajectory:
        """Play one sample to its end. Its `started_s` is 0: the caller knows when the step began."""
        abort = self._aborts.setdefault(sample.trajectory_id, asyncio.Event())
        try:
            return await run_agent(
                sample,
                self._setup,
                abort=abort,
                on_phase=lambda phase: self._phases.update({sample.trajectory_id: phase}),
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
