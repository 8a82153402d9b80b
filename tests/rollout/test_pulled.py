"""What one thread iterates and another thread's event loop reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from rollout.pulled import Pulled


def read(items: Iterable[int], take: Callable[[Pulled[int]], object]) -> list[object]:
    """What `take(pulled)`, a coroutine, returns on a loop of its own while this thread serves."""
    pulled, found = Pulled(items), list[object]()

    def run() -> None:
        try:
            found.append(asyncio.run(take(pulled)))  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001 - for the test to look at
            found.append(error)
        finally:
            pulled.stop()

    reader = threading.Thread(target=run)
    reader.start()
    pulled.serve()
    reader.join(10)
    assert not reader.is_alive()
    return found


async def everything(pulled: Pulled[int]) -> list[int]:
    return [item async for item in pulled]


def test_items_come_in_order_and_are_made_on_the_serving_thread() -> None:
    threads = []

    def items() -> Iterator[int]:
        for item in range(3):
            threads.append(threading.current_thread())
            yield item

    assert read(items(), everything) == [[0, 1, 2]]
    assert set(threads) == {threading.current_thread()}


def test_what_the_items_raise_is_raised_where_they_are_read() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("gone")

    (raised,) = read(items(), everything)
    assert isinstance(raised, LookupError)


def test_a_reader_that_stops_early_leaves_the_rest_to_its_owner() -> None:
    async def one(pulled: Pulled[int]) -> int:
        async for item in pulled:
            return item
        pytest.fail("there was an item")

    items = iter(range(3))
    assert read(items, one) == [0]
    assert list(items) == [1, 2]
