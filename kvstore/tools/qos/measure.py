"""What two classes of verbs traffic do on one limited link, by what the link itself counts.

    before      KV alone
    beside      MODEL and KV
    after       KV alone again
    unmarked    MODEL and KV, both with KV's marks: what it is without classes

Both flows have work all the time. Source: DualPath, arXiv 2602.21548, section 5 and A.1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from kvstore.job_token import JobToken
from kvstore.layout import BlockLayout, KVFormat, KVGroup
from kvstore.staging import StagingMemory
from kvstore.tools.bench.figures import Figure, Findings
from kvstore.tools.qos.flow import LIST_BYTES, Flow
from kvstore.tools.qos.shaped_link import ShapedLink
from kvstore.traffic import CLASS_TABLE, ClassSettings, TrafficClass
from kvstore.transport import RegionHandle, Transport
from kvstore.verbs_devices import choose_port, find_ports

MODEL, KV = TrafficClass.MODEL, TrafficClass.KV
SAME_MARKS = dict.fromkeys(CLASS_TABLE, CLASS_TABLE[KV])
MODEL_THREADS = 2
SETTLE_S = 1.0
"""After a flow begins or ends: what it or others still have in the link's queues."""
MODEL_SHARE_GOAL = 0.98
RECOVERED_GOAL = 0.9
LINK_USED_GOAL = 0.9
"""Below it the processor was what is short, and the link had nothing to share."""
DEVICES = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class Wire:
    """Two RDMA devices and the network device that carries what the first sends to the second."""

    sender: str
    receiver: str
    network_device: str
    bits_per_s: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second that each class sent in one phase, headers included."""

    model: float
    kv: float

    @property
    def model_share(self) -> float:
        return self.model / (self.model + self.kv)


@dataclass(frozen=True, slots=True)
class Peers:
    """A transport at one end of the wire and a memory at the other."""

    transport: Transport
    region: RegionHandle

    def model(self) -> Flow:
        return Flow(self.transport, self.region, MODEL, first_place=1, num_threads=MODEL_THREADS)

    def kv(self) -> Flow:
        return Flow(self.transport, self.region, KV, first_place=0, num_threads=1)


def measure(wire: Wire, phase_s: float) -> Findings:
    """Every figure. Raises TransportUnavailable without the devices, WrongInput where tc cannot work."""
    counted_before, failures = _counters(wire.sender), []
    with ShapedLink(wire.network_device, wire.bits_per_s) as link:
        with _peers(wire, CLASS_TABLE) as peers:
            with peers.kv() as kv:
                before = _rates(link, phase_s)
                with peers.model() as model:
                    beside = _rates(link, phase_s)
                after = _rates(link, phase_s)
            failures += kv.failures + model.failures
        with _peers(wire, SAME_MARKS) as peers, peers.kv() as kv, peers.model() as model:
            unmarked = _by_flow(phase_s, model, kv)
        failures += kv.failures + model.failures
        dropped = sum(sent.dropped_packets for sent in link.sent().values())
    counted = {name: num - counted_before[name] for name, num in _counters(wire.sender).items()}
    used = (beside.model + beside.kv) * 8 / wire.bits_per_s
    phases = {"before": before, "beside": beside, "after": after, "unmarked": unmarked}
    return Findings(
        [
            Figure("qos/model_share", round(beside.model_share, 4), "of the link's bytes", MODEL_SHARE_GOAL),
            Figure(
                "qos/kv_recovered",
                round(after.kv / before.kv, 3),
                "KV's rate, after / before",
                RECOVERED_GOAL,
            ),
            Figure("qos/failed_transfers", len(failures), "transfers", 0, "lower"),
            Figure("qos/dropped_packets", dropped, "packets", 0, "lower"),
            Figure("qos/link_used", round(used, 3), "of its rate, both classes", LINK_USED_GOAL),
            Figure("qos/model_share_unmarked", round(unmarked.model_share, 3), "of bytes, both marked as KV"),
        ],
        {
            "bytes_per_s": {name: asdict(rates) for name, rates in phases.items()},
            "failures": failures,
            "device_counters": {name: num for name, num in counted.items() if num},
        },
    )


@contextmanager
def _peers(wire: Wire, classes: Mapping[TrafficClass, ClassSettings]) -> Iterator[Peers]:
    """Both ends of the verbs transport, in this process: the passive one takes no part in what moves."""
    from kvstore.verbs_server import VerbsServer  # pyverbs is not on every machine
    from kvstore.verbs_transport import VerbsTransport

    found, token = find_ports(), JobToken.draw()
    receiver = choose_port(found, wire.receiver, None, None)
    with (
        closing(StagingMemory.create("receiver", _layout(), 1 + MODEL_THREADS)) as memory,
        closing(VerbsServer(token, [receiver], classes=classes)) as server,
        closing(VerbsTransport(token, choose_port(found, wire.sender, None, None), classes)) as transport,
    ):
        yield Peers(transport, server.register(memory))


def _layout() -> BlockLayout:
    """Of blocks with room for one list each."""
    return BlockLayout(KVFormat("float32", 1, (KVGroup("kv", LIST_BYTES),)), 1)


def _rates(link: ShapedLink, phase_s: float) -> Rates:
    """What the link sends in a phase, once it has settled."""
    time.sleep(SETTLE_S)
    first, since_s = link.sent(), time.monotonic()
    time.sleep(phase_s)
    last, took_s = link.sent(), time.monotonic() - since_s
    model, kv = ((last[each].nbytes - first[each].nbytes) / took_s for each in (MODEL, KV))
    return Rates(model, kv)


def _by_flow(phase_s: float, model: Flow, kv: Flow) -> Rates:
    """The same where the link cannot tell the flows apart: whole lists that arrived."""
    time.sleep(SETTLE_S)
    first = model.num_written, kv.num_written
    time.sleep(phase_s)
    return Rates(
        *(
            (flow.num_written - num) * LIST_BYTES / phase_s
            for flow, num in zip((model, kv), first, strict=True)
        )
    )


def _counters(device: str) -> dict[str, int]:
    """What the device counts beyond bytes: retransmissions and errors."""
    folder = DEVICES / device / "ports" / "1" / "hw_counters"
    names = [path for path in folder.glob("*") if "err" in path.name or "retry" in path.name]
    return {path.name: int(path.read_text()) for path in names}
