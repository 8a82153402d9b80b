import random

from hypothesis import given
from hypothesis import strategies as st

from kvstore.keys import (
    KEY_BYTES,
    KeyChain,
    WeightsId,
    block_key,
    chain_root,
    weights_id_after_update,
    weights_id_of_files,
)
from kvstore.layout import KVFormat, KVGroup
from tests.kvstore.kv_blocks import SMALL

token_ids = st.lists(st.integers(0, 200_000), max_size=200)
ROOT = chain_root(WeightsId("w0"), SMALL.format)


def keys_of(ids, root=ROOT, block_tokens=4):
    chain = KeyChain(root, block_tokens)
    chain.extend(ids)
    return chain.keys


@given(token_ids, st.lists(st.integers(0, 50), max_size=20))
def test_appending_in_any_pieces_gives_the_same_keys(ids, cuts):
    chain, start, completed = KeyChain(ROOT, 4), 0, []
    for cut in [*cuts, len(ids)]:
        completed += chain.extend(ids[start : start + cut])
        start += cut
    assert chain.keys == completed == keys_of(ids)
    assert list(chain.tail) == ids[len(ids) // 4 * 4 :]
    assert chain.num_tokens == len(ids)


@given(token_ids, st.integers(0, 199))
def test_a_changed_token_changes_every_key_from_its_block_on(ids, where):
    changed = list(ids)
    if where >= len(ids) // 4 * 4:
        return
    changed[where] += 1
    before, after, block = keys_of(ids), keys_of(changed), where // 4
    assert before[:block] == after[:block]
    assert not set(before[block:]) & set(after[block:])


def test_each_key_follows_from_its_parent_and_its_tokens():
    first, second = keys_of([1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert first == block_key(ROOT, [1, 2, 3, 4])
    assert second == block_key(first, [5, 6, 7, 8])
    assert len(second) == KEY_BYTES


def test_contexts_under_different_circumstances_never_share_a_key():
    other_format = KVFormat("bfloat16", 1, (KVGroup("k", 8),))
    weights = WeightsId("w0")
    roots = [
        ROOT,
        chain_root(WeightsId("w1"), SMALL.format),
        chain_root(weights, other_format),
        chain_root(weights, SMALL.format, adapter_id="a"),
        chain_root(weights, SMALL.format, salt="a"),
        chain_root(WeightsId("w0a"), SMALL.format),
    ]
    ids = list(range(40))
    keys = [key for root in roots for key in keys_of(ids, root)]
    assert len(set(keys)) == len(keys) == 10 * len(roots)


@given(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.text(max_size=8))
def test_text_cannot_slip_from_one_part_of_the_root_to_the_next(adapter, salt, adapter_2, salt_2):
    one = chain_root(WeightsId("w"), SMALL.format, adapter_id=adapter, salt=salt)
    other = chain_root(WeightsId("w"), SMALL.format, adapter_id=adapter_2, salt=salt_2)
    assert (one == other) == ((adapter, salt) == (adapter_2, salt_2))


def test_weights_files_are_named_by_their_content_in_any_order(tmp_path):
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path in paths:
        path.write_bytes(random.Random(path.name).randbytes(100))
    before = weights_id_of_files(paths)
    assert weights_id_of_files(paths[::-1]) == before
    paths[1].write_bytes(b"other")
    assert weights_id_of_files(paths) != before


def test_two_runs_at_the_same_version_hold_different_weights():
    base = WeightsId("w0")
    ids = {weights_id_after_update(base, run, version) for run in ("r1", "r2") for version in (1, 2)}
    assert len(ids) == 4
    assert base not in ids
