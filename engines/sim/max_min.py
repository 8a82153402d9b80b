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

    __slots__ = ("argument", "at_most", "done", "left", "links", "rate", "told_s", "version")

    def __init__(self, links: Sequence[Link], nbytes: float, done: Handler, argument: Any) -> None:
        self.links = links
        self.at_most = min(link.for_kv for link in links)
        """What it would get alone."""
        self.left = nbytes
        """Bytes, when they were last counted, at `told_s`."""
        self.told_s = 0.0
        self.rate = 0.0
        self.version = 0
        """Of its rate: what was foretold by another one is void."""
        self.done = done
        self.argument = argument


class MaxMin:
    """Rates by progressive filling: the link that gives its flows least is filled first.

    A link whose flows together ask for no more than it has binds nobody, so a flow that begins or ends
    changes the rates of those only that it is joined to by crowded links.
    """

    def __init__(self, events: Events, num_layers: int, *, layerwise: bool) -> None:
        self._events = events
        self._num_layers = num_layers
        self._layerwise = layerwise
        self._flows: dict[Link, dict[_Flow, None]] = {}
        self._touched: dict[_Flow, None] = {}
        """Flows whose rates are to be worked out once all that happens at this time has happened."""

    def carry(self, links: Sequence[Link], nbytes: float, done: Handler, argument: Any) -> None:
        for link in links:
            link.total_bytes += nbytes
        limited = [link for link in links if link.bytes_per_s < math.inf]
        if not nbytes or not limited:
            self._events.at(self._events.now_s, done, argument)
            return
        flow = _Flow(limited, nbytes, done, argument)
        flow.told_s = self._events.now_s
        for link in limited:
            link.join(flow.at_most)
            self._flows.setdefault(link, {})[flow] = None
        self._touch([flow])
        for link in limited:
            if _is_crowded(link):
                self._touch(self._flows[link])

    def forward(self, forward: Forward, done: Handler, argument: Any) -> ForwardTimes:
        layers = self._num_layers
        if self._layerwise:
            return _Forward(self, self._events, forward, layers, done, argument).times
        whole = Forward(
            layers * forward.layer_s, _times(layers, forward.loads), _times(layers, forward.sends)
        )
        return _Forward(self, self._events, whole, 1, done, argument).times

    # -- rates ---------------------------------------------------------------------------------------

    def _touch(self, flows: Iterable[_Flow]) -> None:
        if not self._touched:
            self._events.at(self._events.now_s, self._share)
        self._touched.update(dict.fromkeys(flows))

    def _share(self, _: object) -> None:
        """New rates for the touched flows and for those that they share crowded links with."""
        found, self._touched = self._touched, {}
        crowded: dict[Link, dict[_Flow, None]] = {}
        to_look_at = list(found)
        while to_look_at:
            for link in to_look_at.pop().links:
                if link not in crowded and _is_crowded(link):
                    crowded[link] = dict(self._flows[link])
                    more = [flow for flow in crowded[link] if flow not in found]
                    found.update(dict.fromkeys(more))
                    to_look_at += more
        for flow, rate in _max_min(found, crowded).items():
            if rate != flow.rate:
                self._set_rate(flow, rate)

    def _set_rate(self, flow: _Flow, rate: float) -> None:
        now_s = self._events.now_s
        flow.left = max(flow.left - flow.rate * (now_s - flow.told_s), 0.0)
        flow.told_s, flow.rate = now_s, rate
        flow.version += 1
        self._events.at(now_s + flow.left / rate, self._due, (flow, flow.version))

    def _due(self, foretold: tuple[_Flow, int]) -> None:
        flow, version = foretold
        if version != flow.version:
            return
        self._touched.pop(flow, None)
        for link in flow.links:
            del self._flows[link][flow]
            if _is_crowded(link):
                self._touch(self._flows[link])
            link.leave(flow.at_most)
        flow.done(flow.argument)


def _is_crowded(link: Link) -> bool:
    return link.asked > link.for_kv * (1 + 1e-12)


def _max_min(flows: Iterable[_Flow], crowded: dict[Link, dict[_Flow, None]]) -> dict[_Flow, float]:
    """Max-min fair rates; `crowded` links and their flows, which are used up. No other link binds."""
    rates: dict[_Flow, float] = {}
    left = {link: link.for_kv for link in crowded}
    waiting = dict.fromkeys(sorted(flows, key=lambda flow: flow.at_most))
    while waiting:
        tightest = min(crowded, key=lambda link: left[link] / len(crowded[link]), default=None)
        fair = math.inf if tightest is None else left[tightest] / len(crowded[tightest])
        first = next(iter(waiting))
        fixed = [first] if tightest is None or first.at_most <= fair else list(crowded[tightest])
        for flow in fixed:
            rate = rates[flow] = min(flow.at_most, fair)
            del waiting[flow]
            for link in flow.links:
                if link in crowded:
                    left[link] = max(left[link] - rate, 0.0)
                    del crowded[link][flow]
                    if not crowded[link]:
                        del crowded[link]
    return rates


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
