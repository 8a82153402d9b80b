"""Slots of turns that broke: when they are free again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engines.errors import EngineDead, EngineFailed
from engines.slot_reclaimer import SlotReclaimer
from engines.types import EngineId, NodeId, PhaseSeconds, Placement, RequestId, SlotId
from kvstore.keys import WeightsId

PREFILL, DECODE = NodeId("prefill-node"), NodeId("decode-node")
TURN = Placement(
    request_id=RequestId("turn#1"),
    prefill_engine=EngineId("prefill"),
    prefill_node=PREFILL,
    decode_engine=EngineId("decode"),
    decode_node=DECODE,
    read_plan=(),
    hit_tokens=0,
    prefill_slots=(),
    decode_slots=(SlotId(3),),
    weights_version=0,
    weights_id=WeightsId("w"),
    waited=PhaseSeconds(),
)
PERIOD_S, PATIENCE_S = 0.005, 20.0


class Part:
    """A part of the cluster that answers as it is told, the last thing for ever."""

    def __init__(self, *answers: object) -> None:
        self.num_asked = 0
        self._answers = list(answers)

    async def abort(self, request_id: RequestId) -> Any:
        return await self._answer()

    async def let_go(self, request_id: RequestId, slots: list[SlotId]) -> Any:
        return await self._answer()

    async def _answer(self) -> object:
        self.num_asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        if answer is SILENCE:
            await asyncio.sleep(PATIENCE_S)
        return answer


SILENCE, LET_GO = object(), frozenset[NodeId]()
DEAD, BROKEN = EngineDead("it is dead"), EngineFailed("it broke")


def reclaim(
    play: Callable[[SlotReclaimer, list[NodeId]], Awaitable[None]],
    prefill: Part,
    decode: Part,
    node: Part,
    *,
    on: NodeId = DECODE,
) -> None:
    async def run() -> None:
        freed: list[NodeId] = []
        reclaimer = SlotReclaimer(PERIOD_S, lambda _, node_id: freed.append(node_id))
        engines = {EngineId("prefill"): prefill}, {EngineId("decode"): decode}
        reclaimer.connect({on: node}, *engines)  # type: ignore[arg-type]
        reclaimer.begin(TURN, {on: [SlotId(3)]})
        await play(reclaimer, freed)
        reclaimer.close()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what it waits for sets no event
        await asyncio.sleep(PERIOD_S)


@pytest.mark.parametrize(
    ("prefill", "decode", "node"),
    [
        ([LET_GO], [LET_GO], [True]),
        ([SILENCE, BROKEN, LET_GO], [LET_GO], [True]),
        ([LET_GO], [BROKEN, SILENCE, LET_GO], [True]),
        ([LET_GO], [LET_GO], [SILENCE, False, False, True]),
        ([DEAD], [LET_GO], [True]),
        ([LET_GO], [DEAD], [True]),
    ],
    ids=["at once", "a late prefill engine", "a late decode engine", "late reads", "dead", "dead too"],
)
def test_slots_come_back_once_everybody_has_let_go(
    prefill: list[object], decode: list[object], node: list[object]
) -> None:
    async def play(reclaimer: SlotReclaimer, freed: list[NodeId]) -> None:
        await until(lambda: bool(freed))
        assert freed == [DECODE]

    reclaim(play, Part(*prefill), Part(*decode), Part(*node))


def test_slots_of_a_prefill_node_are_no_decode_engines_affair() -> None:
    async def play(reclaimer: SlotReclaimer, freed: list[NodeId]) -> None:
        await until(lambda: bool(freed))

    decode = Part(SILENCE)
    reclaim(play, Part(LET_GO), decode, Part(True), on=PREFILL)
    assert not decode.num_asked


def test_nobody_is_asked_again_about_slots_of_a_dead_node() -> None:
    node = Part(DEAD)

    async def play(reclaimer: SlotReclaimer, freed: list[NodeId]) -> None:
        await until(lambda: not reclaimer.num_open)
        assert not freed

    reclaim(play, Part(LET_GO), Part(LET_GO), node)
    assert node.num_asked == 1


def test_slots_stay_aside_while_somebody_is_silent() -> None:
    silent = Part(SILENCE)

    async def play(reclaimer: SlotReclaimer, freed: list[NodeId]) -> None:
        await until(lambda: silent.num_asked > 2)
        assert not freed
        assert reclaimer.num_open == 1

    reclaim(play, silent, Part(LET_GO), Part(True))
