"""Transfers that nobody waits for any more, and that NIXL cannot stop: each is kept until it ends.

Closing an agent with READs under way over UCX's TCP may end the peer's process: UCX there takes an answer
that it cannot send for a fatal error (seen with NIXL 1.5.1 and a peer that had been stopped). So a transfer
that was given up goes on here, into memory of its own, until it is done or its peer is gone.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass

from kvstore.nixl_library import NixlAgent, NixlError, NixlTransfer
from kvstore.tcp_channel import TcpChannel

logger = logging.getLogger(__name__)

_PAUSE_S = 0.01
_CLOSE_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A transfer, and what it needs to go on."""

    control: TcpChannel
    agent: NixlAgent
    transfer: NixlTransfer

    def has_ended(self) -> bool:
        if self.control.is_hung_up():
            return True
        try:
            return self.transfer.is_done()
        except NixlError:
            return True

    def close(self) -> None:
        with suppress(NixlError):
            self.transfer.release()
        self.agent.close()
        self.control.close()


class UnfinishedTransfers:
    """Thread-safe. Has a thread of its own while there are any."""

    def __init__(self) -> None:
        self._kept: list[Unfinished] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, unfinished: Unfinished) -> None:
        """It is nobody else's from now on."""
        with self._changed:
            self._kept.append(unfinished)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="nixl-unfinished", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End all of them, whatever state they are in. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_DEADLINE_S)
            if thread.is_alive():
                logger.warning("a transfer of NIXL does not end; its memory stays")

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _PAUSE_S)
                ended = [each for each in self._kept if self._closed or each.has_ended()]
                self._kept = [each for each in self._kept if each not in ended]
                if not self._kept:
                    self._thread = None
            for each in ended:
                each.close()
            if not self._kept:
                return
