"""Spells the pieces of a trace out: the token ids of a named stream.

A trace has lengths and no text. An id is a hash of (stream, place), taken into the vocabulary: equal pieces
are equal tokens in every process and every run, and streams have nothing in common beyond chance.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rollout.traces.session import Piece

_MASK = (1 << 64) - 1


class TokenSource:
    """Draws ids from a vocabulary."""

    def __init__(self, vocabulary: Sequence[int]) -> None:
        """`vocabulary`: the ordinary tokens' ids, at least one."""
        self._vocabulary = np.asarray(vocabulary, dtype=np.int32)
        assert len(self._vocabulary) > 0

    def spell(self, pieces: Sequence[Piece]) -> array[int]:
        """The ids of `pieces`, one after the other."""
        ids = array("i")
        for piece in pieces:
            places = np.arange(piece.tokens, dtype=np.uint64) + np.uint64(_base(piece))
            drawn = self._vocabulary[_mix(places) % np.uint64(len(self._vocabulary))]
            ids.frombytes(drawn.tobytes())
        return ids


def _base(piece: Piece) -> int:
    digest = hashlib.blake2b(piece.stream.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") + piece.start) & _MASK


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: neighbours come out unrelated."""
    words = words * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
