"""An agent worker: one process that runs many agents at once.

It holds the tokenizer and an engines' client; an agent is a coroutine on its event loop. It does not know
which trajectories exist elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

from engines.client import ClientParts
from engines.model.kv_pattern import VOCABULARY
from engines.model.tokenizer import end_token_ids, load_tokenizer, ordinary_token_ids
from engines.types import SamplingParams
from rollout.agent import AgentSetup, run_agent
from rollout.agent_run import Sample
from rollout.environments import make_environment
from rollout.glance import AgentNow, Glance
from rollout.journal_record import Record, TurnEnded, frame
from rollout.limits import Limits
from rollout.prompt_format import open_format
from rollout.replay_agent import ReplaySetup, prepare_history, run_replay
from rollout.replay_task import ReplayTask
from rollout.replay_tokens import TokenSource
from rollout.sandbox.config import SandboxConfig
from rollout.stacks import stacks
from rollout.tools.config import ToolsConfig
from rollout.tools.figures import ToolReport
from rollout.tools.runner import ToolRunner
from rollout.types import Trajectory, Turn
from rollout.watchdog import LoopAlarm
from rollout.workbench import Workbench


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every agent worker of a job is made from."""

    parts: ClientParts
    model_path: str | None
    """None: paced engines, which have no text."""
    sampling: SamplingParams
    limits: Limits
    tools: ToolsConfig
    sandbox: SandboxConfig
    tool_wait_scale: float = 0.0
    """Of replayed sessions."""
    keeps_records: bool = False
    """Whether somebody comes for `records`."""
    name: str = "worker"
    """By which the scheduler knows the turns of this worker, whatever process it is in."""
    stalls: tuple[Path, float] | None = None
    """Where to write this process's threads when it has not been asked what it does for so many seconds."""


@dataclass(slots=True)
class _Agent:
    """A trajectory that runs here."""

    abort: asyncio.Event = field(default_factory=asyncio.Event)
    started_s: float | None = None
    """None: it has been aborted and is not here yet."""
    phase: str = "other"
    phase_began_s: float = 0.0
    num_turns: int = 0
    last: Turn | None = None


class AgentWorker:
    """Runs agents; all methods belong to one event loop."""

    def __init__(self, spec: WorkerSpec, clock: Callable[[], float] = time.monotonic) -> None:
        self._spec = spec
        self._engines = spec.parts.client(spec.name)
        self._workbench = Workbench(ToolRunner(spec.tools), spec.sandbox)
        self._clock = clock
        self._agents: dict[str, _Agent] = {}
        """In the order in which they came."""
        self._records: list[bytes] = []
        """Frames that nobody has on record yet."""
        self._first_record = 0
        self._has_records = asyncio.Event()
        self._num_moves = self._num_turns = 0
        self._expected_hit_tokens = self._lost_hit_tokens = 0
        self._alarm = None if spec.stalls is None else LoopAlarm(*spec.stalls)

    async def alive(self) -> int:
        """The process's id, as a sign of life."""
        return os.getpid()

    async def run(self, sample: Sample) -> Trajectory:
        """Play one sample to its end. Its `started_s` is 0: the caller knows when the step began."""
        agent = self._agents.setdefault(sample.trajectory_id, _Agent())
        agent.started_s = agent.phase_began_s = self._clock()
        try:
            return await self._play(sample, agent)
        finally:
            del self._agents[sample.trajectory_id]
            if self._alarm is not None and not self._agents:
                self._alarm.stop()

    async def glance(self, num_oldest: int) -> Glance:
        """What the agents here do now."""
        if self._alarm is not None and self._agents:
            self._alarm.put_off()
        now_s = self._clock()
        here = ((name, agent) for name, agent in self._agents.items() if agent.started_s is not None)
        oldest = tuple(
            AgentNow(name, now_s - agent.started_s, agent.phase, now_s - agent.phase_began_s, agent.num_turns)
            for name, agent in islice(here, num_oldest)
            if agent.started_s is not None
        )
        return Glance(
            self._num_moves, self._num_turns, self._expected_hit_tokens, self._lost_hit_tokens, oldest
        )

    async def stacks(self) -> str:
        """What this process is doing."""
        return stacks()

    async def records(self, after: int, wait_s: float) -> tuple[int, list[bytes]]:
        """Frames of what has ended here, from number `after` on, and the number of the next.

        Those before `after` are forgotten. Where there are none yet, it waits for some.
        """
        del self._records[: max(0, after - self._first_record)]
        self._first_record = max(self._first_record, after)
        if not self._records:
            self._has_records.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._has_records.wait()
        return self._first_record + len(self._records), self._records[:]

    async def abort(self, trajectory_id: str) -> None:
        """End a trajectory; it comes back with what it has.

        Calls may overtake one another, so this one may be here before its `run`.
        """
        self._agents.setdefault(trajectory_id, _Agent()).abort.set()

    async def prepare(self, task: ReplayTask) -> int:
        """Have the KV of a replayed session's history stored; the tokens that were computed for it."""
        return await prepare_history(task, self._replay_setup)

    async def tool_report(self) -> ToolReport:
        """What tools did here since the start."""
        return self._workbench.runner.report()

    async def _play(self, sample: Sample, agent: _Agent) -> Trajectory:
        def on_phase(phase: str) -> None:
            agent.phase, agent.phase_began_s = phase, self._clock()
            self._num_moves += 1

        def on_record(record: Record) -> None:
            self._num_moves += 1
            if isinstance(record, TurnEnded):
                self._num_turns += 1
                self._count_turn(agent, record.turn)
            if self._spec.keeps_records:
                self._records.append(frame(record))
                self._has_records.set()

        if isinstance(sample.task, ReplayTask):
            return await run_replay(sample, self._replay_setup, agent.abort, on_phase, on_record)
        return await run_agent(
            sample, self._agent_setup, abort=agent.abort, on_phase=on_phase, on_record=on_record
        )

    def _count_turn(self, agent: _Agent, turn: Turn) -> None:
        agent.num_turns += 1
        last, agent.last = agent.last, turn
        if last is not None and (last.segment, last.weights_version) == (turn.segment, turn.weights_version):
            block_tokens = self._spec.parts.layout.block_tokens
            stored_tokens = (last.prompt_tokens + last.output_tokens) // block_tokens * block_tokens
            # The last token's KV is not made, and a prompt's last block counts as a miss.
            expected_tokens = min(stored_tokens, (turn.prompt_tokens - 1) // block_tokens * block_tokens)
            self._expected_hit_tokens += expected_tokens
            self._lost_hit_tokens += max(0, expected_tokens - turn.hit_tokens - block_tokens)

    @cached_property
    def _agent_setup(self) -> AgentSetup:
        path = self._spec.model_path
        assert path is not None, "agents that read and write need a model's tokenizer"
        return AgentSetup(
            engines=self._engines,
            prompt_format=open_format(load_tokenizer(path), end_token_ids(path)),
            sampling=self._spec.sampling,
            limits=self._spec.limits,
            environment_of=lambda task: make_environment(task, self._workbench),
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
