"""What a scheduler decides with, once the first node has told the block layout."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import BinaryIO

from engines.config import SchedulerConfig
from engines.decision_log import open_placement
from engines.loans import Loans
from engines.read_mover import ReadMover
from engines.read_planner import ReadPlanner
from engines.scheduling.cluster_placement import ClusterPlacement
from engines.slot_queue import SlotQueue
from engines.types import ClusterSpeeds
from kvstore.layout import BlockLayout


@dataclass(frozen=True, slots=True)
class KnownCluster:
    """One per scheduler. All nodes have blocks of one layout."""

    layout: BlockLayout
    placement: ClusterPlacement
    reads: ReadPlanner
    mover: ReadMover
    decisions: BinaryIO | None
    """Where the placement's decisions are written."""

    def close(self) -> None:
        """Idempotent."""
        if self.decisions is not None:
            self.decisions.close()


def open_known_cluster(
    config: SchedulerConfig,
    speeds: ClusterSpeeds,
    layout: BlockLayout,
    *,
    prefill_load_limit_tokens: int,
    loans: Loans,
    slot_queue: SlotQueue,
) -> KnownCluster:
    """The policy and the planners of a cluster without nodes yet."""
    read_limit_tokens = sys.maxsize
    if speeds.snic_bytes_per_s is not None:
        # The limit is meant in seconds of the profiled device, as the attention quota is.
        read_limit_tokens = config.read_queue_limit_tokens(
            speeds.snic_bytes_per_s / speeds.time_scale, layout.full_block_bytes / layout.block_tokens
        )
    decisions = None if config.decision_log is None else open(config.decision_log, "wb")  # noqa: SIM115
    placement = open_placement(
        config,
        load_limit_tokens=prefill_load_limit_tokens,
        read_queue_limit_tokens=read_limit_tokens,
        log=decisions,
    )
    reads = ReadPlanner(config, placement, layout, speeds.snic_bytes_per_s)
    return KnownCluster(layout, placement, reads, ReadMover(config, loans, reads, slot_queue), decisions)
