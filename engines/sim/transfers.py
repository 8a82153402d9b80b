"""How long moving bytes takes. Each step asks once, when it begins, and is told when it has ended.

`ClosedForm` sets a step's rates when it begins, from what the links' other users ask for by then, and is told
of no change. engines.sim.max_min shares links exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engines.sim.events import Events, Handler
from engines.sim.link import Link


@dataclass(frozen=True, slots=True)
class LayerMove:
    """What a forward moves on one way for each of its layers."""

    links: tuple[Link, ...]
    nbytes: float


@dataclass(slots=True)
class ForwardTimes:
    """A forward as it turned out, in seconds."""

    compute_s: float
    """All layers; what else it took was moving KV."""
    load_wait_s: float = 0.0
    """Computing stood still for want of hits."""
    send_wait_s: float = 0.0
    """After the last layer: KV on its way to the decode side."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward of one GPU, every layer of which is alike."""

    layer_s: float
    """To compute one layer."""
    loads: Sequence[LayerMove]
    """Hit KV, before a layer computes."""
    sends: Sequence[LayerMove]
    """What the decode side lacks, after it has."""


class Transfers(Protocol):
    """Steps that move bytes."""

    def carry(self, links: Sequence[Link], nbytes: float, done: Handler, argument: Any) -> None:
        """Move `nbytes` over all of `links` at once, then call `done(argument)`."""
        ...

    def forward(self, forward: Forward, done: Handler, argument: Any) -> ForwardTimes:
        """Run it, then call `done(argument)`: the times are right by then."""
        ...


class ClosedForm:
    """No events but a step's end."""

    def __init__(self, events: Events, num_layers: int, *, layerwise: bool) -> None:
        self._events = events
        self._num_layers = num_layers
        self._layerwise = layerwise

    def carry(self, links: Sequence[Link], nbytes: float, done: Handler, argument: Any) -> None:
        rate = math.inf
        for link in links:
            link.total_bytes += nbytes
            available = link.available()
            if available < rate:
                rate = available
        if not nbytes or rate == math.inf:
            self._events.at(self._events.now_s, done, argument)
            return
        for link in links:
            link.join(rate)
        self._events.at(self._events.now_s + nbytes / rate, self._carried, (links, rate, done, argument))

    def forward(self, forward: Forward, done: Handler, argument: Any) -> ForwardTimes:
        load, both = _by_link(forward.loads), _by_link((*forward.loads, *forward.sends))
        rates = {link: link.available() for link in both}
        load_s = max((nbytes / rates[link] for link, nbytes in load.items()), default=0.0)
        send_s = max((nbytes / rates[link] for link, nbytes in _by_link(forward.sends).items()), default=0.0)
        both_s = max((nbytes / rates[link] for link, nbytes in both.items()), default=0.0)
        layers = self._num_layers
        times = ForwardTimes(layers * forward.layer_s)
        if self._layerwise:
            # The first layer waits for its hits, the last one's KV is sent by itself; between them the
            # slower of computing and moving sets the pace.
            times.load_wait_s = load_s + (layers - 1) * max(both_s - forward.layer_s, 0.0)
            times.send_wait_s = send_s
        else:
            times.load_wait_s, times.send_wait_s = layers * load_s, layers * send_s
        took_s = times.compute_s + times.load_wait_s + times.send_wait_s
        joined = [(link, layers * nbytes / took_s) for link, nbytes in both.items()]
        for link, asked in joined:
            link.total_bytes += asked * took_s
            link.join(asked)
        self._events.at(self._events.now_s + took_s, self._ran, (joined, done, argument))
        return times

    def _carried(self, step: tuple[Sequence[Link], float, Handler, Any]) -> None:
        links, rate, done, argument = step
        for link in links:
            link.leave(rate)
        done(argument)

    def _ran(self, step: tuple[Sequence[tuple[Link, float]], Handler, Any]) -> None:
        joined, done, argument = step
        for link, asked in joined:
            link.leave(asked)
        done(argument)


def _by_link(moves: Iterable[LayerMove]) -> dict[Link, float]:
    """Bytes of a layer over each link."""
    sums: dict[Link, float] = {}
    for move in moves:
        for link in move.links:
            sums[link] = sums.get(link, 0.0) + move.nbytes
    return sums
