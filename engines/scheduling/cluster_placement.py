"""All of a cluster's placement: groups, queues, the rendezvous, and the load figures they share.

Events in, decisions out; no clock, no I/O. A turn is `submit`ted, gets an engine in a fetch of some prefill
group and one in a fetch of some decode group, and comes out as an EnginePair when it has both. The caller
plans its reads and says so with `plan_reads`; `prefilled` and `finished` take its load back, `withdraw`
whatever is left of it. Slots of staging memory are the caller's. The same calls in the same order give the
same decisions, in a scheduler, a paced run or a simulator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engines.scheduling.decode_placement import DecodePlacement
from engines.scheduling.engine_choice import EngineChoice, EnginePair
from engines.scheduling.engine_group import EngineGroup
from engines.scheduling.order import open_order
from engines.scheduling.prefill_placement import PrefillPlacement
from engines.scheduling.queued_turn import QueuedTurn
from engines.scheduling.read_queues import ReadQueues
from engines.scheduling.recent_reads import RecentReads
from engines.scheduling.rendezvous import Rendezvous
from engines.scheduling.settings import SchedulingSettings
from engines.types import EngineId, EngineInfo, EngineRole, NodeId, RequestId


class ClusterPlacement:
    """One per cluster."""

    def __init__(
        self, settings: SchedulingSettings, *, load_limit_tokens: int, read_queue_limit_tokens: int
    ) -> None:
        """The limits are beta and alpha of DualPath (arXiv 2602.21548, section 6.1), in tokens."""
        self._settings = settings
        self.queues = ReadQueues()
        self._recent = RecentReads(settings.read_memory_s)
        self._prefill = PrefillPlacement(
            settings,
            open_order(settings),
            self.queues,
            load_limit_tokens=load_limit_tokens,
            read_queue_limit_tokens=read_queue_limit_tokens,
        )
        self._decode = DecodePlacement(settings)
        self._rendezvous = Rendezvous()
        self._groups: dict[EngineRole, dict[str, EngineGroup]] = {role: {} for role in EngineRole}
        self._group_of: dict[EngineId, EngineGroup] = {}
        self._nodes: dict[EngineRole, list[NodeId]] = {role: [] for role in EngineRole}
        self._given: dict[EngineRole, dict[RequestId, EngineChoice]] = {role: {} for role in EngineRole}

    # -- the cluster ---------------------------------------------------------------------------------

    def add_node(self, node_id: NodeId) -> None:
        """Before its engines. A node that comes back has nothing to read."""
        self.queues.add_node(node_id)

    def add_engine(self, info: EngineInfo) -> EngineGroup:
        """The group it fetches with: that of its node, which is full at `group_nodes` nodes."""
        nodes = self._nodes[info.role]
        if info.node_id not in nodes:
            nodes.append(info.node_id)
        number = nodes.index(info.node_id) // self._settings.group_nodes if self._settings.group_nodes else 0
        group_id = f"{info.role}-group-{number}"
        group = self._groups[info.role].setdefault(group_id, EngineGroup(group_id))
        group.add(info.engine_id, info.node_id, self.queues.row_of(info.node_id), info.kv_tokens)
        self._group_of[info.engine_id] = group
        return group

    def remove_engine(self, engine_id: EngineId) -> tuple[RequestId, ...]:
        """Turns that it had been given. They are withdrawn: submit them again."""
        group = self._group_of.pop(engine_id)
        group.remove(engine_id)
        lost = [
            choice.turn.request_id
            for given in self._given.values()
            for choice in given.values()
            if choice.engine_id == engine_id
        ]
        for request_id in lost:
            self.withdraw(request_id)
        if not len(group):
            self._decode.give_up_group(group.group_id)
        return tuple(dict.fromkeys(lost))

    def groups(self, role: EngineRole) -> tuple[EngineGroup, ...]:
        """Groups of a role that have engines, in the order they were made."""
        return tuple(group for group in self._groups[role].values() if len(group))

    # -- the life of a turn --------------------------------------------------------------------------

    def submit(self, turn: QueuedTurn) -> None:
        """It waits for engines from now on."""
        self._prefill.waiting.push(turn)
        if self._settings.rendezvous == "independent":
            self._decode.push(turn)

    def fetch_prefill(self, group: EngineGroup, now_s: float) -> list[EnginePair]:
        """A prefill group fetches: the pairs this completes, if turns have their decode engines first."""
        choices = self._prefill.fetch(group, now_s)
        for choice in choices:
            self._given[EngineRole.PREFILL][choice.turn.request_id] = choice
            if self._settings.rendezvous == "prefill_first":
                self._decode.push(choice.turn)
        return _pairs(map(self._rendezvous.prefill_chosen, choices))

    def fetch_decode(self, group: EngineGroup) -> list[EnginePair]:
        """A decode group fetches: the pairs this completes."""
        self._decode.deal(self.groups(EngineRole.DECODE))
        choices = self._decode.fetch(group)
        for choice in choices:
            self._given[EngineRole.DECODE][choice.turn.request_id] = choice
        return _pairs(map(self._rendezvous.decode_chosen, choices))

    def place(self, now_s: float) -> list[EnginePair]:
        """Every group fetches, the least loaded first, until none of them gets anything more."""
        pairs: list[EnginePair] = []
        before = None
        while before != self.num_waiting:
            before = self.num_waiting
            pairs += self.fetch_once(now_s)
        return pairs

    def fetch_once(self, now_s: float) -> list[EnginePair]:
        """Every group fetches once, the least loaded first: the pairs this completes."""
        pairs: list[EnginePair] = []
        if self._prefill.waiting:
            for group in sorted(self.groups(EngineRole.PREFILL), key=_mean_tokens):
                pairs += self.fetch_prefill(group, now_s)
        if self._decode:
            for group in sorted(self.groups(EngineRole.DECODE), key=_mean_tokens):
                pairs += self.fetch_decode(group)
        return pairs

    def read_tokens_ahead(self, pair: EnginePair, now_s: float) -> tuple[float, float]:
        """What counts against reading the turn's hit on its prefill node, and on its decode node."""
        prefill, decode = (
            self.queues.planned_tokens(node_id) + self._recent.tokens(node_id, now_s)
            for node_id in (pair.prefill.node_id, pair.decode.node_id)
        )
        return prefill, decode

    def plan_reads(self, pair: EnginePair, prefill_tokens: int, decode_tokens: int, now_s: float) -> None:
        """So much of the turn's hit is read on each side; both nodes are told."""
        self.queues.keep_no_promise(pair.turn.request_id)
        for node_id, tokens in ((pair.prefill.node_id, prefill_tokens), (pair.decode.node_id, decode_tokens)):
            self.queues.plan({node_id: tokens})
            self._recent.note(node_id, tokens, now_s)

    def move_reads(self, giver: NodeId, taker: NodeId, tokens: int, now_s: float) -> None:
        """A node is told to give up so much that it has not begun; the other side's node reads it."""
        self.queues.give_up(giver, tokens)
        self.queues.plan({taker: tokens})
        self._recent.note(giver, -tokens, now_s)
        self._recent.note(taker, tokens, now_s)

    def end_reads(self, open_on: Mapping[NodeId, int], untold_on: Mapping[NodeId, int]) -> None:
        """A turn's reads are over, so much was open on each node; `untold_on` of it no node was told of."""
        self.queues.plan({node_id: -tokens for node_id, tokens in untold_on.items()})
        self.queues.close({n: tokens - untold_on.get(n, 0) for n, tokens in open_on.items()})

    def report_reads(self, node_id: NodeId, finished_tokens: int) -> None:
        """The node has finished so many tokens since it was added."""
        self.queues.report(node_id, finished_tokens)

    def set_late_reads(self, node_id: NodeId, tokens: int) -> None:
        """The node still reads so much that nobody waits for any more."""
        self.queues.set_late(node_id, tokens)

    def prefilled(self, request_id: RequestId) -> None:
        """The prefill engine is done with the turn. Idempotent."""
        choice = self._given[EngineRole.PREFILL].pop(request_id, None)
        if choice is not None and (group := self._group_of.get(choice.engine_id)) is not None:
            group.take_back(group.row_of(choice.engine_id), self._prefill.load_of(choice.turn))

    def finished(self, request_id: RequestId) -> None:
        """The turn is over, however it ended. Idempotent."""
        self.prefilled(request_id)
        self.queues.keep_no_promise(request_id)
        choice = self._given[EngineRole.DECODE].pop(request_id, None)
        if choice is not None and (group := self._group_of.get(choice.engine_id)) is not None:
            row, need = group.row_of(choice.engine_id), self._decode.need_of(choice.turn)
            group.take_back(row, choice.turn.prompt_tokens, need)

    def withdraw(self, request_id: RequestId) -> None:
        """Nobody wants the turn any more, wherever it is. Idempotent."""
        self._prefill.waiting.remove(request_id)
        self._decode.withdraw(request_id)
        self._rendezvous.withdraw(request_id)
        self.finished(request_id)

    @property
    def num_waiting(self) -> tuple[int, int]:
        """Turns that wait for a prefill engine, and turns that wait for a decode engine."""
        return len(self._prefill.waiting), len(self._decode)

    def check(self) -> None:
        """Raise AssertionError unless loads are those of the turns that were given."""
        self.queues.check()
        for role, groups in self._groups.items():
            given = list(self._given[role].values())
            for group in groups.values():
                assert int(group.tokens.sum()) == group.total_tokens, group.group_id
                here = sum(choice.engine_id in group.engine_ids for choice in given)
                assert int(group.requests.sum()) == here, group.group_id


def _pairs(found: Iterable[EnginePair | None]) -> list[EnginePair]:
    return [pair for pair in found if pair is not None]


def _mean_tokens(group: EngineGroup) -> tuple[float, str]:
    return (group.total_tokens / len(group), group.group_id)
