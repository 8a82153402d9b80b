from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engines.context import Context
from kvstore.keys import BlockKey, KeyChain, block_key

BLOCK_TOKENS = 4
ROOT, OTHER_ROOT = BlockKey(b"r" * 16), BlockKey(b"o" * 16)
TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=40)


def opened(token_ids: list[int], root: BlockKey = ROOT) -> Context:
    context = Context(root, BLOCK_TOKENS)
    context.append(token_ids)
    return context


@given(TOKENS, st.lists(st.integers(0, 40), max_size=5))
def test_keys_do_not_depend_on_how_the_tokens_were_appended(tokens: list[int], cuts: list[int]) -> None:
    context = Context(ROOT, BLOCK_TOKENS)
    borders = [0, *sorted(min(cut, len(tokens)) for cut in cuts), len(tokens)]
    for start, stop in pairwise(borders):
        context.append(tokens[start:stop])
    assert list(context.token_ids) == tokens
    assert context.keys == opened(tokens).keys
    assert len(context.keys) == len(context) // BLOCK_TOKENS


def test_a_key_names_its_block_and_all_before_it() -> None:
    first = block_key(ROOT, [1, 2, 3, 4])
    assert opened([1, 2, 3, 4, 5, 6, 7, 8, 9]).keys == (first, block_key(first, [5, 6, 7, 8]))


@given(TOKENS)
def test_other_weights_change_every_key_and_no_token(tokens: list[int]) -> None:
    context = opened(tokens)
    before = context.keys
    context.reroot(OTHER_ROOT)
    assert context.root == OTHER_ROOT
    assert list(context.token_ids) == tokens
    assert context.keys == opened(tokens, OTHER_ROOT).keys
    assert not set(context.keys) & set(before)


@given(TOKENS, TOKENS, TOKENS)
def test_an_extended_context_goes_its_own_way(tokens: list[int], more: list[int], other: list[int]) -> None:
    context = opened(tokens)
    longer = context.extended(more)
    context.append(other)
    for found, expected in ((longer, tokens + more), (context, tokens + other)):
        assert list(found.token_ids) == expected
        assert found.keys == opened(expected).keys


@given(TOKENS, TOKENS)
def test_a_rerooted_context_goes_on_under_the_new_root(tokens: list[int], more: list[int]) -> None:
    context = opened(tokens)
    context.reroot(OTHER_ROOT)
    context.append(more)
    chain = KeyChain(OTHER_ROOT, BLOCK_TOKENS)
    chain.extend(tokens + more)
    assert context.keys == tuple(chain.keys)
