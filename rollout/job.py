"""Runs a job from a judged configuration: rollout steps, training steps between them, and the records.

    train      rollout at version 0, GRPO step, push, rollout at version 1, ..., a last rollout
    rollout    one rollout step, no trainer
    replay     one rollout step of recorded agents, with what they need in the store before it

It wires the parts together and decides the order of things, nothing else. A rollout step's JCT counts from
its first start to its last finish; starting, training and pushing weights are timed apart.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from engines.errors import EngineError, EngineFailed, KVDamaged
from engines.types import EngineRole
from kvstore.errors import KvStoreError
from rollout import __version__
from rollout.actors import RayCluster
from rollout.agent_run import Sample
from rollout.async_backend import AnyTask, AsyncRolloutBackend
from rollout.chain_arithmetic import make_tasks
from rollout.compose import to_yaml
from rollout.config import RunConfig
from rollout.controller import Earlier
from rollout.cpu_use import read_cpu
from rollout.errors import RolloutError
from rollout.forward_figures import attention_figures, decode_figures
from rollout.journal import JournalWriter, forget_steps_before
from rollout.journal_record import FORMAT, StepBegan
from rollout.metrics import StepSummary, series, summarise_job, summarise_step
from rollout.monitor import Monitor
from rollout.paced_engines import paced_spec
from rollout.progress import Progress, StepState
from rollout.records import TrajectoryWriter
from rollout.replay import ReplayPlan
from rollout.report import print_report
from rollout.resumption import Resumption, digest_of, find_resumption
from rollout.run_dir import RunDir
from rollout.snic_meter import SnicMeter
from rollout.summary import ReplayFigures, ResumedFigures
from rollout.tasks import Task, bundled_tasks_path, load_tasks, step_tasks
from rollout.trainer_group import TrainerGroup
from rollout.types import Trajectory
from rollout.warm_start import WarmStartProgress, warm_start

logger = logging.getLogger(__name__)
_PACKAGES = ("torch", "transformers", "ray", "deepspeed")
_NUM_GENERATED_TASKS = 4096
_PROGRESS_EVERY_S = 0.5
_LOOK_FOR_WEIGHTS_S = 1.0


def run_job(config: RunConfig, overrides: Sequence[str] = (), replay: ReplayPlan | None = None) -> int:
    """Run the job to its end; returns the exit code. Raises RolloutError with one line.

    `overrides` are what `config` was composed with, for whoever resumes the run; `replay` is what job=replay
    is to do (rollout.preflight).
    """
    if config.resume is not None:
        config = replace(config, run_dir=config.resume)
    try:
        asyncio.run(_run(config, overrides, replay))
    except (EngineError, KvStoreError) as error:
        raise RolloutError(" ".join(str(error).split())) from error
    return 0


async def _run(config: RunConfig, overrides: Sequence[str], replay: ReplayPlan | None) -> None:
    resumption = None if config.resume is None else find_resumption(Path(config.resume), config)
    async with AsyncExitStack() as stack:
        run_dir = stack.enter_context(
            RunDir.open(config.run_dir, overwrite=config.overwrite, resume=config.resume is not None)
        )
        run_dir.write_config(to_yaml(config), overrides)
        progress = stack.enter_context(Progress.open(sys.stderr))
        monitor = stack.enter_context(Monitor.open(run_dir, config.monitor, asdict(config)))
        desk = _Desk(config, run_dir, progress, monitor, resumption)
        if config.model.warm_start is not None:
            desk.config = _with_warm_model(desk)
        if replay is not None:
            desk.begin_replay(replay)
        async with _players(desk) as (backend, trainer):
            if desk.replay is None:
                await _run_steps(desk, backend, trainer)
            else:
                await _run_replay(desk, backend, desk.replay)
            if config.monitor.trace_every:
                run_dir.draw(await backend.spans())
        summary = summarise_job(
            desk.steps,
            job=config.job,
            seed=config.seed,
            timing_s=desk.timing_s,
            versions=versions(),
            replay=desk.replay_figures,
            resumed=desk.resumed,
        )
        summary["transport"] = desk.transport
        run_dir.write_summary(summary)
        monitor.finish(summary)
    print_report(summary, run_dir)


@dataclass(slots=True)
class _Desk:
    """What every part of a job needs at hand, and what it has measured so far."""

    config: RunConfig
    run_dir: RunDir
    progress: Progress
    monitor: Monitor
    resumption: Resumption | None = None
    """What the run goes on from; None: it begins."""
    resumed: ResumedFigures | None = None
    steps: list[StepSummary] = field(default_factory=list)
    timing_s: dict[str, float] = field(default_factory=dict)
    transport: str = ""
    """How KV moves, once that is settled."""
    replay: ReplayPlan | None = None
    replay_figures: ReplayFigures | None = None

    def begin_replay(self, plan: ReplayPlan) -> None:
        """From here on the configuration has the rates that `setting` gives."""
        self.replay = plan
        self.config = replace(plan.config, run_dir=self.config.run_dir)
        self.replay_figures = plan.figures()
        self.progress.phase(plan.told())

    @property
    def num_train_steps(self) -> int:
        return self.config.trainer.steps if self.config.job == "train" else 0

    @contextmanager
    def timed(self, name: str, text: str) -> Iterator[None]:
        """Say what begins, and add its seconds to what stands beside the JCT."""
        self.progress.phase(text)
        started_s = time.monotonic()
        try:
            yield
        finally:
            self.timing_s[name] = self.timing_s.get(name, 0.0) + time.monotonic() - started_s


# -- before the first step -----------------------------------------------------------------------------


def _with_warm_model(desk: _Desk) -> RunConfig:
    """Make and warm-start the run's own tiny model; the configuration that names it."""
    # transformers, which building a model needs, is not worth its import to other jobs.
    from rollout.char_model import make_char_model

    config, folder = desk.config, desk.run_dir.model
    assert config.model.warm_start is not None
    if config.resume is None or not folder.is_dir():
        draft = folder.with_name("model.draft")  # a resumed run finds the whole model or none
        with desk.timed("warm_start", "training the tiny model's warm start"):
            make_char_model(draft, config.seed)
            done = warm_start(draft, config.model.warm_start, config.seed, _warm_progress(desk))
            draft.rename(folder)
        desk.progress.phase(f"warm start: {done.steps} steps, loss {done.loss:.3f}, {done.seconds:.0f} s")
    return replace(config, model=replace(config.model, path=str(folder), warm_start=None))


def _warm_progress(desk: _Desk) -> Callable[[WarmStartProgress], None]:
    def show(state: WarmStartProgress) -> None:
        if state.steps_done % 50 == 0:
            desk.progress.phase(
                f"warm start: step {state.steps_done}/{state.steps_total}, loss {state.loss:.3f}"
            )

    return show


@asynccontextmanager
async def _players(desk: _Desk) -> AsyncIterator[tuple[AsyncRolloutBackend, TrainerGroup | None]]:
    """The engines with their agent workers, and the trainer if the job has one."""
    config = desk.config
    with desk.timed("start", "starting Ray, engines and agent workers"):
        backend = AsyncRolloutBackend(
            config,
            weights=None if desk.resumption is None else desk.resumption.weights,
            keeps_records=config.controller.journal,
        )
        await backend.start()
    desk.transport = backend.transport.config.kind
    desk.progress.phase(backend.transport.told)
    ray = RayCluster(None, num_nodes=0, start_deadline_s=config.engines.start_deadline_s)
    try:
        trainer = None
        if desk.num_train_steps > 0:
            assert config.model.path is not None
            with desk.timed("start", "starting the trainer"):
                trainer = await TrainerGroup.start(
                    ray.spawn, config.trainer, config.model.path, seed=config.seed
                )
        yield backend, trainer
    except BaseException:
        await backend.close(keep_kv=True)  # whoever resumes finds it
        raise
    finally:
        ray.close()
        await backend.close()


# -- the steps -----------------------------------------------------------------------------------------


async def _run_steps(desk: _Desk, backend: AsyncRolloutBackend, trainer: TrainerGroup | None) -> None:
    tasks = _tasks(desk.config)
    first_step = await _resume(desk, trainer)
    with TrajectoryWriter(desk.run_dir.trajectories, first_step) as writer:
        for step in range(first_step, desk.num_train_steps + 1):
            chosen = step_tasks(tasks, step, desk.config.task.prompts_per_step, desk.config.seed)
            async with _weights_kept(backend, trainer):
                trajectories = await _rollout(desk, backend, step, chosen, writer)
            if trainer is not None and step < desk.num_train_steps:
                await _train(desk, backend, trainer, step, trajectories)


async def _run_replay(desk: _Desk, backend: AsyncRolloutBackend, plan: ReplayPlan) -> None:
    """Put the histories into the store, then play all agents in one step and measure what it took."""
    assert desk.replay_figures is not None
    with desk.timed("prepare", "putting the KV before the window into the store"):
        desk.replay_figures["history_tokens"] = await backend.prepare(plan.tasks)
    before = read_cpu()
    with TrajectoryWriter(desk.run_dir.trajectories) as writer:
        async with SnicMeter(lambda: _snic_bytes(backend)) as meter:
            await _rollout(desk, backend, 0, plan.tasks, writer)
    await _refuse_wrong_bytes(backend)
    paced = paced_spec(desk.config)
    if paced is not None:
        desk.replay_figures["verified_bytes"] = await backend.verified_bytes()
        decoded = await backend.forwards(EngineRole.DECODE)
        desk.replay_figures["decode"] = decode_figures(decoded, paced.step_times)
        desk.replay_figures["attention"] = attention_figures(await backend.forwards(EngineRole.PREFILL))
    desk.replay_figures["cpu_use"] = read_cpu().use_since(before)
    desk.replay_figures["snic"] = meter.figures()
    desk.replay_figures["snic"]["nodes"] = [*backend.cluster.nodes]
    desk.replay_figures["slo"] = plan.slo(desk.steps[-1].figures())


async def _refuse_wrong_bytes(backend: AsyncRolloutBackend) -> None:
    """A turn that met a wrong byte was served again elsewhere; the run is worth nothing all the same."""
    for engine_id, told in (await backend.failures()).items():
        if KVDamaged.__name__ in told:
            raise RolloutError(f"{engine_id} found a wrong byte of KV, so this replay proves nothing: {told}")


async def _snic_bytes(backend: AsyncRolloutBackend) -> tuple[int, ...]:
    return (await backend.kv_bytes()).snic_bytes


async def _resume(desk: _Desk, trainer: TrainerGroup | None) -> int:
    """The step to begin with; a resumed run's trainer stands where its checkpoint was made."""
    if desk.resumption is None:
        return 0
    desk.progress.phase(desk.resumption.told())
    if trainer is not None and desk.resumption.has_checkpoint:
        with desk.timed("resume", f"loading {desk.run_dir.checkpoints}"):
            await trainer.load(str(desk.run_dir.checkpoints))
    return desk.resumption.step


async def _rollout(
    desk: _Desk,
    backend: AsyncRolloutBackend,
    step: int,
    tasks: Sequence[AnyTask],
    writer: TrajectoryWriter,
) -> list[Trajectory]:
    """One rollout step: play, record, measure. What has ended is recorded even if the step is cut short."""
    samples, earlier = backend.samples(tasks, step), Earlier()
    digest = digest_of(samples)
    resumption = desk.resumption if desk.resumption and desk.resumption.step == step else None
    if resumption is not None:
        samples, earlier = resumption.take_up(samples)
    before, replaced = await backend.kv_bytes(), backend.num_replaced
    done: list[Trajectory] = []
    watcher = asyncio.create_task(_watch(desk, backend, step, samples, earlier, done))
    try:
        async with _journal(desk, backend, step, digest):
            async for trajectory in backend.play(samples, earlier):
                done.append(trajectory)
    finally:
        watcher.cancel()
        writer.append(step, done)
    await backend.settled()
    moved = await backend.kv_bytes() - before
    if resumption is not None:
        desk.resumed = resumption.figures(samples, done)
    replaced = backend.num_replaced - replaced
    summary = summarise_step(done, step, backend.weights_version, moved, num_replaced=replaced)
    desk.steps.append(summary)
    figures = await backend.store_figures() | await backend.estimate_figures()
    figures |= await backend.tool_figures()
    figures |= await backend.agent_figures()
    figures |= backend.health_figures()
    desk.monitor.log(series(summary) | figures, step=step)
    return done


@asynccontextmanager
async def _weights_kept(backend: AsyncRolloutBackend, trainer: TrainerGroup | None) -> AsyncIterator[None]:
    """Inside, the trainer gives its weights again whenever no engine is left that holds them."""
    keeping = asyncio.create_task(_keep_weights(backend, trainer)) if trainer is not None else None
    try:
        yield
    finally:
        if keeping is not None:
            keeping.cancel()
            await asyncio.wait([keeping])


async def _keep_weights(backend: AsyncRolloutBackend, trainer: TrainerGroup) -> None:
    while True:
        if backend.needs_weights:
            logger.warning("pushing weights version %d again", backend.weights_version)
            with suppress(EngineFailed):  # lost again meanwhile: then it is due again
                await backend.restore_weights(trainer.weights())
        await asyncio.sleep(_LOOK_FOR_WEIGHTS_S)


@asynccontextmanager
async def _journal(desk: _Desk, backend: AsyncRolloutBackend, step: int, digest: str) -> AsyncIterator[None]:
    """Inside, every finished turn is written down."""
    if not desk.config.controller.journal:
        yield
        return
    weights = backend.weights
    began = StepBegan(FORMAT, step, weights.version, weights.weights_id, digest)
    with JournalWriter(desk.run_dir.journal, began) as journal:
        async with backend.recording(journal):
            yield


async def _watch(
    desk: _Desk,
    backend: AsyncRolloutBackend,
    step: int,
    samples: Sequence[Sample],
    earlier: Earlier,
    done: list[Trajectory],
) -> None:
    """Show the step's state now and then, until cancelled."""
    begun = await backend.glance(1)
    turns_before = sum(len(trajectory.turns) for _, trajectory in earlier.ended)
    turns_before += sum(len(sample.history.turns) for sample in samples if sample.history)
    while True:
        glance = await backend.glance(1)
        desk.progress.step(
            StepState(
                step=step,
                num_steps=desk.num_train_steps + 1,
                num_trajectories=len(samples),
                num_done=len(done),
                num_running=len(backend.running),
                num_turns=turns_before + glance.num_turns - begun.num_turns,
                num_turns_expected=None if desk.replay is None else desk.replay.num_turns,
                num_done_before=len(earlier.ended),
                num_turns_before=turns_before,
                slowest=glance.oldest[0] if glance.oldest else None,
                ailing=glance.ailing,
            )
        )
        await asyncio.sleep(_PROGRESS_EVERY_S)


async def _train(
    desk: _Desk,
    backend: AsyncRolloutBackend,
    trainer: TrainerGroup,
    step: int,
    trajectories: list[Trajectory],
) -> None:
    """One GRPO step, the new weights into the engines, and a checkpoint if one is due."""
    config = desk.config
    with desk.timed("train", f"training step {step + 1}/{desk.num_train_steps}"):
        metrics = await trainer.train_step(trajectories, config.sampling.temperature)
    desk.monitor.log(metrics.as_dict(), step=step)
    with desk.timed("update_weights", f"pushing weights version {backend.weights_version + 1}"):
        await backend.update_weights(backend.weights_version + 1, trainer.weights())
    every = config.trainer.save_every_steps
    if every and (step + 1) % every == 0:
        with desk.timed("checkpoint", f"saving a checkpoint of step {step + 1}"):
            await trainer.save(
                str(desk.run_dir.checkpoints), step=step + 1, weights_version=backend.weights_version
            )
        forget_steps_before(desk.run_dir.journal, step + 1)


def _tasks(config: RunConfig) -> list[Task]:
    """The job's task set: the user's, the bundled one, or generated problems for the tiny model."""
    environment = config.task.environment
    if config.task.path is None and environment == "chain_arithmetic":
        return make_tasks(config.seed, _NUM_GENERATED_TASKS)
    return load_tasks(Path(config.task.path or bundled_tasks_path(environment)), environment)


def versions() -> dict[str, str]:
    """Of this project and of what it runs on."""
    own = {"dualpath-rollout": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in _PACKAGES}
