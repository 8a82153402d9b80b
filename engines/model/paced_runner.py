"""A runner whose model is never run: it sleeps for as long as a profile says, and its KV can be checked.

Every hit token is checked in HBM in every layer before that layer "runs", and a prompt once it lies in the
paged pool. A layer ends at a time on a schedule: what checking and sleeping take too long is made up for in
the next layer; only KV that comes late moves the schedule. With `verify` false (an oracle moves no bytes)
nothing is checked.

    HBM buffer and pool hold bytes; here they are seen as words [..., token_bytes / 8]
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engines.measured import Forward, TokenCounts
from engines.model.kv_pattern import VOCABULARY, ContextCheck, KVPattern, Words
from engines.model.paced_spec import WORD_BYTES, PacedSpec
from engines.model.runner import BatchShape, DecodeRow, GroupLinks, LayerFeed, NamedArray, PrefillRow
from engines.scheduling.estimate import PromptWork
from engines.scheduling.prefill_estimates import PrefillProfile
from engines.types import BlockId

_KEPT_FORWARDS = 4096
_WAITED_S = 0.0002
"""A load that took longer than this was waited for; a shorter one had come before it was asked for."""
_BACK_TO_BACK_S = 0.005
"""A decode step that begins within this time of the last one's end follows it without a gap."""
_SURE_LOGIT = 20.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How the runner tells the time and lets it pass."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until(self, end_s: float) -> float:
        """Return at `end_s`, or at once if that has passed; by how much it has."""
        while (left_s := end_s - self.clock()) > 0:
            self.sleep(left_s)
        return -left_s


class PacedRunner:
    """A ModelRunner over a PacedSpec. Its outputs are a function of the context alone."""

    paged = False

    def __init__(
        self, spec: PacedSpec, block_tokens: int, *, verify: bool = True, pace: Pace | None = None
    ) -> None:
        self.layout = spec.layout(block_tokens)
        self.device = torch.device("cpu")
        self.padding_exact = True
        self.counts = TokenCounts()
        self.pads = False
        self._times = spec.step_times
        self.prefill_profile: PrefillProfile | None = PrefillProfile(
            self._times.attention_coefficients(), self._times.forward_coefficients(), spec.time_scale
        )
        self.attention_s: float | None = None
        self._verify = verify
        self._pace = pace or Pace()
        self._pattern = KVPattern(self.layout.num_layers, self.layout.token_bytes // WORD_BYTES)
        self._offsets_LW = self._pattern.layer_L[:, None] + self._pattern.column_W[None, :]
        self._pool = np.empty((0, 0, 0, 0), np.uint64)
        self._checked: dict[BlockId, tuple[int, int]] = {}
        """By a row's first pool block: the position it feeds next and the chain before it."""
        self._decoded_s = 0.0
        self._links = GroupLinks(_send_nowhere, None)
        self._prefill_bytes = spec.collective_bytes(prefill=True)
        self._decode_bytes = self.layout.num_layers * spec.collective_bytes(prefill=False)
        self._forwards: deque[Forward] = deque(maxlen=_KEPT_FORWARDS)

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The last steps, oldest first."""
        return tuple(self._forwards)

    def link(self, links: GroupLinks) -> None:
        self._links = links

    # -- prefill -------------------------------------------------------------------------------------

    def prefill(self, rows: Sequence[PrefillRow], feed: LayerFeed) -> Tensor:
        """Raises KVDamaged for the first wrong byte of a hit, naming row, token and layer."""
        work = PromptWork()
        for row in rows:
            work += PromptWork.of(row.hit_tokens, len(row.token_ids))
        layer_s = self._times.layer_s(work)
        prompts = [_Prompt(self._pattern, row, self.layout.block_tokens) for row in rows]
        round_number = self._join_round(self.layout.num_layers * layer_s)
        started_s = end_s = self._pace.clock()
        late_s = 0.0
        for layer in range(self.layout.num_layers):
            asked_s = self._pace.clock()
            words = _words(feed.load(layer))
            came_s = self._pace.clock()
            hit_columns = words.shape[1] - max(len(row.token_ids) for row in rows)
            for prompt, row_words in zip(prompts, words, strict=True):
                if self._verify:
                    prompt.check(row_words, layer)
                prompt.compute(row_words[hit_columns:], layer)
            end_s = (came_s if came_s - asked_s > _WAITED_S else end_s) + layer_s
            end_s = max(end_s, self._send(self._prefill_bytes * work.new_tokens))
            late_s = self._pace.until(end_s)
            num_left = self.layout.num_layers - 1 - layer
            self._keep_round(round_number, end_s + num_left * layer_s, is_last=num_left == 0)
            feed.store(layer)
        self.attention_s = self._attention_s(work)
        self._forwards.append(
            Forward(
                started_s,
                self._pace.clock() - started_s,
                self.attention_s,
                work.new_tokens,
                work.kv_tokens,
                round_number,
                late_s,
            )
        )
        self.counts.prompt += work.new_tokens
        self.counts.verified += sum(row.hit_tokens for row in rows) if self._verify else 0
        return self._logits(np.array([prompt.last for prompt in prompts], np.uint64))

    def new_buffer(self, shape: BatchShape) -> Tensor:
        size = (len(shape.hit_tokens), shape.columns, self.layout.token_bytes)
        # Zeroed, or a hit that was never loaded might be found in what an earlier batch left behind.
        return torch.zeros(size, dtype=torch.uint8)

    def _join_round(self, forward_s: float) -> int:
        """Return when the group lets a forward begin."""
        rounds = self._links.rounds
        if rounds is None:
            return 0
        while (number := rounds.join(self._pace.clock(), forward_s)) is None:
            self._pace.until(rounds.end_s())
        return number

    def _keep_round(self, number: int, end_s: float, *, is_last: bool) -> None:
        """Tell the group when this forward will end; after its last layer, wait for the slowest."""
        rounds = self._links.rounds
        if rounds is None:
            return
        rounds.extend(number, end_s)
        while is_last and self._pace.clock() < (until_s := rounds.end_s(number)):
            self._pace.until(until_s)

    def _send(self, nbytes: float) -> float:
        """Have the collectives' bytes pass while the layer runs; when they had."""
        if not nbytes:
            return 0.0
        self._links.send(round(nbytes))
        return self._pace.clock()

    def _attention_s(self, work: PromptWork) -> float:
        return self.layout.num_layers * self._times.attention_s(work)

    # -- decode --------------------------------------------------------------------------------------

    def make_pool(self, num_blocks: int) -> Tensor:
        size = (self.layout.num_layers, num_blocks, self.layout.block_tokens, self.layout.token_bytes)
        pool = torch.zeros(size, dtype=torch.uint8)
        self._pool = _words(pool)
        return pool

    def begin_decode(self, row: DecodeRow) -> None:
        """Raises KVDamaged for the first wrong byte of the row's prompt."""
        if self._verify:
            self._checked[row.block_table[0]] = (row.position, self._check(row))

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Raises KVDamaged for the first wrong byte of a prompt that no `begin_decode` has checked."""
        asked_s = self._pace.clock()
        follows = asked_s - self._decoded_s < _BACK_TO_BACK_S
        started_s = self._decoded_s if follows else asked_s
        chain_B = self._feed(rows)
        context_tokens = sum(row.position + 1 for row in rows)
        sending_s = self._pace.clock()
        sent_s = self._send(self._decode_bytes * len(rows))
        late_s = sent_s - sending_s - self._times.decode_collective_s(len(rows))
        self._decoded_s = started_s + self._times.decode_s(len(rows), context_tokens) + max(late_s, 0.0)
        late_s = self._pace.until(self._decoded_s)
        duration_s = self._pace.clock() - started_s
        self._forwards.append(Forward(started_s, duration_s, 0.0, len(rows), context_tokens, late_s=late_s))
        self.counts.decode += len(rows)
        return self._logits(chain_B)

    def _feed(self, rows: Sequence[DecodeRow]) -> Words:
        """Write the KV of each row's token behind its context; the chain after it."""
        step = self.layout.block_tokens
        before = [(row.block_table[(row.position - 1) // step], (row.position - 1) % step) for row in rows]
        block_B, offset_B = np.array(before).T
        chain_B = self._pattern.chain_of(self._pool[0, block_B, offset_B, 0])
        if self._verify:
            for row, chain in zip(rows, chain_B.tolist(), strict=True):
                if self._checked.get(row.block_table[0]) != (row.position, chain):
                    self._check(row)
        chain_B = self._pattern.advance(chain_B, np.array([row.token_id for row in rows]))
        places = [(row.block_table[row.position // step], row.position % step) for row in rows]
        block_B, offset_B = np.array(places).T
        self._pool[:, block_B, offset_B] = chain_B[None, :, None] + self._offsets_LW[:, None, :]
        for row, chain in zip(rows, chain_B.tolist(), strict=True):
            self._checked[row.block_table[0]] = (row.position + 1, chain)
        return chain_B

    def _check(self, row: DecodeRow) -> int:
        """A row that is new here: its whole context, in every layer of the pool; the chain at its end."""
        table = np.array(row.block_table[: self.layout.num_blocks(row.position)])
        check = ContextCheck(
            self._pattern, "a prompt copied into the pool", row.prompt, self.layout.block_tokens
        )
        gathered = np.empty((len(table), *self._pool.shape[2:]), np.uint64)
        for layer, pool in enumerate(self._pool):
            np.take(pool, table, axis=0, out=gathered, mode="clip")
            check.check(gathered.reshape(-1, self._pattern.num_words)[: row.position], layer)
        self.counts.verified += row.position
        return check.last

    # -- both ----------------------------------------------------------------------------------------

    def weight_sizes(self) -> dict[str, int]:
        return {}

    def read_weights(self, names: Sequence[str]) -> list[NamedArray]:
        raise KeyError("a paced model has no weights")

    def load_weights(self, bucket: Iterable[NamedArray]) -> None:
        """A paced model has no weights: a new version is only another chain root."""
        for name, _ in bucket:
            raise KeyError(f"a paced model has no weight named {name}")

    def weights_loaded(self) -> None:
        pass

    def _logits(self, chain_B: Words) -> Tensor:
        logits_BV = torch.zeros(len(chain_B), VOCABULARY)
        logits_BV[torch.arange(len(chain_B)), torch.from_numpy(self._pattern.next_ids(chain_B))] = _SURE_LOGIT
        return logits_BV


class _Prompt:
    """One row of a prefill batch: its hit's check, and the chain of its new tokens."""

    def __init__(self, pattern: KVPattern, row: PrefillRow, block_tokens: int) -> None:
        self._pattern = pattern
        self._row = row
        who = f"a prompt of {row.hit_tokens} + {len(row.token_ids)} tokens"
        self._hit = ContextCheck(pattern, who, row.prompt, block_tokens)
        self._chain: Words | None = None

    @property
    def last(self) -> int:
        """Chain of the prompt's last token."""
        assert self._chain is not None
        return int(self._chain[-1])

    def check(self, words: Words, layer: int) -> None:
        self._hit.check(words[: self._row.hit_tokens], layer)

    def compute(self, words: Words, layer: int) -> None:
        """The new tokens' KV into `words` [new columns, num_words]."""
        if self._chain is None:
            ids = np.frombuffer(self._row.token_ids, np.int32)
            self._chain = self._pattern.chain(self._hit.last, ids)
        words[: len(self._chain)] = self._pattern.words(self._chain, layer)


def _send_nowhere(nbytes: int) -> None:
    pass


def _words(buffer: Tensor) -> Words:
    return buffer.numpy().view(np.uint64)
