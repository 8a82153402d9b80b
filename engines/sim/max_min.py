"""Transfers that share links exactly: at any time every flow gets its max-min fair rate.

The slow reference for ClosedForm: each layer of a forward is flows of its own, and each flow that begins or
ends changes the rates of all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from engines.sim.events import Events, Handler
from engines.sim.link import Link
from engines.sim.transfers import Forward, ForwardTimes, LayerMove


class _Flow:
    """Bytes on their way."""

    __slots__ = ("argument", "done", "least_left", "left", "links", "rate")

    def __init__(self, links: Sequence[Link], nbytes: float, done: Handler, argument: Any) -> None:
        self.links = links
        self.left = nbytes
        self.least_left = 1e-9 * nbytes
        """Less than this is nothing: what rounding leaves."""
        self.rate = 0.0
        self.done = done
        self.argument = argument


class MaxMin:
    """Rates by progressive filling: the link that gives its flows least is filled first."""

    def __init__(self, events: Events, num_layers: int, *, layerwise: bool) -> None:
        self._events = events
        self._num_layers = num_layers
        self._layerwise = layerwise
        self._flows: dict[_Flow, None] = {}
        self._told_s = 0.0
        """When the flows' bytes were last counted."""
        self._alarm = 0
        self._is_stale = False

    def carry(self, links: Sequence[Link], nbytes: float, done: Handler, argument: Any) -> None:
        limited = [link for link in links if link.bytes_per_s < math.inf]
        for link in links:
            link.total_bytes += nbytes
        if not nbytes or not limited:
            self._events.at(self._events.now_s, done, argument)
            return
        self._count()
        self._flows[_Flow(limited, nbytes, done, argument)] = None
        self._change()

    def forward(self, forward: Forward, done: Handler, argument: Any) -> ForwardTimes:
        layers = self._num_layers
        if self._layerwise:
            return _Forward(self, self._events, forward, layers, done, argument).times
        whole = Forward(
            layers * forward.layer_s, _times(layers, forward.loads), _times(layers, forward.sends)
        )
        return _Forward(self, self._events, whole, 1, done, argument).times

    # -- rates ---------------------------------------------------------------------------------------

    def _change(self) -> None:
        """Flows have come or gone: share anew, once all that happens at this time has happened."""
        if not self._is_stale:
            self._is_stale = True
            self._events.at(self._events.now_s, self._share)

    def _share(self, _: object) -> None:
        self._is_stale = False
        self._count()
        unfilled: dict[Link, dict[_Flow, None]] = {}
        for flow in self._flows:
            for link in flow.links:
                unfilled.setdefault(link, {})[flow] = None
        left = {link: link.for_kv for link in unfilled}
        while unfilled:
            tightest = min(unfilled, key=lambda link: left[link] / len(unfilled[link]))
            rate = left[tightest] / len(unfilled[tightest])
            for flow in list(unfilled[tightest]):
                flow.rate = rate
                for link in flow.links:
                    left[link] = max(left[link] - rate, 0.0)
                    del unfilled[link][flow]
                    if not unfilled[link]:
                        del unfilled[link]
        self._alarm += 1
        if self._flows:
            wait_s = min(flow.left / flow.rate for flow in self._flows)
            self._events.at(self._events.now_s + wait_s, self._due, self._alarm)

    def _due(self, alarm: int) -> None:
        if alarm != self._alarm:
            return
        self._count()
        ended = [flow for flow in self._flows if flow.left <= flow.least_left]
        for flow in ended:
            del self._flows[flow]
        self._change()
        for flow in ended:
            flow.done(flow.argument)

    def _count(self) -> None:
        """What the flows have moved since they were last counted."""
        passed_s, self._told_s = self._events.now_s - self._told_s, self._events.now_s
        if passed_s > 0:
            for flow in self._flows:
                flow.left -= flow.rate * passed_s


class _Forward:
    """A forward, layer by layer: layer l + 1 loads and layer l - 1 is sent while layer l computes."""

    def __init__(
        self,
        flows: MaxMin,
        events: Events,
        forward: Forward,
        num_layers: int,
        done: Handler,
        argument: Any,
    ) -> None:
        self._flows = flows
        self._events = events
        self._forward = forward
        self._num_layers = num_layers
        self._done = done
        self._argument = argument
        self.times = ForwardTimes(num_layers * forward.layer_s)
        self._layer = 0
        """That computes, or is to compute next."""
        self._computes = False
        self._num_loading = 0
        self._num_sending = 0
        self._waits_since_s = events.now_s
        self._load()

    def _load(self) -> None:
        self._num_loading = len(self._forward.loads)
        for move in self._forward.loads:
            self._flows.carry(move.links, move.nbytes, self._loaded, None)
        if not self._num_loading:
            self._compute()

    def _loaded(self, _: object) -> None:
        self._num_loading -= 1
        if not self._num_loading:
            self._compute()

    def _compute(self) -> None:
        """If the next layer's hits are here and the one before is through."""
        if self._computes or self._num_loading or self._layer == self._num_layers:
            return
        self._computes = True
        self.times.load_wait_s += self._events.now_s - self._waits_since_s
        self._events.at(self._events.now_s + self._forward.layer_s, self._computed)
        if self._layer + 1 < self._num_layers:
            self._load()

    def _computed(self, _: object) -> None:
        self._computes = False
        self._layer += 1
        self._waits_since_s = self._events.now_s
        self._num_sending += len(self._forward.sends)
        for move in self._forward.sends:
            self._flows.carry(move.links, move.nbytes, self._sent, None)
        self._compute()
        self._end()

    def _sent(self, _: object) -> None:
        self._num_sending -= 1
        self._end()

    def _end(self) -> None:
        if self._layer < self._num_layers or self._num_sending:
            return
        self.times.send_wait_s = self._events.now_s - self._waits_since_s
        self._done(self._argument)


def _times(layers: int, moves: Iterable[LayerMove]) -> list[LayerMove]:
    return [LayerMove(move.links, layers * move.nbytes) for move in moves]
