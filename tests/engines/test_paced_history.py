"""History that is made is what paced engines check for: every byte, every key."""

from __future__ import annotations

from array import array

import numpy as np

from engines.model.kv_pattern import ContextCheck, KVPattern
from engines.model.paced_history import PacedHistory
from engines.types import PromptKeys
from kvstore.keys import BlockKey, KeyChain
from tests.engines.paced import SPEC

BLOCK_TOKENS = 16
ROOT = BlockKey(bytes(range(16)))
IDS = array("i", [(7 * place) % 256 for place in range(50)])


def test_made_blocks_pass_the_engines_own_check_and_have_their_contexts_keys():
    layout = SPEC.layout(BLOCK_TOKENS)
    made = list(PacedHistory(SPEC, IDS, ROOT, BLOCK_TOKENS).blocks())
    chain = KeyChain(ROOT, BLOCK_TOKENS)
    chain.extend(IDS)
    assert [key for _, key, _ in made] == chain.keys
    assert [parent for parent, _, _ in made] == [ROOT, *chain.keys[:-1]]
    assert {len(data) for _, _, data in made} == {layout.full_block_bytes}
    pattern = KVPattern(layout.num_layers, layout.token_bytes // 8)
    check = ContextCheck(pattern, "made", PromptKeys(ROOT, tuple(chain.keys)), BLOCK_TOKENS)
    blocks = [data.view(np.uint64).reshape(layout.num_layers, BLOCK_TOKENS, -1) for _, _, data in made]
    for layer in range(layout.num_layers):
        check.check(np.concatenate([block[layer] for block in blocks]), layer)
