"""One life of a chaos run's driver: `python -m rollout.chaos.life FOLDER`.

It ends when the run's time is over, or is killed. It plays steps of talking agents, goes on where an earlier
life was killed, makes the faults that are due, and writes down at the end of each step what came back:
FOLDER/steps.jsonl, and FOLDER/faults.jsonl as it goes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from engines.errors import EngineError
from rollout.async_backend import AsyncRolloutBackend
from rollout.chaos.environment import talk_tasks
from rollout.chaos.injector import Injector
from rollout.chaos.schedule import Fault, FaultKind, draw_faults
from rollout.chaos.teacher import first_wrong_token
from rollout.chaos.weights import model_of, weights_of
from rollout.compose import load_config
from rollout.errors import RolloutError
from rollout.journal import JournalWriter, read_step
from rollout.journal_record import FORMAT, StepBegan
from rollout.resumption import Resumption, digest_of
from rollout.types import Trajectory

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class ChaosRun:
    """What all lives of a run share; FOLDER/run.json."""

    seed: int
    duration_s: float
    """Faults come for so long; the step that is under way then is played to its end."""
    fault_every_s: float
    tasks_per_step: int
    wait_s: float
    hang_share: float
    fills_disk: bool
    model_path: str
    store: str
    overrides: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> ChaosRun:
        values = json.loads((folder / "run.json").read_text())
        return cls(**values | {"overrides": tuple(values["overrides"])})

    def write(self, folder: Path) -> None:
        (folder / "run.json").write_text(json.dumps(asdict(self)))

    def faults(self) -> list[Fault]:
        """All that are due in the whole run."""
        return draw_faults(self.seed, self.duration_s, self.fault_every_s)


def played_s(folder: Path) -> float:
    """What the run's clock shows: it stands still while there is no driver."""
    with suppress(OSError, ValueError):
        return float((folder / "clock").read_text())
    return 0.0


def append_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass(slots=True)
class _Stillness:
    """The longest time in which no agent of the run did anything, all lives together."""

    path: Path
    moved_s: float = field(default_factory=time.time)
    longest_s: float = 0.0

    def __post_init__(self) -> None:
        with suppress(OSError, ValueError):
            self.moved_s, self.longest_s = json.loads(self.path.read_text())

    def note_move(self) -> None:
        now_s = time.time()
        self.longest_s = max(self.longest_s, now_s - self.moved_s)
        self.moved_s = now_s
        self.path.write_text(json.dumps([self.moved_s, self.longest_s]))


class Life:
    """The driver, until it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._run = ChaosRun.read(folder)
        self._config = load_config(self._run.overrides)
        self._stillness = _Stillness(folder / "stillness.json")
        self._version_file = folder / "version"
        self._clock_file = folder / "clock"
        self._played_before_s = played_s(folder)
        self._began_s: float
        self._updating = asyncio.Lock()

    async def live(self) -> None:
        run = self._run
        async with AsyncRolloutBackend(self._config, keeps_records=True) as backend:
            self._backend = backend
            if self._version:
                await backend.update_weights(self._version, weights_of(run.model_path, self._version))
            injector = Injector(backend, Path(run.store), self._update, fills_disk=run.fills_disk)
            self._began_s = time.monotonic()
            errands = (self._tick(), self._inject(injector), self._nurse())
            running = [asyncio.create_task(errand) for errand in errands]
            try:
                step = len(read_lines(self._folder / "steps.jsonl"))
                while step == 0 or self._now_s < run.duration_s:
                    await self._play(step)
                    step += 1
            finally:
                for errand in running:
                    errand.cancel()
                injector.close()

    @property
    def _now_s(self) -> float:
        return self._played_before_s + time.monotonic() - self._began_s

    async def _tick(self) -> None:
        while True:
            self._clock_file.write_text(f"{self._now_s:.1f}")
            await asyncio.sleep(_LOOK_EVERY_S)

    @property
    def _version(self) -> int:
        """Of the weights that engines hold, or were to be given when a life was cut off."""
        return int(self._version_file.read_text()) if self._version_file.exists() else 0

    async def _update(self) -> None:
        async with self._updating:
            version = max(self._version, self._backend.weights_version) + 1
            self._version_file.write_text(str(version))
            await self._backend.update_weights(version, weights_of(self._run.model_path, version))

    async def _play(self, step: int) -> None:
        run, backend = self._run, self._backend
        tasks = talk_tasks(run.seed, step, run.tasks_per_step, wait_s=run.wait_s, hang_share=run.hang_share)
        samples, earlier = backend.samples(tasks, step), None
        expected, digest = [sample.trajectory_id for sample in samples], digest_of(samples)
        journal_folder = Path(self._config.run_dir) / "journal"
        before = read_step(journal_folder, step)
        if before is not None:
            samples, earlier = Resumption(step, False, None, before).take_up(samples)
        found: list[Trajectory] = []
        watching = asyncio.create_task(self._watch())
        # The version changes within a step; the step is the same one all the same.
        with JournalWriter(journal_folder, StepBegan(FORMAT, step, 0, "chaos", digest)) as journal:
            async with backend.recording(journal), aclosing(backend.play(samples, earlier)) as played:
                async for trajectory in played:
                    found.append(trajectory)
        watching.cancel()
        append_line(self._folder / "steps.jsonl", await asyncio.to_thread(self._judge, expected, found))

    def _judge(self, expected: list[str], found: list[Trajectory]) -> dict[str, Any]:
        back = Counter(trajectory.trajectory_id for trajectory in found)
        greedy = self._config.sampling.temperature == 0
        models = partial(model_of, self._run.model_path)
        told = (first_wrong_token(trajectory, models, greedy=greedy) for trajectory in found)
        return {
            "expected": len(expected),
            "returned": len(found),
            "lost": sorted(set(expected) - set(back)),
            "duplicated": sorted(name for name, times in back.items() if times > 1 or name not in expected),
            "wrong": [why for why in told if why is not None],
            "outcomes": Counter(trajectory.outcome.value for trajectory in found),
            "turns": sum(len(trajectory.turns) for trajectory in found),
            "tokens": sum(sum(segment.loss_mask) for t in found for segment in t.segments),
            "versions": sorted({turn.weights_version for t in found for turn in t.turns}),
            "renewed_tokens": sum(turn.renewed_tokens for t in found for turn in t.turns),
            "errors": sorted({t.error for t in found if t.error}),
        }

    async def _inject(self, injector: Injector) -> None:
        log = self._folder / "faults.jsonl"
        made = {line["number"] for line in read_lines(log)}
        due = (fault for fault in self._run.faults() if fault.number not in made)
        for fault in due:
            if fault.kind is FaultKind.KILL_DRIVER:
                continue  # somebody else's to make
            await asyncio.sleep(max(0.0, fault.at_s - self._now_s))
            try:
                what = await injector.inject(fault)
            except (EngineError, RolloutError, OSError) as error:
                what = f"not made: {error}"
            line = {"number": fault.number, "kind": fault.kind.value, "at_s": self._now_s, "what": what}
            append_line(log, line)

    async def _watch(self) -> None:
        """Note when agents move."""
        num_moves = -1
        while True:
            glance = await self._backend.glance(0)
            if glance.num_moves != num_moves:
                num_moves = glance.num_moves
                self._stillness.note_move()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _nurse(self) -> None:
        """Give weights again where no engine is left that holds them, as whoever trains would."""
        backend = self._backend
        while True:
            if backend.needs_weights:
                with suppress(EngineError, RolloutError):
                    async with self._updating:
                        await backend.restore_weights(
                            weights_of(self._run.model_path, backend.weights_version)
                        )
            await asyncio.sleep(1.0)


def main() -> None:
    asyncio.run(Life(Path(sys.argv[1])).live())


if __name__ == "__main__":
    main()
