"""The range of P/D in which only storage NICs bind (section 4.2), by formula and by simulated bytes.

Offered load: what a link would have to carry while all storage NICs read at their rate, over what it can.
"""

from __future__ import annotations

from engines.scheduling.bottleneck import ClusterShape, free_range, link_uses
from rollout.reproduce.case import DUALPATH, Case
from rollout.reproduce.desk import Desk
from rollout.reproduce.paper import Comparison, PaperValue

_MODEL = "ds_27b"
_INSIDE = ((1, 6), (1, 2), (1, 1), (2, 1), (3, 1))
_OUTSIDE = ((1, 8), (4, 1))
_AGENTS_PER_NODE = 64
_ROUNDS = 24
_SLOWER = 8
"""All links have an eighth of their rates: what they ask of one another stays as it is, and storage NICs have
queues. Where they have none, a turn reads on either side as often, and a lone decode node reads too much."""
_GPUS, _NIC_BYTES_PER_S, _MEMORY_BYTES_PER_S = 8, 50e9, 500e9


def bottleneck_free_range(desk: Desk) -> None:
    lowest, highest = free_range(_shape(1, 1))
    for name, ours, paper in (("lowest", lowest, 1 / 7), ("highest", highest, 7 / 2)):
        desk.tell(
            Comparison(
                "free_range",
                f"{name}_prefill_per_decode_node",
                "g=8, s=1, M=500 GB/s, h2d=cnic",
                ours,
                "P/D",
                PaperValue.within(1e-9, paper),
            )
        )
    for nodes in (*_INSIDE, *_OUTSIDE):
        _tell_offered(desk, *nodes)


def _tell_offered(desk: Desk, prefill_nodes: int, decode_nodes: int) -> None:
    """The most loaded link by the paper's formula, and what a simulation put on it."""
    use = link_uses(_shape(prefill_nodes, decode_nodes))[0]
    agents = _AGENTS_PER_NODE * (prefill_nodes + decode_nodes)
    case = Case(
        _MODEL,
        "paper-32k",
        prefill_nodes,
        decode_nodes,
        agents,
        DUALPATH,
        overrides=_rates(),
        window=_ROUNDS,
    )
    links = desk.runner.run(case).links
    # Seconds of reading, on the mean storage NIC.
    snic_s = (prefill_nodes * links["prefill SNIC"] + decode_nodes * links["decode SNIC"]) / (
        prefill_nodes + decode_nodes
    )
    simulated = links[use.link] / snic_s
    inside = use.utilisation < 1
    desk.tell(
        Comparison(
            "free_range",
            f"offered_{case.cluster}",
            f"{case.cluster}, {use.link}, {'inside' if inside else 'outside'} the range",
            simulated,
            "of the link",
            PaperValue.within(0.10, use.utilisation),
        )
    )


def _rates() -> tuple[str, ...]:
    """Of a GPU and its share of a node."""
    rates = {
        "snic": _NIC_BYTES_PER_S / _GPUS,
        "cnic": _NIC_BYTES_PER_S,
        "memory": _MEMORY_BYTES_PER_S / _GPUS,
    }
    return tuple(f"cluster.{link}_bytes_per_s={rate / _SLOWER:g}" for link, rate in rates.items())


def _shape(prefill_nodes: int, decode_nodes: int) -> ClusterShape:
    return ClusterShape(
        prefill_nodes=prefill_nodes,
        decode_nodes=decode_nodes,
        prefill_engines_per_node=_GPUS,
        decode_engines_per_node=_GPUS,
        cnic_bytes_per_s=_NIC_BYTES_PER_S,
        prefill_snic_bytes_per_s=_NIC_BYTES_PER_S,
        decode_snic_bytes_per_s=_NIC_BYTES_PER_S,
        memory_bytes_per_s=_MEMORY_BYTES_PER_S,
    )
