"""How much of a prompt's hit is worth loading: only what loads faster than it computes.

Pure policy, ours. With k hit blocks loaded, the first token comes after

    max(time until the k blocks are read, time until the engine is free) + time to compute the rest

Reading needs all blocks before the first layer can run. The last term is concave in k for any estimate with
coefficients >= 0 and the first is piecewise linear, so the least sum lies at no block, at every block or at a
bend: where the second side begins to read, or where the reads end as the engine gets free. So a handful of
values are tried, not every k.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from engines.scheduling.estimate import PromptWork
from engines.scheduling.read_sides import SideLoad


def load_s(num_blocks: int, block_bytes: int, sides: tuple[SideLoad, ...]) -> float:
    """Seconds until `num_blocks` are read, shared over `sides` so that they finish together. 0 for none."""
    if not num_blocks:
        return 0.0
    rest_bytes, rate, done_s = float(num_blocks * block_bytes), 0.0, 0.0
    for side in sorted(sides, key=lambda side: side.finish_s(0)):
        start_s = side.finish_s(0)
        if rate:
            if rest_bytes <= (start_s - done_s) * rate:
                break
            rest_bytes -= (start_s - done_s) * rate
        rate, done_s = rate + side.bytes_per_s, start_s
    return done_s + rest_bytes / rate


def blocks_to_load(
    hit_blocks: int,
    prompt_tokens: int,
    predict_s: Callable[[PromptWork], float],
    sides: tuple[SideLoad, ...],
    *,
    block_bytes: int,
    block_tokens: int,
    engine_busy_s: float = 0.0,
) -> int:
    """Leading hit blocks to load, the others are computed; the more of them where it makes no difference.

    `predict_s` tells the time of a forward. `sides` are the nodes that may read them, `engine_busy_s` is the
    work before it on its prefill engine.
    """

    def first_token_s(num_blocks: int) -> float:
        cached_tokens = num_blocks * block_tokens
        work = PromptWork.of(cached_tokens, prompt_tokens - cached_tokens)
        return max(load_s(num_blocks, block_bytes, sides), engine_busy_s) + predict_s(work)

    tried = sorted(_bends(hit_blocks, block_bytes, sides, engine_busy_s), reverse=True)
    return min(tried, key=first_token_s)


def _bends(hit_blocks: int, block_bytes: int, sides: tuple[SideLoad, ...], engine_busy_s: float) -> set[int]:
    """Numbers of blocks around every bend of the time until they are read."""
    bends = {0, hit_blocks}
    for moment_s in (engine_busy_s, *(side.finish_s(0) for side in sides)):
        read_bytes = sum(max(moment_s - side.finish_s(0), 0.0) * side.bytes_per_s for side in sides)
        at = math.floor(min(read_bytes / block_bytes, hit_blocks))
        bends.update(k for k in (at - 1, at, at + 1, 1) if 0 <= k <= hit_blocks)
    return bends
