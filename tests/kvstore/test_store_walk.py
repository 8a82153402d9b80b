"""Any walk of two processes' writes, reads, evictions and restarts in one directory, against a model."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from itertools import takewhile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.files import PosixFiles
from kvstore.keys import WeightsId, chain_root
from kvstore.prefix_index import PrefixIndex, PrefixMatch
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockRead, BlockWrite, ReadStatus
from kvstore.store_owner import StoreOwner
from tests.kvstore.kv_blocks import PLENTY_S, SMALL, key_of, make_read, make_write, random_block, same_block

SEGMENT_BYTES = 60_000
CAPACITY_BYTES = 130_000
RESERVE_BYTES = 60_000
NUM_CONTEXTS = 3
CONTEXT_BLOCKS = 30
NEVER_S = 3600.0


class Side:
    """One process: a store to write and read with, its part in owning the directory, its index."""

    def __init__(self, directory: Path, name: str, weights_id: WeightsId) -> None:
        self.directory = directory
        self.store = SsdStore(
            directory, SMALL, writer_id=name, io_threads=1, durability="none", segment_bytes=SEGMENT_BYTES
        )
        self.index = PrefixIndex()
        self.pinned: list[str] = []
        self.open_owner()
        self.owner.recover(self.index, SMALL, weights_id)

    def open_owner(self) -> None:
        """Contend for the lease once: its thread is too slow to matter, so the test says who holds it."""
        self.owner = StoreOwner(
            self.directory,
            capacity_bytes=CAPACITY_BYTES,
            reserve_bytes=RESERVE_BYTES,
            lease_ttl_s=NEVER_S,
            files=PosixFiles(),
            segment_bytes=SEGMENT_BYTES,
        )

    def close(self) -> None:
        self.store.close()
        self.owner.close()


def chain(version: int, context: int) -> list[int]:
    """Numbers of the blocks of a context; each block's bytes and key follow from its number."""
    first = (version * NUM_CONTEXTS + context) * CONTEXT_BLOCKS
    return list(range(first, first + CONTEXT_BLOCKS))


contexts = st.integers(0, NUM_CONTEXTS - 1)
sides = st.integers(0, 1)


class StoreWalk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.version = 0
        self.num_writers = 0
        self.sides = [self.start_side(), self.start_side()]
        self.holder = 0

    def teardown(self) -> None:
        for side in self.sides:
            side.close()
        shutil.rmtree(self.directory)

    @property
    def weights_id(self) -> WeightsId:
        return WeightsId(f"w{self.version}")

    def start_side(self) -> Side:
        self.num_writers += 1
        return Side(self.directory, f"writer{self.num_writers}", self.weights_id)

    def match(self, side: Side, context: int) -> PrefixMatch:
        return side.index.match([key_of(number) for number in chain(self.version, context)])

    def write_of(self, number: int, context: int) -> BlockWrite:
        write = make_write(SMALL, number, self.weights_id)
        if number == chain(self.version, context)[0]:
            write = dataclasses.replace(write, parent=chain_root(self.weights_id, SMALL.format))
        return write

    @rule(which=sides, context=contexts, count=st.integers(1, 10))
    def write(self, which, context, count):
        """A turn appends to what its process knows of the context; another may write the same blocks."""
        side = self.sides[which]
        known = self.match(side, context).num_blocks
        numbers = chain(self.version, context)
        writes = [self.write_of(number, context) for number in numbers[known : known + count]]
        # Blocks that an eviction cut off from the start of their context are hits again.
        stored = (side.index.is_stored(key_of(number)) for number in numbers[known + count :])
        num_orphans = sum(1 for _ in takewhile(bool, stored))
        side.index.expect([write.key for write in writes], self.weights_id)
        locations = side.store.write(writes, PLENTY_S)
        for write, location in zip(writes, locations, strict=True):
            assert location is not None, side.store.caching_stopped
            side.index.announce(write.key, location, self.weights_id, write.parent)
        assert self.match(side, context).num_blocks == known + len(writes) + num_orphans

    @rule(which=sides, context=contexts)
    def read(self, which, context):
        """Every hit is byte-exact; only a block whose file was evicted may be missing."""
        side = self.sides[which]
        numbers = chain(self.version, context)
        reads = [
            make_read(SMALL, number, block.location)
            for number, block in zip(numbers, self.match(side, context).stored, strict=False)
        ]
        for number, read, result in zip(numbers, reads, side.store.read(reads, PLENTY_S), strict=False):
            self.judge(side, number, read, result.status)

    def judge(self, side: Side, number: int, read: BlockRead, status: ReadStatus) -> None:
        if status is ReadStatus.OK:
            assert same_block(SMALL, read.into, random_block(SMALL, number))
            return
        assert status is ReadStatus.MISSING
        assert not (self.directory / read.location.segment).exists()
        assert read.location.segment not in self.sides[self.holder].pinned
        assert side.index.discard(read.key)

    @rule(choice=st.integers(0, 1000))
    def pin(self, choice):
        """The owner begins to read from a segment, of the weights in use or of older ones."""
        side = self.sides[self.holder]
        present = [name for name in side.index.segment_names() if (self.directory / name).exists()]
        if present:
            side.pinned.append(present[choice % len(present)])
            side.index.pin(side.pinned[-1:])

    @precondition(lambda self: len(self.sides[self.holder].pinned) > 1)
    @rule()
    def unpin(self):
        side = self.sides[self.holder]
        side.index.unpin([side.pinned.pop()])

    @rule()
    def evict(self):
        """The owner brings the directory under its limit, whoever wrote what is in it."""
        side = self.sides[self.holder]
        side.owner.refresh(side.index)
        excess_bytes = side.owner.excess_bytes(side.index)
        victims = side.index.victims(excess_bytes, self.weights_id)
        assert not set(victims) & set(side.pinned)
        sizes = {name: (self.directory / name).stat().st_size for name in victims}
        for name in victims:
            side.index.forget_segment(name)
        assert side.owner.unlink(victims) == sum(sizes.values())
        left = {path.name: path.stat().st_size for path in self.directory.glob("*.kv")}
        assert side.index.stored_bytes == sum(left.values())
        assert sum(left.values()) <= side.owner.limit_bytes or set(left) == set(side.pinned)

    @rule()
    def evict_without_the_lease(self):
        side = self.sides[1 - self.holder]
        side.owner.refresh(side.index)
        before = sorted(self.directory.glob("*.kv"))
        assert side.owner.excess_bytes(side.index) == 0
        assert side.owner.unlink([path.name for path in before]) == 0
        assert sorted(self.directory.glob("*.kv")) == before

    @rule()
    def update_weights(self):
        """From now on nothing of older weights is a hit; their segments wait to be evicted."""
        old = [key_of(chain(self.version, context)[0]) for context in range(NUM_CONTEXTS)]
        self.version += 1
        for side in self.sides:
            side.index.drop_weights_except(self.weights_id)
            assert not any(side.index.match([key]).num_blocks for key in old)

    @rule(which=sides)
    def restart(self, which):
        """A process ends and another begins: it finds what the one before knew and nobody evicted."""
        side = self.sides[which]
        before = [self.num_present(side, context) for context in range(NUM_CONTEXTS)]
        side.close()
        self.sides[which] = started = self.start_side()
        if which != self.holder:
            assert not started.owner.holds_lease
        for context, known in enumerate(before):
            assert self.match(started, context).num_blocks >= known

    def num_present(self, side: Side, context: int) -> int:
        count = 0
        for block in self.match(side, context).stored:
            if not (self.directory / block.location.segment).exists():
                break
            count += 1
        return count

    @rule()
    def hand_over(self):
        """The owner ends and the other process takes the directory over."""
        holder, other = self.sides[self.holder], self.sides[1 - self.holder]
        holder.owner.close()
        other.owner.close()
        other.open_owner()
        holder.open_owner()
        holder.index.unpin(holder.pinned)
        holder.pinned.clear()
        self.holder = 1 - self.holder

    @invariant()
    def exactly_one_holds_the_lease_and_books_agree(self):
        assert [side.owner.holds_lease for side in self.sides] == [self.holder == 0, self.holder == 1]
        for side in self.sides:
            side.index.check()
        assert all((self.directory / name).exists() for name in self.sides[self.holder].pinned)


StoreWalk.TestCase.settings = settings(max_examples=40, stateful_step_count=40)
test_two_processes_in_one_directory_agree_with_the_model_on_any_walk = StoreWalk.TestCase
