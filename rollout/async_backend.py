"""The rollout backend on one event loop: engines, agent workers and weights behind one object.

It plays tasks and gives back trajectories. It trains nothing, keeps no figures, and knows no task by name.
`rollout.backend.RolloutBackend` is its synchronous twin.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cluster import ClusterSpec, EngineCluster, gpu_engines_by_node, node_ids, start_cluster
from engines.measured import Forward
from engines.model.runner import NamedArray
from engines.timeline import Span
from engines.types import EngineId, EngineRole, Weights
from kvstore.host_facts import HostFacts, host_facts
from kvstore.keys import weights_id_after_update, weights_id_of_files
from kvstore.transport_choice import TransportChoice, choose_transport
from rollout.actors import RayCluster
from rollout.agent_run import Sample
from rollout.cluster_spec import BASE_WEIGHTS, cluster_spec, model_of, store_directory
from rollout.concurrency import ConcurrencyPolicy, HitCounts, first_limit
from rollout.config import RunConfig
from rollout.controller import ANSWER_SLACK_S, Controller, Earlier, Running
from rollout.errors import UserError
from rollout.glance import Glance
from rollout.journal import JournalWriter
from rollout.limits import Limits
from rollout.metrics import KVBytes
from rollout.paced_engines import paced_spec
from rollout.recorder import Recorder
from rollout.recovery import Recovery
from rollout.replay_history import compute_histories, write_histories
from rollout.replay_task import ReplayTask
from rollout.resumption import StartWeights
from rollout.serve.config import ServeConfig
from rollout.serve.extra import load_serving
from rollout.submitted import Submitted
from rollout.tasks import Task
from rollout.tools.figures import ToolReport
from rollout.types import Trajectory
from rollout.watchdog import Watchdog
from rollout.weight_stream import NamedTensors, buckets
from rollout.worker import AgentWorker, WorkerSpec

if TYPE_CHECKING:
    from rollout.serve.endpoint import Endpoint

logger = logging.getLogger(__name__)

_BUCKET_BYTES = 64 << 20
_THROTTLE_EVERY_S = 2.0
_REPORT_DEADLINE_S = 5.0
AnyTask = Task | ReplayTask
_STORE_FIGURES = ("stored_bytes", "evicted_bytes", "quarantined_slots")


class AsyncRolloutBackend:
    """`async with AsyncRolloutBackend(config) as backend: await backend.generate(tasks)`."""

    def __init__(
        self, config: RunConfig, *, weights: StartWeights | None = None, keeps_records: bool = False
    ) -> None:
        """`weights`: what engines begin with in place of the model's own. `keeps_records`: for
        `recording`."""
        self._config = config
        self._keeps_records = keeps_records
        self._model = model_of(config)
        self._run_id = uuid.uuid4().hex[:12]
        files = [] if self._model is None else self._model.weight_files
        self._base_weights = weights_id_of_files(files) if files else BASE_WEIGHTS
        self._start = weights
        self._num_calls = 0
        self._submitted = Submitted()
        self._ray: RayCluster | None = None
        self._transport: TransportChoice
        self._cluster: EngineCluster
        self._controller: Controller
        self._recovery: Recovery
        self._workers: list[Any] = []

    # -- start and end -------------------------------------------------------------------------------

    async def __aenter__(self) -> AsyncRolloutBackend:
        await self.start()
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start engines and workers; whatever was started is stopped again if one of them cannot."""
        config = self._config
        num_nodes = config.engines.prefill_nodes + config.engines.decode_nodes
        ray = RayCluster(
            config.ray.address,
            num_nodes=num_nodes,
            start_deadline_s=config.engines.start_deadline_s,
            gpu_actors=gpu_engines_by_node(config.engines),
        )
        self._ray = ray
        try:
            store_directory(config).mkdir(parents=True, exist_ok=True)
            self._transport = choose_transport(config.transport, await self._hosts(ray))
            logger.info(self._transport.told)
            self._cluster = await start_cluster(ray.spawn, self._spec(), ray.restart)
            self._workers = await self._start_workers(ray)
        except BaseException:
            await self.close(keep_kv=self._config.resume is not None)
            raise
        self._controller = Controller(
            self._workers,
            max_running=config.num_agents,
            wall_time_s=config.task.wall_time_s,
            rules=config.controller.rules(config.task.group_size),
            recovery=self._recovery,
        )
        self._recorder = Recorder(self._workers)
        self._concurrency = self._adaptive_concurrency()

    async def close(self, *, keep_kv: bool = False) -> None:
        """Stop everything this backend started. Idempotent.

        KV in a folder of the run's own goes with it, unless `keep_kv`.
        """
        await self._submitted.close()
        ray, self._ray = self._ray, None
        if ray is None:
            return
        with suppress(AttributeError, TimeoutError):
            # A store that is told so closes its files; a dead cluster is none the worse for not being told.
            await asyncio.wait_for(self._close_engines(), 2.0)
        await asyncio.to_thread(ray.close)
        if self._config.kvstore.path is None and not keep_kv:
            shutil.rmtree(store_directory(self._config), ignore_errors=True)

    # -- rollouts ------------------------------------------------------------------------------------

    async def prepare(self, tasks: Sequence[ReplayTask]) -> int:
        """Have the KV of the tasks' histories in the store, untimed; the tokens of it.

        Paced engines' KV is written as they would write it; a model computes its own. Raises EngineError, or
        RolloutError if the store does not take it.
        """
        with_history = [task for task in tasks if task.session.history]
        paced = paced_spec(self._config)
        if paced is None:
            num_tokens = await compute_histories(with_history, self._workers)
        else:
            num_tokens = await write_histories(with_history, self._cluster, paced)
        await self.settled()
        return num_tokens

    async def generate(self, tasks: Sequence[AnyTask]) -> list[Trajectory]:
        """Play each task `task.group_size` times; trajectories in the order of tasks and samples."""
        samples = self.samples(tasks)
        place = {sample.trajectory_id: index for index, sample in enumerate(samples)}
        found = [t async for t in self.play(samples)]
        return sorted(found, key=lambda trajectory: place[trajectory.trajectory_id])

    async def stream(self, tasks: Sequence[AnyTask]) -> AsyncIterator[Trajectory]:
        """The same, each trajectory as soon as it ends."""
        async with aclosing(self.play(self.samples(tasks))) as trajectories:
            async for trajectory in trajectories:
                yield trajectory

    def samples(self, tasks: Sequence[AnyTask], step: int | None = None) -> list[Sample]:
        """What there is to play of `tasks`, named by `step`, or by the number of calls so far.

        Names are unique in the job; the random numbers of a sample are drawn by its name.
        """
        self._num_calls += 1
        prefix = f"{self._num_calls if step is None else step}/"
        group_size = self._config.task.group_size + self._config.controller.oversample
        return [
            Sample(
                task,
                f"{prefix}{index}-{task.task_id}",
                sample_index,
                start_after_s=task.start_after_s if isinstance(task, ReplayTask) else 0.0,
            )
            for index, task in enumerate(tasks)
            for sample_index in range(group_size)
        ]

    async def play(
        self, samples: Sequence[Sample], earlier: Earlier | None = None
    ) -> AsyncGenerator[Trajectory, None]:
        """Each trajectory of `samples` as soon as it ends, exactly once; leaving early ends what still runs.

        Raises RolloutError where a group is short that must not be (controller.group_policy). When nothing
        moves for a while, the log and run_dir/stalls.txt tell who waits where.
        """
        config = self._config.controller
        path, oldest = self._stalls, config.stall_oldest
        async with (
            Watchdog(self, path, stall_s=config.stall_s, num_oldest=oldest),
            self._throttled(),
            aclosing(self._controller.run(samples, earlier)) as trajectories,
        ):
            async for trajectory in trajectories:
                yield trajectory

    @asynccontextmanager
    async def recording(self, journal: JournalWriter) -> AsyncIterator[None]:
        """Inside, every finished turn is written to `journal`, and is what a lost worker's agents go on
        from."""
        assert self._keeps_records
        self._recovery.records_in((journal.folder, journal.step))
        try:
            async with self._recorder.recording(journal, self._config.controller.journal_sync_s):
                yield
        finally:
            self._recovery.records_in(None)

    def submit(self, task: AnyTask) -> list[str]:
        """Begin to play one task's group; returns the trajectory ids for `result` and `abort`."""
        samples = self.samples([task])
        return self._submitted.add(samples, self.play(samples))

    async def result(self, trajectory_id: str, deadline_s: float | None = None) -> Trajectory:
        """The trajectory of a submitted sample, once it ends. Each is handed out once."""
        return await self._submitted.result(trajectory_id, deadline_s)

    async def abort(self, trajectory_id: str) -> None:
        """End a running trajectory; it comes back truncated, with what it has."""
        await self._controller.abort(trajectory_id)

    @property
    def running(self) -> list[Running]:
        """Trajectories under way, oldest first."""
        return self._controller.running

    async def glance(self, num_oldest: int) -> Glance:
        """What the agents do now: turns so far, and the trajectories that have been running longest."""
        states = self._cluster.supervisor.watch.ailing
        ailing = tuple(f"{name} is {state.value}" for name, state in states.items())
        return replace(await self._controller.glance(num_oldest), ailing=ailing)

    async def stacks(self) -> dict[str, str]:
        """What this process and the workers are doing, by name; those that answer."""
        return await self._controller.stacks()

    def health_figures(self) -> dict[str, float]:
        """Parts of the cluster by how they are now, and restarts so far, as `health/` figures."""
        figures = self._cluster.supervisor.watch.figures()
        return {f"health/{name}": value for name, value in figures.items()}

    async def agent_figures(self) -> dict[str, float]:
        """How many agents may be at work, if that is limited, and what of their KV was lost between turns."""
        glance, most = await self._controller.glance(0), self._controller.max_running
        lost = {"rollout/lost_hit_tokens": float(glance.lost_hit_tokens)}
        return lost if most is None else lost | {"rollout/max_running": float(most)}

    @property
    def num_replaced(self) -> int:
        """Failed trajectories that were played again, since the start."""
        return self._controller.num_replaced

    # -- weights -------------------------------------------------------------------------------------

    @property
    def transport(self) -> TransportChoice:
        """How KV moves between this job's nodes, and why so."""
        return self._transport

    @property
    def weights(self) -> Weights:
        """What the engines hold."""
        return self._cluster.weights

    @property
    def weights_version(self) -> int:
        return self.weights.version

    async def update_weights(self, version: int, weights: NamedTensors) -> None:
        """Load new weights into every engine, bucket by bucket.

        `weights` yields (name, tensor): torch tensors or numpy arrays, whole, named as in the model. What
        becomes of trajectories under way is `on_update`, of their KV `kv_on_update`. Raises ValueError unless
        `version` is above the engines' own, and RolloutError if trajectories do not end.
        """
        if version <= self.weights_version:
            raise ValueError(f"version must be > {self.weights_version}, the engines' own; got {version}")
        weights_id = weights_id_after_update(self._base_weights, self._run_id, version)
        with self._controller.held():
            if self._config.on_update == "abort":
                await self._controller.abort_all()
            if self._config.on_update != "continue":
                await self._controller.drained(self._config.task.wall_time_s + ANSWER_SLACK_S)
            await self._cluster.update_weights(
                Weights(version, weights_id),
                self._shared(buckets(weights, _BUCKET_BYTES)),
                self._config.task.turn_deadline_s,
            )

    @property
    def needs_weights(self) -> bool:
        """Whether the engines that held the weights of the last update were lost, all at once. Turns wait for
        `restore_weights` then, as long as their deadlines let them."""
        return self._cluster.supervisor.needs_weights

    async def restore_weights(self, weights: NamedTensors) -> None:
        """Give the weights of the last update again, to engines that need them; turns go on, and their KV is
        hit as before.

        Raises EngineFailed if all engines are lost meanwhile: then it is due again.
        """
        await self._cluster.update_weights(
            self.weights, self._shared(buckets(weights, _BUCKET_BYTES)), self._config.task.turn_deadline_s
        )

    async def pause(self) -> None:
        """Start no further turn; returns when the running ones are through."""
        await self._cluster.pause(self._config.task.turn_deadline_s)

    async def resume(self) -> None:
        await self._cluster.resume()

    async def settled(self) -> None:
        """Return when no turn runs and every block that is to be stored is."""
        await self.pause()
        await self.resume()

    # -- an endpoint ---------------------------------------------------------------------------------

    def serve(
        self,
        config: ServeConfig | None = None,
        *,
        on_ended: Callable[[Trajectory], None] | None = None,
        listener: socket.socket | None = None,
    ) -> AbstractAsyncContextManager[Endpoint]:
        """Inside, an OpenAI-compatible endpoint for agents that run elsewhere.

        `config`: None is `serve` of the configuration. `on_ended` is given the trajectory of every session,
        once. `listener`: a port taken before. Raises UserError if the port cannot be had, or without the
        extra `serve`.
        """
        if self._model is None:
            raise UserError("paced engines have no text to serve; use engines=transformers")
        served = self._config if config is None else replace(self._config, serve=config)
        engines = self._cluster.client_parts().client()
        return load_serving()(self, engines, self._model, served, on_ended=on_ended, listener=listener)

    # -- figures -------------------------------------------------------------------------------------

    async def kv_bytes(self) -> KVBytes:
        """KV bytes moved through the nodes' storage NICs since the start."""
        moved = (await self._cluster.storage_bytes()).values()
        return KVBytes(
            read_prefill_side=sum(node.read_prefill_side for node in moved),
            read_decode_side=sum(node.read_decode_side for node in moved),
            read_dram=sum(node.read_dram for node in moved),
            written=sum(node.written for node in moved),
            snic_bytes=tuple(
                node.read_prefill_side + node.read_decode_side + node.read_ahead for node in moved
            ),
            read_ahead=sum(node.read_ahead for node in moved),
        )

    async def store_figures(self) -> dict[str, float]:
        """What the KV store holds and has met since the start, as `kv/` figures.

        kv/direct_io and kv/caching_stopped count the nodes whose I/O goes past the page cache, and those
        whose store takes no more blocks.
        """
        scheduler = await self._cluster.scheduler_figures()
        totals = Counter({name: scheduler.get(name, 0.0) for name in _STORE_FIGURES})
        for figures in (await self._cluster.node_figures()).values():
            totals.update(figures)
        return {f"kv/{name}": float(value) for name, value in totals.items()}

    async def estimate_figures(self) -> dict[str, float]:
        """How far off the prefill engines' estimates lately were, on the mean over what they computed.

        scheduler/estimate_mape is that of attention, which the quota of a batch bounds;
        scheduler/forward_mape that of whole forwards.
        """
        by_engine = (await self._cluster.prefill_figures()).values()
        forwards = sum(figures["forwards"] for figures in by_engine)
        return {
            f"scheduler/{name}": sum(figures["forwards"] * figures[name] for figures in by_engine)
            / max(forwards, 1)
            for name in ("estimate_mape", "forward_mape")
        }

    async def tool_figures(self) -> Mapping[str, float]:
        """What the tools of all agent workers did since the start, as `tools/` figures.

        A worker that is dead or silent is not counted.
        """
        asked = (asyncio.wait_for(worker.tool_report(), _REPORT_DEADLINE_S) for worker in self._workers)
        told = await asyncio.gather(*asked, return_exceptions=True)
        return sum((each for each in told if isinstance(each, ToolReport)), ToolReport()).series()

    async def metrics(self) -> Mapping[str, float]:
        """What the backend holds and has done since the start, as flat slash-named figures."""
        figures: dict[str, float] = {"rollout/weights_version": self.weights_version}
        scheduler = await self._cluster.scheduler_figures()
        figures |= {f"scheduler/{k}": v for k, v in scheduler.items() if k not in _STORE_FIGURES}
        figures |= await self.store_figures()
        figures |= await self.estimate_figures()
        figures |= await self.tool_figures()
        figures |= self.health_figures()
        kv = await self.kv_bytes()
        figures["kv/read_bytes/prefill_side"] = kv.read_prefill_side
        figures["kv/read_bytes/decode_side"] = kv.read_decode_side
        figures["kv/read_bytes/dram"] = kv.read_dram
        figures["kv/read_bytes/ahead"] = kv.read_ahead
        figures["kv/written_bytes"] = kv.written
        for engine_id, counts in (await self._cluster.token_counts()).items():
            figures |= {f"engines/{engine_id}/{k}_tokens": v for k, v in asdict(counts).items()}
        for engine_id, batches in (await self._cluster.prefill_figures()).items():
            figures |= {f"engines/{engine_id}/{k}": v for k, v in batches.items()}
        return figures

    async def failures(self) -> Mapping[EngineId, str]:
        """What ended engines that no longer work."""
        return await self._cluster.failures()

    async def spans(self) -> list[Span]:
        """What the engines and nodes did for the turns that are drawn."""
        return await self._cluster.spans()

    async def forwards(self, role: EngineRole) -> Mapping[EngineId, Sequence[Forward]]:
        """The last steps of every engine of `role`, where engines are paced."""
        return await self._cluster.forwards(role)

    @property
    def cluster(self) -> EngineCluster:
        """The engines and nodes themselves, for tests and for faults that are made on purpose."""
        return self._cluster

    @property
    def workers(self) -> Sequence[Any]:
        """The agent workers themselves, for the same."""
        return self._workers

    async def verified_bytes(self) -> int:
        """KV bytes that paced engines found as they were written."""
        counts, layout = (await self._cluster.token_counts()).values(), self._cluster.layout
        return sum(each.verified for each in counts) * layout.token_bytes * layout.num_layers

    # -- inside --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _throttled(self) -> AsyncIterator[None]:
        """Inside, as many agents are at work as KV pressure allows, unless their number is fixed."""
        throttle = asyncio.create_task(self._throttle()) if self._concurrency is not None else None
        try:
            yield
        finally:
            if throttle is not None:
                throttle.cancel()

    async def _throttle(self) -> None:
        assert self._concurrency is not None
        while True:
            glance = await self._controller.glance(0)
            counts = HitCounts(glance.expected_hit_tokens, glance.lost_hit_tokens)
            self._controller.max_running = self._concurrency.limit(counts, len(self._controller.running))
            await asyncio.sleep(_THROTTLE_EVERY_S)

    def _adaptive_concurrency(self) -> ConcurrencyPolicy | None:
        """None where the number of agents is fixed."""
        config, layout = self._config, self._cluster.layout
        if config.num_agents is not None or not config.controller.adaptive:
            return None
        token_bytes = layout.token_bytes * layout.num_layers
        return ConcurrencyPolicy(
            first_limit(config.kvstore.capacity_bytes, token_bytes, config.task.max_context_tokens)
        )

    @property
    def _stalls(self) -> Path:
        return Path(self._config.run_dir).absolute() / "stalls.txt"

    async def _shared(self, parts: AsyncIterator[list[NamedArray]]) -> AsyncIterator[Any]:
        """Buckets where all engines can map them, one at a time."""
        assert self._ray is not None
        async for bucket in parts:
            yield await self._ray.share(bucket)

    async def _start_workers(self, ray: RayCluster) -> list[Any]:
        config, task, model = self._config, self._config.task, self._model
        spec = WorkerSpec(
            parts=self._cluster.client_parts(),
            model_path=None if model is None else str(model.path),
            sampling=self._config.sampling.params(),
            limits=Limits(
                max_turns=task.max_turns,
                max_context_tokens=min(
                    task.max_context_tokens,
                    task.max_context_tokens if model is None else model.max_context_tokens,
                ),
                wall_time_s=task.wall_time_s,
                turn_deadline_s=task.turn_deadline_s,
                tool_timeout_s=task.tool_timeout_s,
            ),
            tools=config.tools,
            sandbox=config.sandbox,
            tool_wait_scale=config.tool_wait_scale / (1.0 if model is not None else config.time_scale),
            keeps_records=self._keeps_records,
            stalls=(self._stalls, config.controller.stall_s),
        )
        names = [f"worker-{index}" for index in range(config.ray.agent_workers)]
        workers = await asyncio.gather(
            *(
                ray.spawn(AgentWorker, replace(spec, name=name), name=name, node=None, restarts=True)
                for name in names
            )
        )
        supervisor = self._cluster.supervisor
        for name, worker in zip(names, workers, strict=True):
            supervisor.add(name, worker, partial(self._forget_earlier, name, worker))
        self._recovery = Recovery(supervisor, names, config.engines.start_deadline_s)
        return workers

    async def _forget_earlier(self, name: str, worker: Any) -> None:
        """End the turns of a worker's earlier processes."""
        await self._cluster.scheduler.forget_client(name, but=f"{name}/{await worker.alive()}")

    def _spec(self) -> ClusterSpec:
        start, model_path = self._start, "" if self._model is None else str(self._model.path)
        weights = Weights(0, self._base_weights)
        if start is not None:
            model_path = start.model_path
            anew = weights_id_after_update(self._base_weights, self._run_id, start.version)
            weights = Weights(start.version, start.weights_id or anew)
        store_path = str(store_directory(self._config))
        return cluster_spec(
            self._config,
            model_path,
            store_path,
            run_id=self._run_id,
            weights=weights,
            transport=self._transport.config,
        )

    async def _hosts(self, ray: RayCluster) -> list[HostFacts]:
        """Of every node, or of this host where all of them will be on it."""
        look = partial(host_facts, self._config.transport)
        if ray.is_local:
            return [look()]
        return await ray.on_hosts(node_ids(self._config.engines), look)

    async def _close_engines(self) -> None:
        self._cluster.supervisor.close()  # first of all: what ends now is to stay so
        parts = (*self._cluster.nodes.values(), self._cluster.scheduler)
        await asyncio.gather(*(part.close() for part in parts), return_exceptions=True)
