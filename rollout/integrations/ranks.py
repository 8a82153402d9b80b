"""The processes of one training job, as torch.distributed connects them; one process is one rank.

The backend belongs to rank 0. What it does there may take longer than a collective may wait, so the others
are told every few seconds that it goes on; what it raises is raised by all of them. Every method is
collective: all ranks call it, in the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from rollout.errors import RolloutError, UserError

Result = TypeVar("Result")
TELL_EVERY_S = 5.0
"""Far below the shortest deadline that a process group has by default (10 minutes)."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What rank 0 says: that it goes on, what it has, or what went wrong."""

    done: bool = True
    result: Any = None
    error: RolloutError | None = None


class Ranks:
    """Of this process's default group, if it has one."""

    def __init__(self) -> None:
        from torch import distributed

        self.size = distributed.get_world_size() if distributed.is_initialized() else 1
        self.rank = distributed.get_rank() if distributed.is_initialized() else 0

    def gather(self, own: Result) -> list[Result]:
        """Every rank's, in order of rank."""
        if self.size == 1:
            return [own]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, own)
        return found

    def from_first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on rank 0, which alone does it. What it raises is an error of all ranks."""
        if self.size == 1:
            return work()
        if self.rank == 0:
            return self._work_and_tell(work)
        while not (told := self._tell(None)).done:
            pass
        if told.error is not None:
            raise told.error
        result: Result = told.result
        return result

    def _work_and_tell(self, work: Callable[[], Result]) -> Result:
        future = _in_thread(work)
        while not wait([future], TELL_EVERY_S).done:
            self._tell(_Told(done=False))
        error = future.exception()
        self._tell(_Told(result=future.result()) if error is None else _Told(error=_as_ours(error)))
        return future.result()

    def _tell(self, told: _Told | None) -> _Told:
        from torch import distributed

        box: list[Any] = [told]
        distributed.broadcast_object_list(box, src=0)
        answer: _Told = box[0]
        return answer


def _in_thread(work: Callable[[], Result]) -> Future[Result]:
    """A daemon: it holds up neither who stops waiting for it nor the end of the process."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - carried to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name="rank-0", daemon=True).start()
    return future


def _as_ours(error: BaseException) -> RolloutError:
    """As the other ranks raise it; a line for the user stays one."""
    if isinstance(error, UserError):
        return UserError(str(error))
    return RolloutError(f"rank 0 failed: {type(error).__name__}: {error}")
