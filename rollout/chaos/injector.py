"""Makes faults on a running backend, each as it comes in real life: a signal, a flipped bit, a full disk.

It waits for nothing to recover; the backend has to see to that by itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines.errors import EngineFailed
from kvstore.block_record import record_bytes, record_header_bytes
from kvstore.layout import PAGE_BYTES, BlockLayout
from rollout.async_backend import AsyncRolloutBackend
from rollout.chaos.schedule import Fault, FaultKind

ASK_DEADLINE_S = 5.0
_FLIPPED_SHARE = 0.2
"""Of the stored blocks."""
_BALLAST = "ballast"
_FULL_S = 3.0

Update = Callable[[], Awaitable[None]]


def flip_bits(store: Path, layout: BlockLayout, rng: random.Random) -> int:
    """Flip a bit in some of the blocks that are stored now, also while they are read; in how many."""
    num_flipped = 0
    for path in sorted(store.glob("*.kv")):
        with suppress(OSError), path.open("r+b") as file:  # it may be evicted meanwhile
            for start in range(PAGE_BYTES, path.stat().st_size, record_bytes(layout)):
                if rng.random() >= _FLIPPED_SHARE:
                    continue
                place = start + record_header_bytes(layout) + rng.randrange(layout.full_block_bytes)
                file.seek(place)
                byte = file.read(1)
                if byte:  # else the block is not written yet
                    file.seek(place)
                    file.write(bytes([byte[0] ^ (1 << rng.randrange(8))]))
                    num_flipped += 1
    return num_flipped


class Injector:
    """One per life of the driver."""

    def __init__(
        self, backend: AsyncRolloutBackend, store: Path, update: Update, *, fills_disk: bool
    ) -> None:
        """`fills_disk`: the store has a small file system of its own, which may be filled."""
        self._backend = backend
        self._store = store
        self._update = update
        self._fills_disk = fills_disk
        self._stopped: dict[int, asyncio.TimerHandle] = {}

    async def inject(self, fault: Fault) -> str | None:
        """What was done, in a few words; None: nothing, as what it is about is not there now."""
        rng = random.Random(fault.seed)
        verb, _, what = fault.kind.value.partition("_")
        match fault.kind:
            case FaultKind.CORRUPT_BLOCKS:
                layout = self._backend.cluster.layout
                num_flipped = await asyncio.to_thread(flip_bits, self._store, layout, rng)
                return f"{num_flipped} bits in as many blocks" if num_flipped else None
            case FaultKind.FILL_DISK:
                return await self._fill_disk() if self._fills_disk else None
            case FaultKind.UPDATE_WEIGHTS:
                await self._update()
                return f"to version {self._backend.weights_version}"
            case FaultKind.KILL_DRIVER:
                raise AssertionError("who is to be killed cannot do it")
        name, part = rng.choice(sorted(self._parts(what).items()))
        try:
            async with asyncio.timeout(ASK_DEADLINE_S):
                pid = await part.alive()
            os.kill(pid, signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
        except (EngineFailed, TimeoutError, ProcessLookupError):
            return None  # it is down already
        if verb == "stop":
            # Some go on before anybody has missed them, some are found dead, some are ended.
            config = self._backend.cluster.spec.scheduler
            for_s = rng.uniform(0.2, 1.5) * (config.heartbeat_deadline_s + config.restart_after_s)
            self._stopped[pid] = asyncio.get_running_loop().call_later(for_s, self._go_on, pid)
            return f"{name} for {for_s:.1f} s"
        return name

    def close(self) -> None:
        """Leave nobody stopped."""
        for pid, timer in list(self._stopped.items()):
            timer.cancel()
            self._go_on(pid)
        (self._store / _BALLAST).unlink(missing_ok=True)

    def _parts(self, what: str) -> dict[str, Any]:
        cluster = self._backend.cluster
        by_kind: dict[str, dict[str, Any]] = {
            "engine": _named(cluster.prefill_engines) | _named(cluster.decode_engines),
            "node": _named(cluster.nodes),
            "worker": {f"worker-{i}": worker for i, worker in enumerate(self._backend.workers)},
            "scheduler": {"scheduler": cluster.scheduler},
        }
        return by_kind[what]

    def _go_on(self, pid: int) -> None:
        del self._stopped[pid]
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return  # it was ended meanwhile

    async def _fill_disk(self) -> str:
        def fill() -> int:
            with (self._store / _BALLAST).open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 16))
                except OSError:
                    return file.tell()

        filled = await asyncio.to_thread(fill)
        await asyncio.sleep(_FULL_S)
        (self._store / _BALLAST).unlink(missing_ok=True)
        return f"{filled >> 10} KiB for {_FULL_S:.0f} s"


def _named(parts: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): part for name, part in parts.items()}
