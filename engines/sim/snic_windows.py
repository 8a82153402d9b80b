"""What passes each storage NIC, second by second.

DualPath (arXiv 2602.21548, section 7) compares the busiest storage NIC with the mean in windows of 1 s.
"""

from __future__ import annotations

from array import array

import numpy as np

from engines.sim.result import SnicUse

WINDOW_S = 1.0


class SnicWindows:
    """Bytes by node and window. A transfer's bytes are spread evenly over the time it took."""

    def __init__(self, num_nodes: int) -> None:
        self._read = [array("d") for _ in range(num_nodes)]
        self._written = [array("d") for _ in range(num_nodes)]

    def read(self, node: int, began_s: float, ended_s: float, nbytes: float) -> None:
        _spread(self._read[node], began_s, ended_s, nbytes)

    def wrote(self, node: int, began_s: float, ended_s: float, nbytes: float) -> None:
        _spread(self._written[node], began_s, ended_s, nbytes)

    def use(self) -> SnicUse:
        num = max((len(column) for column in (*self._read, *self._written)), default=0)
        return SnicUse(_stack(self._read, num), _stack(self._written, num))


def _spread(column: array[float], began_s: float, ended_s: float, nbytes: float) -> None:
    first, last = int(began_s / WINDOW_S), int(ended_s / WINDOW_S)
    if last >= len(column):
        column.frombytes(bytes(8 * (last + 1 - len(column))))
    if first == last:
        column[first] += nbytes
        return
    rate = nbytes / (ended_s - began_s)
    for window in range(first, last + 1):
        start_s, end_s = max(began_s, window * WINDOW_S), min(ended_s, (window + 1) * WINDOW_S)
        column[window] += rate * (end_s - start_s)


def _stack(columns: list[array[float]], num: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    table = np.zeros((num, len(columns)))
    for node, column in enumerate(columns):
        table[: len(column), node] = column
    return table
