"""The paced runner alone: a pattern in which every wrong byte is found, and steps that end on a schedule."""

from __future__ import annotations

from array import array
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.errors import KVDamaged
from engines.model.paced_runner import Pace, PacedRunner
from engines.model.runner import BatchShape, DecodeRow, PrefillRow
from engines.scheduling.estimate import PromptWork
from engines.types import BlockId, PromptKeys
from kvstore.keys import BlockKey, KeyChain
from tests.engines.paced import SPEC, next_id

STEP = 8
ROOT = BlockKey(b"root-of-a-chain!")


def random_ids(num_tokens: int, seed: int) -> array[int]:
    return array("i", np.random.default_rng(seed).integers(0, 256, num_tokens, np.int32).tobytes())


def keys_of(ids: array[int], root: BlockKey = ROOT) -> PromptKeys:
    chain = KeyChain(root, STEP)
    chain.extend(ids)
    return PromptKeys(root, tuple(chain.keys))


class Clock:
    """Time that passes only by sleeping, always a little longer than asked, and by what a feed takes."""

    def __init__(self, oversleep_s: float = 0.0) -> None:
        self.now_s = 100.0
        self._oversleep_s = oversleep_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds + self._oversleep_s

    @property
    def pace(self) -> Pace:
        return Pace(lambda: self.now_s, self.sleep)


class MemoryFeed:
    """Hit KV from `stored` [layers, columns, bytes] a row; keeps what the forward leaves in the buffers."""

    def __init__(self, buffer: Tensor, hits: list[Tensor], on_load: Callable[[int], None] = id) -> None:
        self._buffer = buffer
        self._hits = hits
        self._on_load = on_load
        self.layers: list[Tensor] = []

    def load(self, layer: int) -> Tensor:
        self._on_load(layer)
        for row, hit in zip(self._buffer, self._hits, strict=True):
            row[: hit.shape[1]] = hit[layer]
        return self._buffer

    def store(self, layer: int) -> None:
        self.layers.append(self._buffer.clone())


def runner(**options: object) -> PacedRunner:
    return PacedRunner(SPEC, STEP, pace=Clock().pace, **options)  # type: ignore[arg-type]


def prefilled(
    paced: PacedRunner, rows: list[PrefillRow], hits: list[Tensor], on_load: Callable[[int], None] = id
) -> tuple[Tensor, list[Tensor]]:
    """The logits, and each row's whole KV [layers, tokens, bytes] behind the forward."""
    shape = BatchShape(tuple(row.hit_tokens for row in rows), tuple(len(row.token_ids) for row in rows))
    feed = MemoryFeed(paced.new_buffer(shape), hits, on_load)
    logits = paced.prefill(rows, feed)
    layers = torch.stack(feed.layers, dim=1)
    new = [layers[i, :, shape.hit_columns :][:, : len(row.token_ids)] for i, row in enumerate(rows)]
    return logits, [torch.cat(pair, dim=1) for pair in zip(hits, new, strict=True)]


NOTHING = torch.zeros(3, 0, 64, dtype=torch.uint8)


def kv_of(ids: array[int], root: BlockKey = ROOT) -> Tensor:
    """[layers, tokens, bytes] of a context computed at once."""
    return prefilled(runner(), [PrefillRow(0, ids, keys_of(ids, root))], [NOTHING])[1][0]


def test_kv_is_the_same_however_the_prompt_was_split():
    ids = random_ids(37, 1)
    whole = kv_of(ids)
    for hit in (8, 16, 32):
        row = PrefillRow(hit, ids[hit:], keys_of(ids))
        logits, (again,) = prefilled(runner(), [row], [whole[:, :hit]])
        assert torch.equal(again, whole)
        assert int(logits.argmax()) == next_id(keys_of(ids), ids)


def test_rows_of_a_batch_do_not_feel_each_other():
    contexts = [random_ids(length, seed) for seed, length in enumerate((40, 9, 25))]
    hits = [kv_of(ids)[:, :hit] for ids, hit in zip(contexts, (32, 0, 16), strict=True)]
    rows = [
        PrefillRow(hit.shape[1], ids[hit.shape[1] :], keys_of(ids))
        for ids, hit in zip(contexts, hits, strict=True)
    ]
    logits, kv = prefilled(runner(), rows, hits)
    assert logits.argmax(1).tolist() == [next_id(keys_of(ids), ids) for ids in contexts]
    for ids, row_kv in zip(contexts, kv, strict=True):
        assert torch.equal(row_kv, kv_of(ids))


def prefill_with(hit: Tensor, ids: array[int]) -> None:
    prefilled(runner(), [PrefillRow(hit.shape[1], ids[hit.shape[1] :], keys_of(ids))], [hit])


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("token", [0, 13, 31])
@pytest.mark.parametrize("byte", [0, 7, 8, 63])
def test_a_flipped_bit_is_found_wherever_it_is(layer, token, byte):
    ids = random_ids(40, 2)
    hit = kv_of(ids)[:, :32].clone()
    hit[layer, token, byte] ^= 4
    with pytest.raises(KVDamaged, match=rf"token {token} of layer {layer}"):
        prefill_with(hit, ids)


def swapped_layers(hit: Tensor, ids: array[int]) -> Tensor:
    return hit[[1, 0, 2]]


def swapped_blocks(hit: Tensor, ids: array[int]) -> Tensor:
    return torch.cat([hit[:, 8:16], hit[:, :8], hit[:, 16:]], dim=1)


def last_layer_of_another_block(hit: Tensor, ids: array[int]) -> Tensor:
    hit = hit.clone()
    hit[2, 8:16] = hit[2, 16:24]
    return hit


def zeros(hit: Tensor, ids: array[int]) -> Tensor:
    return torch.zeros_like(hit)


def another_context(hit: Tensor, ids: array[int]) -> Tensor:
    return kv_of(random_ids(40, 99))[:, :32]


def other_weights(hit: Tensor, ids: array[int]) -> Tensor:
    return kv_of(ids, BlockKey(b"other weights...")).clone()[:, :32]


def a_sibling_with_the_same_end(hit: Tensor, ids: array[int]) -> Tensor:
    sibling = ids[:]
    sibling[3] ^= 1
    return kv_of(sibling)[:, :32]


@pytest.mark.parametrize(
    "wrong",
    [
        swapped_layers,
        swapped_blocks,
        last_layer_of_another_block,
        zeros,
        another_context,
        other_weights,
        a_sibling_with_the_same_end,
    ],
)
def test_kv_that_belongs_elsewhere_is_found(wrong):
    ids = random_ids(40, 3)
    hit = kv_of(ids)[:, :32]
    prefill_with(hit, ids)
    with pytest.raises(KVDamaged):
        prefill_with(wrong(hit, ids), ids)


def test_an_oracle_checks_nothing():
    ids = random_ids(40, 4)
    row = PrefillRow(32, ids[32:], keys_of(ids))
    prefilled(runner(verify=False), [row], [torch.zeros(3, 32, 64, dtype=torch.uint8)])


def test_an_id_outside_the_vocabulary_is_named():
    with pytest.raises(ValueError, match=r"0\.\.255, got 256"):
        prefilled(runner(), [PrefillRow(0, array("i", [1, 256]))], [NOTHING])


# -- decode ---------------------------------------------------------------------------------------------


def in_pool(paced: PacedRunner, ids: array[int], table: list[BlockId]) -> Tensor:
    pool = paced.make_pool(16)
    for token, kv in enumerate(kv_of(ids).unbind(1)):
        pool[:, table[token // STEP], token % STEP] = kv
    return pool


TABLE = [BlockId(block) for block in (5, 2, 9, 11)]


def test_decoding_writes_the_kv_that_a_prompt_would_have():
    paced, ids = runner(), random_ids(21, 5)
    pool = in_pool(paced, ids, TABLE)
    keys = keys_of(ids)
    while len(ids) < 30:
        token = next_id(keys, ids)
        logits = paced.decode([DecodeRow(token, len(ids), TABLE, keys)])
        ids.append(token)
        assert int(logits.argmax()) == next_id(keys, ids)
    found = pool[:, TABLE].flatten(1, 2)[:, : len(ids)]
    assert torch.equal(found, kv_of(ids))


def test_a_prompt_that_was_copied_wrong_into_the_pool_is_found():
    paced, ids = runner(), random_ids(21, 6)
    pool = in_pool(paced, ids, TABLE)
    pool[2, TABLE[1], 3, 17] ^= 1
    with pytest.raises(KVDamaged, match="token 11 of layer 2"):
        paced.decode([DecodeRow(0, len(ids), TABLE, keys_of(ids))])


def test_blocks_that_another_turn_had_before_are_checked_anew():
    paced, ids = runner(), random_ids(21, 7)
    pool = in_pool(paced, ids, TABLE)
    paced.decode([DecodeRow(0, 21, TABLE, keys_of(ids))])
    for token, kv in enumerate(kv_of(random_ids(22, 8)).unbind(1)):
        pool[:, TABLE[token // STEP], token % STEP] = kv
    with pytest.raises(KVDamaged):
        paced.decode([DecodeRow(0, 22, TABLE, keys_of(ids))])


# -- time -----------------------------------------------------------------------------------------------


def test_layers_end_on_a_schedule_however_late_each_sleep_returns():
    clock, ids = Clock(oversleep_s=2e-6), random_ids(40, 9)
    paced = PacedRunner(SPEC, STEP, pace=clock.pace)
    forward_s = SPEC.step_times.forward_s(PromptWork.of(0, 40))
    prefilled(paced, [PrefillRow(0, ids)], [NOTHING])
    assert clock.now_s - 100 == pytest.approx(forward_s + 2e-6, abs=1e-9)


def test_only_kv_that_comes_late_moves_the_schedule():
    clock, ids = Clock(), random_ids(40, 10)
    paced = PacedRunner(SPEC, STEP, pace=clock.pace)
    late = {1: 0.01, 2: 0.0001}

    def on_load(layer: int) -> None:
        clock.now_s += late.get(layer, 0.0)

    prefilled(paced, [PrefillRow(0, ids)], [NOTHING], on_load)
    # 0.1 ms is no wait: it passes while the layer before still counts as running.
    layer_s = SPEC.step_times.layer_s(PromptWork.of(0, 40))
    lag_s = max(0.0, 0.0001 - layer_s)
    assert clock.now_s - 100 == pytest.approx(3 * layer_s + 0.01 + lag_s, abs=1e-9)


def test_decode_steps_that_follow_each_other_keep_time_between_them():
    clock, ids = Clock(), random_ids(21, 11)
    paced = PacedRunner(SPEC, STEP, pace=clock.pace)
    in_pool(paced, ids, TABLE)
    planned_s = 0.0
    for position in range(21, 25):
        paced.decode([DecodeRow(0, position, TABLE, keys_of(ids))])
        planned_s += SPEC.step_times.decode_s(1, position + 1)
        clock.now_s += 2e-5  # the engine's own work
    assert clock.now_s - 100 == pytest.approx(planned_s + 2e-5, abs=1e-9)


def test_steps_are_recorded():
    paced, ids = runner(), random_ids(40, 12)
    prefilled(paced, [PrefillRow(32, ids[32:], keys_of(ids))], [kv_of(ids)[:, :32]])
    (forward,) = paced.forwards
    work = PromptWork.of(32, 8)
    assert (forward.new_tokens, forward.kv_tokens) == (8, 40)
    assert forward.attention_s == pytest.approx(3 * SPEC.step_times.attention_s(work))
    assert forward.duration_s >= forward.attention_s


def test_a_step_says_how_late_it_ended():
    clock, ids = Clock(), random_ids(40, 13)
    paced = PacedRunner(SPEC, STEP, pace=clock.pace)
    layer_s = SPEC.step_times.layer_s(PromptWork.of(0, 40))

    def on_load(layer: int) -> None:
        clock.now_s += 0.00019  # of a busy host, as no KV was waited for

    prefilled(paced, [PrefillRow(0, ids)], [NOTHING], on_load)
    assert paced.forwards[0].late_s == pytest.approx(max(3 * (0.00019 - layer_s), 0.0), abs=1e-9)
    prefilled(paced, [PrefillRow(0, ids)], [NOTHING])
    assert paced.forwards[1].late_s == pytest.approx(0, abs=1e-9)
