"""One turn through its attempts, against scripted peers and a clock that moves when a peer answers."""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from dataclasses import dataclass, field

import pytest

from engines.client import ClientParts, EngineClient
from engines.errors import EngineFailed, PlacementTimeout, RequestRefused, StaleWeights, TurnFailed
from engines.types import (
    EngineId,
    FinishReason,
    FirstToken,
    GenerateResult,
    HitLost,
    NodeId,
    PhaseSeconds,
    Placement,
    PrefillJob,
    RequestId,
    SamplingParams,
    TurnRequest,
    TurnResult,
    Weights,
)
from kvstore.keys import BlockKey, WeightsId, chain_root
from kvstore.layout import BlockLayout, KVFormat, KVGroup
from tests.engines.scheduling.turns import scheduler_config

LAYOUT = BlockLayout(KVFormat("float32", 1, (KVGroup("kv", 16),)), block_tokens=4)
OLD, NEW = Weights(0, WeightsId("old")), Weights(1, WeightsId("new"))
SAMPLING = SamplingParams(max_tokens=10)
PROMPT = list(range(11))

Script = deque[FirstToken | HitLost | GenerateResult | Exception]


@dataclass
class Cluster:
    """Scheduler and engines that answer from scripts, each answer a second after the question."""

    prefill_script: Script = field(default_factory=deque)
    decode_script: Script = field(default_factory=deque)
    hit_tokens: deque[int] = field(default_factory=deque)
    weights_held: list[Weights] = field(default_factory=lambda: [OLD])
    """What each attempt finds; the last one stays."""
    refuses: Exception | None = None
    abort_fails: bool = False
    abort_hangs: bool = False
    now_s: float = 100.0
    requests: list[TurnRequest] = field(default_factory=list)
    jobs: list[PrefillJob] = field(default_factory=list)
    unanswered_by: frozenset[NodeId] = frozenset()
    """Nodes that the prefill engine names when it lets go of a turn."""
    decode_stops: bool = False
    """The decode engine is stopped as soon as it has its first turn, and the scheduler finds out."""
    absent_parts: frozenset[str] = frozenset()
    news: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    more: deque[list[int]] = field(default_factory=deque)
    """What the decode engine tells whoever follows a turn; it ends the turn when all is told."""
    all_told: asyncio.Event = field(default_factory=asyncio.Event)
    safe_nodes: list[frozenset[NodeId]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    """Calls that end an attempt, in order."""

    def client(self, max_attempts: int = 3) -> EngineClient:
        config = scheduler_config(place_deadline_s=60.0, max_attempts=max_attempts)
        engines = ({EngineId("p"): PrefillSide(self)}, {EngineId("d"): DecodeSide(self)})
        abort_deadline_s = 0.05 if self.abort_hangs else 5.0
        parts = ClientParts(self, *engines, config, LAYOUT, OLD, abort_deadline_s=abort_deadline_s)
        return EngineClient(parts, clock=lambda: self.now_s)

    async def weights(self) -> Weights:
        return self.weights_held[min(len(self.requests), len(self.weights_held) - 1)]

    async def submit(self, request: TurnRequest) -> Placement:
        weights = await self.weights()
        if request.weights_version != weights.version:
            raise StaleWeights(f"{request.request_id} names other weights")
        self.requests.append(request)
        if self.absent_parts:  # the next one is there
            self.set_absent()
            await asyncio.sleep(0.01)
        if self.refuses is not None:
            raise self.refuses
        self.now_s += 1
        return Placement(
            request_id=request.request_id,
            prefill_engine=EngineId("p"),
            prefill_node=NodeId("pn"),
            decode_engine=EngineId("d"),
            decode_node=NodeId("dn"),
            read_plan=(),
            hit_tokens=self.hit_tokens.popleft() if self.hit_tokens else 0,
            prefill_slots=(),
            decode_slots=(),
            weights_version=weights.version,
            weights_id=weights.weights_id,
            waited=PhaseSeconds(queue=0.5, buffer_wait=0.25),
        )

    async def absent(self, seen: int, wait_s: float) -> tuple[int, frozenset[str]]:
        if self.news == seen:
            await self.changed.wait()
            self.changed.clear()
        return self.news, self.absent_parts

    def set_absent(self, *parts: str) -> None:
        self.news, self.absent_parts = self.news + 1, frozenset(parts)
        self.changed.set()

    async def finish(
        self, request_id: RequestId, *, resolved: bool = True, safe_nodes: frozenset[NodeId] = frozenset()
    ) -> None:
        self.safe_nodes.append(safe_nodes)
        self.said.append(f"finish {request_id} {'resolved' if resolved else 'unresolved'}")

    def answer(self, script: Script) -> FirstToken | HitLost | GenerateResult:
        self.now_s += 1
        answer = script.popleft()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aborted(self, side: str, request_id: RequestId) -> None:
        self.said.append(f"{side} abort {request_id}")
        if self.abort_fails:
            raise EngineFailed("dead")
        if self.abort_hangs:
            await asyncio.Event().wait()


@dataclass
class PrefillSide:
    cluster: Cluster

    async def prefill(self, job: PrefillJob) -> FirstToken | HitLost:
        self.cluster.jobs.append(job)
        answer = self.cluster.answer(self.cluster.prefill_script)
        assert not isinstance(answer, GenerateResult)
        return answer

    async def abort(self, request_id: RequestId) -> frozenset[NodeId]:
        await self.cluster.aborted("prefill", request_id)
        return self.cluster.unanswered_by


@dataclass
class DecodeSide:
    cluster: Cluster
    told: list[list[int]] = field(default_factory=list)

    async def generate(self, request_id: RequestId) -> GenerateResult:
        if self.cluster.decode_stops and len(self.cluster.requests) == 1:
            self.cluster.set_absent("d", "dn")
            await asyncio.Event().wait()
        if self.cluster.more:
            await self.cluster.all_told.wait()
        answer = self.cluster.answer(self.cluster.decode_script)
        assert isinstance(answer, GenerateResult)
        return answer

    async def generated(self, request_id: RequestId, seen: int, wait_s: float) -> array[int] | None:
        assert seen == 1 + sum(map(len, self.told))
        if not self.cluster.more:
            self.cluster.all_told.set()
            return None
        self.told.append(self.cluster.more.popleft())
        return array("i", self.told[-1])

    async def abort(self, request_id: RequestId) -> None:
        await self.cluster.aborted("decode", request_id)


def first(token_id: int, reason: FinishReason | None = None, hit_tokens: int = 0) -> FirstToken:
    return FirstToken(token_id, -1.0, reason, PhaseSeconds(prefill=0.5), hit_tokens)


def generated(*token_ids: int, reason: FinishReason = FinishReason.STOP_ID) -> GenerateResult:
    return GenerateResult(
        token_ids=array("i", token_ids),
        logprobs=array("f", [-0.5] * len(token_ids)),
        finish_reason=reason,
        second_token_s=0.25 if len(token_ids) > 1 else None,
        phases=PhaseSeconds(decode=0.75),
    )


async def turn(client: EngineClient, deadline_s: float = 1000.0) -> TurnResult:
    context = client.open_context()
    context.append(PROMPT)
    return await client.run_turn(context, RequestId("turn"), SAMPLING, deadline_s)


def run_turn(cluster: Cluster, max_attempts: int = 3, deadline_s: float = 1000.0) -> TurnResult:
    return asyncio.run(turn(cluster.client(max_attempts), deadline_s))


# A turn that goes well --------------------------------------------------------------------------


def test_a_turn_is_placed_prefilled_decoded_and_finished_once() -> None:
    cluster = Cluster(deque([first(5, hit_tokens=8)]), deque([generated(5, 6, 7)]), deque([8]))
    result = run_turn(cluster)
    assert list(result.token_ids) == [5, 6, 7]
    assert (result.prompt_tokens, result.hit_tokens, result.num_attempts) == (11, 8, 1)
    assert (result.finish_reason, result.weights_version) == (FinishReason.STOP_ID, 0)
    assert cluster.said == ["finish turn#1 resolved"]


def test_the_scheduler_sees_keys_and_lengths_and_the_prefill_engine_only_the_missing_ids() -> None:
    cluster = Cluster(deque([first(5)]), deque([generated(5, 6)]), deque([8]))
    run_turn(cluster)
    (request,), (job,) = cluster.requests, cluster.jobs
    assert (request.prompt_tokens, request.max_output_tokens, request.weights_version) == (11, 10, 0)
    assert request.keys == job.keys
    assert len(request.keys) == 2
    assert (list(job.miss_ids), list(job.earlier_ids)) == ([8, 9, 10], [])
    assert job.chain_root == chain_root(OLD.weights_id, LAYOUT.format)


def test_a_turn_that_its_first_token_ends_is_never_asked_for_at_decode() -> None:
    result = run_turn(Cluster(deque([first(5, FinishReason.STOP_ID)])))
    assert list(result.token_ids) == [5]
    assert list(result.logprobs) == [-1.0]
    assert (result.ttst_s, result.tpot_s) == (None, None)


def test_times_are_taken_where_the_caller_stands_and_phases_sum_to_them() -> None:
    # One second each to be placed, prefilled and decoded.
    cluster = Cluster(deque([first(5)]), deque([generated(5, 6, 7)]))
    result = run_turn(cluster)
    assert (result.ttft_s, result.ttst_s, result.duration_s) == (2.0, 2.25, 3.0)
    assert result.tpot_s == 0.5
    assert result.phases == PhaseSeconds(queue=0.5, buffer_wait=0.25, prefill=0.5, decode=0.75, other=1.0)


def test_whoever_follows_a_turn_hears_of_its_tokens_as_they_come() -> None:
    cluster = Cluster(
        deque([first(5)]),
        deque([generated(5, 6, 7, 8)]),
        more=deque([[6], [], [7, 8]]),
        hit_tokens=deque([0]),
    )
    heard: list[list[int]] = []

    async def follow() -> TurnResult:
        client = cluster.client()
        with client.following(RequestId("turn"), lambda token_ids: heard.append(list(token_ids))):
            return await turn(client)

    assert list(asyncio.run(follow()).token_ids) == [5, 6, 7, 8]
    assert heard == [[5], [5, 6], [5, 6, 7, 8]]


# Attempts ---------------------------------------------------------------------------------------


def test_a_preempted_turn_goes_on_after_the_tokens_it_has() -> None:
    preempted = generated(5, 6, 7, reason=FinishReason.PREEMPTED)
    cluster = Cluster(
        deque([first(5), first(8, hit_tokens=12)]), deque([preempted, generated(8, 9)]), deque([0, 12])
    )
    result = run_turn(cluster, max_attempts=1)
    assert list(result.token_ids) == [5, 6, 7, 8, 9]
    assert (result.num_attempts, result.recomputed_tokens, result.hit_tokens) == (2, 2, 0)
    request, job = cluster.requests[1], cluster.jobs[1]
    assert (request.request_id, request.prompt_tokens, request.max_output_tokens) == ("turn#2", 14, 7)
    assert (list(job.miss_ids), list(job.earlier_ids)) == ([6, 7], [5, 6, 7])
    assert [job.sample_id for job in cluster.jobs] == ["turn", "turn"]
    assert cluster.said == ["finish turn#1 resolved", "finish turn#2 resolved"]


def test_the_first_attempts_first_and_second_token_are_the_turns() -> None:
    preempted = generated(5, reason=FinishReason.PREEMPTED)
    cluster = Cluster(deque([first(5), first(6)]), deque([preempted, generated(6, 7)]))
    result = run_turn(cluster)
    # The second token is the second attempt's first: 3 s of one attempt, 2 s of the other.
    assert (result.ttft_s, result.ttst_s, result.duration_s) == (2.0, 5.0, 6.0)
    assert result.phases.total == pytest.approx(6.0)


def test_a_lost_hit_is_sent_again_and_counts_as_no_failure() -> None:
    lost = HitLost(4, (BlockKey(b"k" * 16),))
    cluster = Cluster(deque([lost, lost, first(5)]), deque([generated(5, 6)]), deque([8, 4, 0]))
    result = run_turn(cluster, max_attempts=1)
    assert (result.num_attempts, result.hit_tokens, result.recomputed_tokens) == (3, 0, 0)
    assert [len(job.miss_ids) for job in cluster.jobs] == [3, 7, 11]
    assert all(request.failed_engines == frozenset() for request in cluster.requests)
    assert cluster.said == [f"finish turn#{i} resolved" for i in (1, 2, 3)]


def test_a_failed_attempt_is_called_back_first_at_prefill_and_its_tokens_are_forgotten() -> None:
    cluster = Cluster(deque([first(5), first(5)]), deque([EngineFailed("broke"), generated(5, 6)]))
    result = run_turn(cluster)
    assert list(result.token_ids) == [5, 6]
    assert cluster.said == [
        "prefill abort turn#1",
        "decode abort turn#1",
        "finish turn#1 resolved",
        "finish turn#2 resolved",
    ]
    assert [request.failed_engines for request in cluster.requests] == [frozenset(), {"p", "d"}]


@pytest.mark.parametrize("how", ["abort_fails", "abort_hangs"])
def test_slots_of_engines_that_do_not_let_go_are_unresolved_and_both_are_asked(how: str) -> None:
    cluster = Cluster(deque([EngineFailed("broke"), first(5)]), deque([generated(5, 6)]))
    setattr(cluster, how, True)
    run_turn(cluster)
    assert cluster.said == [
        "prefill abort turn#1",
        "decode abort turn#1",
        "finish turn#1 unresolved",
        "finish turn#2 resolved",
    ]


def test_a_turn_whose_decode_engine_stops_answering_is_tried_again_without_waiting_for_it() -> None:
    cluster = Cluster(deque([first(5), first(5)]), deque([generated(5, 6)]), decode_stops=True)
    assert list(run_turn(cluster).token_ids) == [5, 6]
    assert cluster.said[:2] == ["prefill abort turn#1", "finish turn#1 unresolved"]
    assert cluster.safe_nodes[0] == {"pn"}
    assert cluster.requests[1].failed_engines == {"d"}


def test_only_the_node_that_gave_the_prefill_engine_no_answer_is_unsafe() -> None:
    cluster = Cluster(deque([EngineFailed("broke"), first(5)]), deque([generated(5, 6)]))
    cluster.unanswered_by = frozenset((NodeId("dn"),))
    run_turn(cluster)
    assert cluster.said[2] == "finish turn#1 unresolved"
    assert cluster.safe_nodes[0] == {"pn"}


def test_after_the_last_attempt_the_turn_fails_with_the_last_reason() -> None:
    cluster = Cluster(deque([EngineFailed("one"), EngineFailed("two")]))
    with pytest.raises(TurnFailed, match="turn failed 2 times, the last time: two"):
        run_turn(cluster, max_attempts=2)
    assert [line for line in cluster.said if line.startswith("finish")] == [
        "finish turn#1 resolved",
        "finish turn#2 resolved",
    ]


def test_a_turn_past_its_deadline_is_not_tried_again() -> None:
    cluster = Cluster(deque([EngineFailed("slow")]))
    with pytest.raises(TurnFailed, match=r"turn was not done within 1\.5 s"):
        run_turn(cluster, deadline_s=1.5)
    assert len(cluster.requests) == 1


@pytest.mark.parametrize("error", [RequestRefused("too large"), PlacementTimeout("no place")])
def test_what_the_scheduler_refuses_comes_as_it_is_and_is_finished(error: Exception) -> None:
    cluster = Cluster(refuses=error)
    with pytest.raises(type(error), match=str(error)):
        run_turn(cluster)
    assert cluster.said == ["finish turn#1 resolved"]


def test_an_empty_context_is_refused() -> None:
    client = Cluster().client()
    with pytest.raises(RequestRefused, match="turn has an empty context"):
        asyncio.run(client.run_turn(client.open_context(), RequestId("turn"), SAMPLING, 10.0))


# Weights ----------------------------------------------------------------------------------------


def test_after_a_weight_update_a_contexts_blocks_have_new_names() -> None:
    cluster = Cluster(deque([first(5), first(5)]), deque([generated(5, 6), generated(5, 6)]))
    cluster.weights_held = [OLD, NEW]
    client = cluster.client()
    context = client.open_context()
    context.append(PROMPT)

    async def two_turns() -> list[TurnResult]:
        return [await client.run_turn(context, RequestId(name), SAMPLING, 1000.0) for name in ("a", "b")]

    assert [result.weights_version for result in asyncio.run(two_turns())] == [0, 1]
    old, new = (request.keys for request in cluster.requests)
    assert not set(old) & set(new)
    assert cluster.jobs[1].chain_root == chain_root(NEW.weights_id, LAYOUT.format)


def test_a_turn_with_tokens_of_old_weights_is_sampled_anew_under_new_ones() -> None:
    preempted = generated(5, 6, reason=FinishReason.PREEMPTED)
    cluster = Cluster(deque([first(5), first(7)]), deque([preempted, generated(7, 8)]))
    cluster.weights_held = [OLD, NEW]
    result = run_turn(cluster)
    assert (list(result.token_ids), result.weights_version, result.num_attempts) == ([7, 8], 1, 2)
    assert list(cluster.jobs[1].earlier_ids) == []


def test_a_scheduler_that_is_gone_is_asked_again_and_that_counts_as_no_failure() -> None:
    cluster = Cluster(deque([first(5)]), deque([generated(5, 6)]))
    cluster.refuses = EngineFailed("the scheduler is dead")

    async def play() -> TurnResult:
        running = asyncio.create_task(turn(cluster.client(max_attempts=1)))
        while not cluster.requests:  # noqa: ASYNC110 - the cluster counts
            await asyncio.sleep(0.01)
        cluster.refuses = None
        return await running

    assert list(asyncio.run(play()).token_ids) == [5, 6]


def test_a_turn_without_tokens_yet_starts_again_under_new_weights() -> None:
    cluster = Cluster(deque([EngineFailed("broke"), first(5)]), deque([generated(5, 6)]))
    cluster.weights_held = [OLD, NEW]
    assert run_turn(cluster).weights_version == 1
