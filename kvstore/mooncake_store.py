"""BlockStore over Mooncake Store: blocks in the DRAM that the nodes of a cluster lend to it.

Decides how a block becomes one of its objects. It does not know where the objects lie and which ones the
master evicts: an evicted block is MISSING. Only this file imports `mooncake`.

    object name   mooncake.<weights id>.<writer id>.<incarnation>.<running number>
    value         record header | Full Block, as kvstore.block_record has them; no padding

Mooncake checks no bytes that it returns, so the header comes with every block and is verified as on SSD.
A name is never used twice: Mooncake answers a second put of a name with success and keeps the first bytes,
so a name made of the key would keep a damaged block for ever.

Memory handed to register() is read and written in place. Other memory goes through a bounce buffer, because
only registered memory can be the end of an RDMA transfer.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvstore.block_record import encode_record_header, record_bytes, record_header_bytes, verify_record
from kvstore.direct_io import aligned_buffer
from kvstore.errors import StoreError
from kvstore.io_threads import IoThreads
from kvstore.layout import BlockLayout
from kvstore.mooncake_config import MooncakeConfig
from kvstore.store import BlockLocation, BlockRead, BlockReadResult, BlockWrite, Bytes, ReadStatus

logger = logging.getLogger(__name__)

MAX_BATCH_BLOCKS = 16
MAX_BATCH_BYTES = 16 << 20
CONNECT_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 10.0
_LOCAL_BUFFER_BYTES = 1 << 20  # for Mooncake's calls that copy; none is used here
_GONE = {-703, -704, -707}  # replica not ready, no such object, evicted while it was read


class MooncakeStore:
    """A BlockStore; see kvstore.store for the contract.

    The master's RPCs have no deadline of the caller's, so they run in threads; what answers late is
    TIMED_OUT, or not stored.
    """

    def __init__(
        self,
        config: MooncakeConfig,
        layout: BlockLayout,
        *,
        writer_id: str,
        io_threads: int,
        offload_path: Path | None = None,
    ) -> None:
        """Joins the cluster; raises StoreError where it cannot.

        `offload_path`: a directory in which Mooncake keeps copies of its blocks on SSD.
        """
        self.layout = layout
        self.client, self._put_options = _connect(config, offload_path)
        """Mooncake's own, for what a BlockStore does not offer."""
        self._writer = f"{writer_id}.{secrets.token_hex(4)}"
        self._numbers = itertools.count()
        self._header_bytes = record_header_bytes(layout)
        self._value_bytes = self._header_bytes + layout.full_block_bytes
        self._batch_blocks = max(1, min(MAX_BATCH_BLOCKS, MAX_BATCH_BYTES // record_bytes(layout)))
        self._registered: list[Bytes] = []
        num_write_threads = -(-io_threads // 2)
        self._bounce: queue.SimpleQueue[Bytes] = queue.SimpleQueue()
        for _ in range(io_threads + num_write_threads):
            buffer = aligned_buffer(self._batch_blocks * record_bytes(layout))
            self.register(buffer)
            self._bounce.put(buffer)
        self._threads = IoThreads(io_threads, num_write_threads)
        self._complained: set[int] = set()
        self.num_copied = 0
        """Blocks that went through a bounce buffer."""
        self._counting = threading.Lock()
        self.closed = False

    def register(self, buffer: Bytes) -> None:
        """Blocks in `buffer`, a node's staging memory, move without a copy from now on.

        It stays mapped until close(). Raises StoreError where Mooncake does not take it.
        """
        code = self.client.register_buffer(_address(buffer), len(buffer))
        if code != 0:
            raise StoreError(f"Mooncake cannot register {len(buffer)} bytes of memory: error {code}")
        self._registered.append(buffer)

    def read(self, reads: Sequence[BlockRead], deadline_s: float) -> list[BlockReadResult]:
        batches = list(self._read_batches(reads))
        results: list[BlockReadResult] = []
        for job in self._threads.run_reads(self._read_batch, batches, deadline_s):
            num_reads = len(job.argument)
            if job.settled is not None:
                results += [BlockReadResult(ReadStatus.TIMED_OUT, settled=job.settled)] * num_reads
            else:
                results += job.result or [BlockReadResult(ReadStatus.FAILED)] * num_reads
        return results

    def write(self, writes: Sequence[BlockWrite], deadline_s: float) -> list[BlockLocation | None]:
        limit = self._batch_blocks
        batches = [writes[start : start + limit] for start in range(0, len(writes), limit)]
        locations: list[BlockLocation | None] = []
        for job in self._threads.run_writes(self._write_batch, batches, deadline_s):
            stored = job.result if job.settled is None else None
            locations += stored or [None] * len(job.argument)
        return locations

    def close(self) -> None:
        """Leave the cluster: the blocks in this node's memory go with it.

        Mooncake holds the GIL meanwhile: a second or two, about ten if its master is gone.
        """
        if self.closed:
            return
        self.closed = True
        stuck = self._threads.close(CLOSE_DEADLINE_S)
        if stuck:
            logger.warning("%d calls of Mooncake have not come back; its client stays open", stuck)
            return
        self.client.close()

    def _read_batches(self, reads: Sequence[BlockRead]) -> Iterator[list[BlockRead]]:
        """Runs of reads of different objects: of a name given twice Mooncake fills one buffer only."""
        batch: list[BlockRead] = []
        names: set[str] = set()
        for read in reads:
            name = object_name(read.location)
            if name in names or len(batch) == self._batch_blocks:
                yield batch
                batch, names = [], set()
            batch.append(read)
            names.add(name)
        if batch:
            yield batch

    def _read_batch(self, batch: Sequence[BlockRead]) -> list[BlockReadResult]:
        with self._bounce_buffer() as bounce:
            headers, landings = self._headers(bounce), self._places(bounce, [read.into for read in batch])
            names = [object_name(read.location) for read in batch]
            codes = self.client.batch_get_into_multi_buffers(names, *self._pieces(headers, landings))
            return [
                self._result(read, header, landing, code)
                for read, header, landing, code in zip(batch, headers, landings, codes, strict=False)
            ]

    def _result(self, read: BlockRead, header: Bytes, landing: Bytes, code: int) -> BlockReadResult:
        if code in _GONE or read.location.nbytes != self._value_bytes:
            return BlockReadResult(ReadStatus.MISSING)
        if code != self._value_bytes:
            self._complain("a get", code)
            return BlockReadResult(ReadStatus.FAILED)
        into = read.into[: self.layout.full_block_bytes]
        if _address(landing) != _address(into):
            into[:] = landing
        checksums = verify_record(self.layout, header, into, read.key, read.location.checksum)
        if checksums is None:
            return BlockReadResult(ReadStatus.CORRUPT)
        return BlockReadResult(ReadStatus.OK, checksums)

    def _write_batch(self, batch: Sequence[BlockWrite]) -> list[BlockLocation | None]:
        with self._bounce_buffer() as bounce:
            headers, places = self._headers(bounce), self._places(bounce, [write.data for write in batch])
            locations = []
            for write, header, place in zip(batch, headers, places, strict=False):
                data = write.data[: self.layout.full_block_bytes]
                if _address(place) != _address(data):
                    place[:] = data
                crc = encode_record_header(self.layout, write, header)
                segment = f"mooncake.{write.weights_id}.{self._writer}"
                locations.append(BlockLocation(segment, next(self._numbers), self._value_bytes, crc))
            names = [object_name(location) for location in locations]
            pieces = self._pieces(headers, places)
            codes = self.client.batch_put_from_multi_buffers(names, *pieces, self._put_options)
        for code in codes:
            if code != 0:
                self._complain("a put", code)
        return [at if code == 0 else None for at, code in zip(locations, codes, strict=True)]

    def _headers(self, bounce: Bytes) -> list[Bytes]:
        """Memory for the record headers of a batch."""
        starts = range(0, len(bounce), record_bytes(self.layout))
        return [bounce[start : start + self._header_bytes] for start in starts]

    def _places(self, bounce: Bytes, blocks: Sequence[Bytes]) -> list[Bytes]:
        """For each block the registered memory that Mooncake moves it to or from: its own, or a bounce."""
        nbytes, stride = self.layout.full_block_bytes, record_bytes(self.layout)
        places = []
        for i, block in enumerate(blocks):
            assert len(block) >= nbytes, (len(block), self.layout)
            if self._is_registered(block):
                places.append(block[:nbytes])
                continue
            start = i * stride + self._header_bytes
            places.append(bounce[start : start + nbytes])
            with self._counting:
                self.num_copied += 1
        return places

    def _pieces(
        self, headers: Sequence[Bytes], places: Sequence[Bytes]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Addresses and sizes of each value's two pieces."""
        addresses = [[_address(h), _address(p)] for h, p in zip(headers, places, strict=False)]
        return addresses, [[self._header_bytes, self.layout.full_block_bytes]] * len(places)

    def _is_registered(self, block: Bytes) -> bool:
        start = _address(block)
        end = start + self.layout.full_block_bytes
        return any(_address(r) <= start and end <= _address(r) + len(r) for r in self._registered)

    @contextmanager
    def _bounce_buffer(self) -> Iterator[Bytes]:
        """There is one for each thread, so this never waits."""
        buffer = self._bounce.get_nowait()
        try:
            yield buffer
        finally:
            self._bounce.put(buffer)

    def _complain(self, what: str, code: int) -> None:
        if code not in self._complained:
            self._complained.add(code)
            logger.warning("Mooncake answered %s with error %d; said once, blocks are missed", what, code)


def _connect(config: MooncakeConfig, offload_path: Path | None) -> tuple[Any, Any]:
    """A client that has joined the cluster, and the options of its puts."""
    # Its own log goes to stderr, a line for every step and every miss; errors come back as codes too.
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    os.environ.setdefault("MC_STORE_CLIENT_SETUP_RETRIES", "1")  # 4 s each where no master is; 20 by default
    try:
        from mooncake.store import MooncakeDistributedStore, ReplicateConfig
    except ImportError as error:
        raise StoreError(
            f"kvstore=mooncake cannot load Mooncake ({error}); pip install 'dualpath-rollout[mooncake]', "
            "and its wheel needs libibverbs.so.1 (Debian: apt-get install libibverbs1)"
        ) from error
    try:
        with socket.create_connection(config.master_address, CONNECT_DEADLINE_S) as connection:
            own_address = connection.getsockname()[0]
    except OSError as error:
        raise StoreError(
            f"no mooncake_master answers at kvstore.mooncake.master={config.master}: {error}; "
            "start one there, or name another address"
        ) from error
    settings = {
        "local_hostname": own_address,
        "metadata_server": "P2PHANDSHAKE",
        "global_segment_size": str(config.memory_bytes),
        "local_buffer_size": str(_LOCAL_BUFFER_BYTES),
        "protocol": config.protocol,
        "rdma_devices": config.devices,
        "master_server_addr": config.master,
    }
    if offload_path is not None:
        settings |= {"enable_ssd_offload": "true", "ssd_offload_path": str(offload_path)}
    client = MooncakeDistributedStore()
    code = client.setup(settings)
    if code != 0:
        raise StoreError(f"cannot join the Mooncake cluster of {config.master}: error {code}")
    return client, ReplicateConfig()


def object_name(location: BlockLocation) -> str:
    """What Mooncake calls the block."""
    return f"{location.segment}.{location.offset}"


def _address(view: Bytes) -> int:
    address: int = view.__array_interface__["data"][0]
    return address
