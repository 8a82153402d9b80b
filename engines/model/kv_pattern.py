"""KV bytes that prove where they come from: the pattern that paced engines write and check.

A token's KV in one layer is a row of 64-bit words

    word[w] of layer l at token t  =  chain[t] + layer[l] + column[w]                     (mod 2^64)
    chain[t]  =  K x chain[t-1] + H x (id[t] + 1)        chain[-1] = first bytes of the context's chain root

with odd K and H, and random layer[l] and column[w] with column[0] = 0. Whoever has a context's words thus has
its ids back, and every word of every layer follows from layer 0's column 0: a wrong bit, a token, layer,
block or context in another's place, and KV of other weights all show. That the ids are those asked for
is seen by their block keys. numpy only; no clock, no torch.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from engines.errors import KVDamaged
from engines.types import PromptKeys
from kvstore.keys import block_key

Words = npt.NDArray[np.uint64]
VOCABULARY = 256
"""Token ids of a paced model are below this."""
_K = 0xD1342543DE82EF95
_H = 0x9E3779B97F4A7C15
_MOD = 1 << 64
_H_INVERSE = np.uint64(pow(_H, -1, _MOD))
_SEED = 602_21548


class KVPattern:
    """The pattern of a model of `num_layers` layers with `num_words` words per token and layer."""

    def __init__(self, num_layers: int, num_words: int) -> None:
        self.num_words = num_words
        random = np.random.PCG64(_SEED).random_raw(num_layers + num_words).astype(np.uint64)
        self.layer_L = random[:num_layers]
        self.column_W = random[num_layers:]
        self.column_W[0] = 0
        self._powers = self._inverse_powers = np.ones(1, np.uint64)

    def chain(self, start: int, ids: npt.NDArray[np.integer]) -> Words:
        """chain[t] after each of `ids`, which follow the token whose chain is `start`.

        Raises ValueError for an id that is outside the vocabulary.
        """
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < VOCABULARY:
            wrong = ids[(ids < 0) | (ids >= VOCABULARY)][0]
            raise ValueError(f"token ids of a paced model must be 0..{VOCABULARY - 1}, got {wrong}")
        self._grow(len(ids) + 1)
        steps = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_H)
        steps *= self._inverse_powers[1 : len(ids) + 1]
        return (np.cumsum(steps, dtype=np.uint64) + np.uint64(start)) * self._powers[1 : len(ids) + 1]

    def advance(self, chain_B: Words, ids_B: npt.NDArray[np.integer]) -> Words:
        """One more token of every row."""
        return chain_B * np.uint64(_K) + (ids_B.astype(np.uint64) + np.uint64(1)) * np.uint64(_H)

    def words(self, chain: Words, layer: int) -> Words:
        """The words of tokens in a layer: [tokens] -> [tokens, num_words]."""
        return chain[:, None] + (self.layer_L[layer] + self.column_W)[None, :]

    def chain_of(self, words_0: Words) -> Words:
        """What the words of layer 0, column 0 say their tokens' chain is."""
        return words_0 - self.layer_L[0]

    def ids(self, start: int, chain: Words) -> Words:
        """The ids whose chain this is; what is no chain has ids outside the vocabulary."""
        before = np.empty_like(chain)
        before[:1] = start
        before[1:] = chain[:-1]
        return (chain - before * np.uint64(_K)) * _H_INVERSE - np.uint64(1)

    def next_ids(self, chain_B: Words) -> npt.NDArray[np.int64]:
        """The token that the model finds most likely after each of these: a function of the whole context."""
        mixed = (chain_B ^ (chain_B >> np.uint64(29))) * np.uint64(_H)
        return (mixed >> np.uint64(56)).astype(np.int64)

    def _grow(self, length: int) -> None:
        if len(self._powers) >= length:
            return
        size = max(length, 2 * len(self._powers), 1024)
        ones = np.ones(size, np.uint64)
        ones[1:] = _K
        self._powers = np.cumprod(ones, dtype=np.uint64)
        ones[1:] = pow(_K, -1, _MOD)
        self._inverse_powers = np.cumprod(ones, dtype=np.uint64)


class ContextCheck:
    """Checks one context's tokens [0, num_tokens), layer by layer in ascending order from 0."""

    def __init__(self, pattern: KVPattern, who: str, keys: PromptKeys, block_tokens: int) -> None:
        self._pattern = pattern
        self._who = who
        self._keys = keys
        self._block_tokens = block_tokens
        self._expected = np.empty((0, pattern.num_words), np.uint64)
        self._layer = 0
        self.last = chain_start(keys)
        """Chain of the last token, known once layer 0 is checked."""

    def check(self, words: Words, layer: int) -> None:
        """`words` [tokens, num_words] must be the context's KV in `layer`.

        Raises KVDamaged, which names the first token that is not.
        """
        if layer == 0:
            self._learn(self._pattern.chain_of(words[:, 0]))
        elif layer != self._layer:
            # Arrays of one, as numpy warns of scalars that wrap.
            self._expected += self._pattern.layer_L[[layer]] - self._pattern.layer_L[[self._layer]]
        self._layer = layer
        if not np.array_equal(words, self._expected):
            token = int(np.argmax((words != self._expected).any(axis=1)))
            raise KVDamaged(f"{self._who}: token {token} of layer {layer} is not what was written for it")

    def _learn(self, chain: Words) -> None:
        """Judge the ids that layer 0 holds, and expect what follows from them everywhere."""
        ids = self._pattern.ids(self.last, chain)
        if (ids >= VOCABULARY).any():
            token = int(np.argmax(ids >= VOCABULARY))
            raise KVDamaged(f"{self._who}: token {token} of layer 0 does not follow the one before it")
        self._check_keys(array("i", ids.astype(np.int32).tobytes()))
        self._expected = self._pattern.words(chain, 0)
        if len(chain):
            self.last = int(chain[-1])

    def _check_keys(self, ids: array[int]) -> None:
        parent = self._keys.chain_root
        for block, key in enumerate(self._keys.keys[: len(ids) // self._block_tokens]):
            start = block * self._block_tokens
            if block_key(parent, ids[start : start + self._block_tokens]) != key:
                raise KVDamaged(f"{self._who}: block {block} holds the tokens of another block")
            parent = key


def chain_start(keys: PromptKeys) -> int:
    """The chain before a context's first token."""
    return int.from_bytes(keys.chain_root[:8], "little")
