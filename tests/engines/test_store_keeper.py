"""What a job's scheduler evicts and what stays, with real files."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from engines.scheduler import Scheduler
from engines.store_keeper import StoreKeeper
from engines.types import AnnouncedBlock, EngineId, EngineInfo, EngineRole, TurnRequest
from kvstore.block_record import record_bytes
from kvstore.files import Files, PosixFiles
from kvstore.keys import WeightsId
from kvstore.layout import PAGE_BYTES
from kvstore.ssd_store import SsdStore
from kvstore.store import BlockLocation, ReadStatus
from kvstore.store_owner import StoreOwner
from tests.engines.fakes import Gate
from tests.engines.scheduler_bench import (
    DECODE_0,
    LAYOUT,
    PREFILL,
    WEIGHTS,
    Clock,
    keys_of,
    settle,
    turn,
)
from tests.engines.scheduling.turns import scheduler_config
from tests.kvstore.kv_blocks import PLENTY_S, key_of, make_read, make_write, write_all

OURS, OLDER = WEIGHTS.weights_id, WeightsId("older")
SEGMENT_BYTES = PAGE_BYTES + 2 * record_bytes(LAYOUT)
CAPACITY_SEGMENTS = 4
CONFIG = scheduler_config()


class Directory:
    """A store directory, with writers of their own, and a keeper that lets it hold four segments."""

    def __init__(self, path: Path, files: Files, refresh_s: float) -> None:
        self.path = path
        self.files = files
        self.keeper = StoreKeeper(self.owner(), refresh_s=refresh_s)
        self.stores: dict[str, SsdStore] = {}
        self.num_blocks = 0

    def owner(self) -> StoreOwner:
        return StoreOwner(
            self.path,
            capacity_bytes=CAPACITY_SEGMENTS * SEGMENT_BYTES,
            reserve_bytes=0,
            lease_ttl_s=10.0,
            files=self.files,
            clock=Clock(),
            segment_bytes=SEGMENT_BYTES,
        )

    def write(self, writer: str, weights_id: WeightsId = OURS) -> tuple[int, BlockLocation]:
        """One block of `writer`'s: its number, and where it is."""
        store = self.stores.get(writer)
        if store is None:
            store = SsdStore(self.path, LAYOUT, writer_id=writer, io_threads=1, segment_bytes=SEGMENT_BYTES)
            self.stores[writer] = store
        self.num_blocks += 1
        (location,) = write_all(store, [make_write(LAYOUT, self.num_blocks, weights_id)])
        return self.num_blocks, location

    async def store(self, writer: str, weights_id: WeightsId = OURS) -> tuple[int, BlockLocation]:
        """Write one block and announce it, as a scheduler under OURS does."""
        number, location = self.write(writer, weights_id)
        self.keeper.index.announce(key_of(number), location, weights_id, key_of(number - 1))
        self.keeper.make_room({location.segment}, OURS)
        return number, location

    def segments(self, weights_id: WeightsId = OURS) -> list[str]:
        return sorted(path.name for path in self.path.glob(f"{weights_id}.*.kv"))

    async def until_owned(self) -> None:
        """Return when the keeper has the lease."""
        async with asyncio.timeout(PLENTY_S):
            while True:
                if self.keeper.owns:
                    return
                await asyncio.sleep(0.01)

    async def until_at_most(self, num_segments: int, weights_id: WeightsId) -> None:
        """Return when the directory holds no more segments of these weights."""
        async with asyncio.timeout(PLENTY_S):
            while True:
                if len(self.segments(weights_id)) <= num_segments:
                    return
                await asyncio.sleep(0.01)


@asynccontextmanager
async def open_directory(
    path: Path, files: Files | None = None, refresh_s: float = 3600.0
) -> AsyncIterator[Directory]:
    directory = Directory(path, files or PosixFiles(), refresh_s)
    try:
        await directory.keeper.open(LAYOUT, OURS)
        yield directory
        directory.keeper.index.check()
    finally:
        for store in directory.stores.values():
            store.close()
        await directory.keeper.close()


def test_the_segment_a_writer_appends_to_stays_however_long_it_has_been_quiet(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_directory(tmp_path) as directory:
            _, quiet = await directory.store("quiet")
            for _ in range(20):
                await directory.store("busy")
            await directory.keeper.unlinked()
            assert directory.keeper.evicted_bytes > 0
            number, location = await directory.store("quiet")
            assert location.segment == quiet.segment
            (result,) = directory.stores["quiet"].read([make_read(LAYOUT, number, location)], PLENTY_S)
            assert result.status is ReadStatus.OK

    asyncio.run(run())


def test_what_others_write_counts_and_goes_before_what_is_of_use_here(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_directory(tmp_path) as directory:
            number, _ = await directory.store("ours")
            for _ in range(2 * CAPACITY_SEGMENTS):
                directory.write("theirs", OLDER)
            assert directory.keeper.index.stored_bytes < SEGMENT_BYTES
            await directory.keeper.refresh()
            directory.keeper.make_room((), OURS)
            await directory.keeper.unlinked()
            assert len(directory.segments(OLDER)) < CAPACITY_SEGMENTS
            assert directory.keeper.index.match([key_of(number)]).num_blocks == 1
            assert directory.keeper.index.stored_bytes <= CAPACITY_SEGMENTS * SEGMENT_BYTES

    asyncio.run(run())


def test_what_another_job_writes_to_stays_as_long_as_it_grows(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_directory(tmp_path) as directory:
            for _ in range(2 * CAPACITY_SEGMENTS - 1):
                directory.write("theirs", OLDER)
            await directory.keeper.refresh()
            (*_, written_to) = directory.segments(OLDER)
            directory.write("theirs", OLDER)
            await directory.keeper.refresh()
            for _ in range(2 * CAPACITY_SEGMENTS):
                await directory.store("ours")
                await directory.keeper.unlinked()
            assert directory.segments(OLDER) == [written_to]
            await directory.keeper.refresh()
            await directory.store("ours")
            await directory.keeper.unlinked()
            assert directory.segments(OLDER) == []

    asyncio.run(run())


def test_a_lease_won_in_mid_job_has_the_directory_listed_beside_the_event_loop(tmp_path: Path) -> None:
    async def run() -> None:
        files = GatedListing()
        async with open_directory(tmp_path) as owner, open_directory(tmp_path, files) as beside:
            for _ in range(3 * CAPACITY_SEGMENTS):
                await beside.store("beside")
            assert len(beside.segments()) > CAPACITY_SEGMENTS
            await owner.keeper.close()
            files.gate.shut()
            await beside.until_owned()
            beside.keeper.make_room((), OURS)
            await files.gate.reached()
            beside.keeper.make_room((), OURS)
            files.gate.open()
            await beside.until_at_most(CAPACITY_SEGMENTS, OURS)

    asyncio.run(run())


def test_a_job_beside_the_owner_evicts_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_directory(tmp_path) as owner, open_directory(tmp_path) as beside:
            for _ in range(3 * CAPACITY_SEGMENTS):
                await beside.store("beside")
            assert beside.keeper.evicted_bytes == 0
            assert len(beside.segments()) > CAPACITY_SEGMENTS
            await owner.keeper.refresh()
            owner.keeper.make_room((), OURS)
            await owner.keeper.unlinked()
            assert len(beside.segments()) <= CAPACITY_SEGMENTS

    asyncio.run(run())


def test_segments_of_the_last_weights_are_pinned_no_more_after_an_update(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_directory(tmp_path) as directory:
            await directory.store("writer")
            new = WeightsId("newer")
            directory.keeper.index.drop_weights_except(new)
            directory.keeper.make_room((), new)
            for _ in range(2 * CAPACITY_SEGMENTS + 1):
                number, location = directory.write("writer", new)
                directory.keeper.index.announce(key_of(number), location, new, key_of(number - 1))
                directory.keeper.make_room({location.segment}, new)
                await directory.keeper.unlinked()
            assert directory.segments(OURS) == []
            assert len(directory.segments(new)) == CAPACITY_SEGMENTS

    asyncio.run(run())


class GatedListing(PosixFiles):
    """What is listed arrives late."""

    def __init__(self) -> None:
        self.gate = Gate()

    def list(self, path: Path) -> list[str]:
        names = super().list(path)
        if threading.current_thread().name != "kv-lease":
            self.gate.pass_through()
        return names


def test_a_segment_that_went_while_the_directory_was_listed_is_not_known_again(tmp_path: Path) -> None:
    async def run() -> None:
        files = GatedListing()
        async with open_directory(tmp_path, files) as directory:
            for _ in range(2 * CAPACITY_SEGMENTS):
                await directory.store("writer")
            files.gate.shut()
            listing = asyncio.create_task(directory.keeper.refresh())
            await files.gate.reached()
            index = directory.keeper.index
            before = set(index.segment_names())
            await directory.store("writer")
            await directory.store("writer")
            await directory.store("writer")
            files.gate.open()
            await listing
            await directory.keeper.unlinked()
            went = before - set(directory.segments())
            assert went
            assert not went & set(index.segment_names())

    asyncio.run(run())


def test_what_others_write_is_seen_and_evicted_in_the_background(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_directory(tmp_path, refresh_s=0.02) as directory:
            for _ in range(4 * CAPACITY_SEGMENTS):
                directory.write("theirs", OLDER)
            assert len(directory.segments(OLDER)) > CAPACITY_SEGMENTS
            await directory.until_at_most(CAPACITY_SEGMENTS, OLDER)

    asyncio.run(run())


class GatedUnlinks(PosixFiles):
    """Unlinking waits at a gate; the lease's own files pass."""

    def __init__(self) -> None:
        self.gate = Gate()

    def unlink(self, path: Path) -> None:
        if path.suffix == ".kv":
            self.gate.pass_through()
        super().unlink(path)


def test_a_file_that_is_still_being_unlinked_counts_no_more(tmp_path: Path) -> None:
    async def run() -> None:
        files = GatedUnlinks()
        files.gate.shut()
        async with open_directory(tmp_path, files) as directory:
            try:
                while directory.keeper.index.stored_bytes < CAPACITY_SEGMENTS * SEGMENT_BYTES:
                    await directory.store("writer")
                await directory.store("writer")
                await files.gate.reached()
                await directory.keeper.refresh()
                while_unlinking = directory.keeper.index.stored_bytes
                assert len(directory.segments()) == CAPACITY_SEGMENTS + 1
            finally:
                files.gate.open()
            await directory.keeper.unlinked()
            assert len(directory.segments()) == CAPACITY_SEGMENTS
            await directory.keeper.refresh()
            assert directory.keeper.index.stored_bytes == while_unlinking

    asyncio.run(run())


def test_segments_a_turn_reads_from_stay_until_it_is_prefilled(tmp_path: Path) -> None:
    async def run() -> None:
        async with open_directory(tmp_path) as directory:
            scheduler = await scheduler_on(directory)
            first = turn("t", 9)
            announced = await announce(scheduler, directory, first)
            placement = await scheduler.submit(first)
            assert placement.hit_tokens == 8
            for conversation in range(1, 12):
                await announce(scheduler, directory, turn("other", 9, conversation=conversation))
            assert announced.segment in directory.segments()
            await scheduler.prefilled(placement.request_id)
            await announce(scheduler, directory, turn("other", 9, conversation=20))
            assert announced.segment not in directory.segments()
            await scheduler.finish(placement.request_id)
            await scheduler.release_slots(placement.request_id, placement.decode_slots)
            scheduler.check()

    asyncio.run(run())


async def scheduler_on(directory: Directory) -> Scheduler:
    scheduler = Scheduler(
        CONFIG, prefill_load_limit_tokens=1000, weights=WEIGHTS, keeper=directory.keeper, clock=Clock()
    )
    for node_id, role in ((PREFILL, EngineRole.PREFILL), (DECODE_0, EngineRole.DECODE)):
        await scheduler.register_node(node_id, 10, LAYOUT)
        await scheduler.register_engine(EngineInfo(EngineId(node_id), node_id, role, 100))
    return scheduler


async def announce(scheduler: Scheduler, directory: Directory, request: TurnRequest) -> BlockLocation:
    """Store the request's whole blocks in a segment; two fill one."""
    parent = keys_of(9, 4)[0]
    for key in request.keys:
        _, location = directory.write("writer")
        await scheduler.announce([AnnouncedBlock(key, parent, location)], [], OURS)
        parent = key
    await directory.keeper.unlinked()
    await settle()
    return location
