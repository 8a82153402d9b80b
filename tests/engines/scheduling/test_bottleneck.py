"""The range and the links of DualPath (arXiv 2602.21548), section 4.2."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.scheduling.bottleneck import ClusterShape, binding_link, free_range, link_uses

B = 50e9


def shape(
    prefill: int, decode: int, *, g: int = 8, s: float = 1.0, memory: float | None = 500e9
) -> ClusterShape:
    """The paper's node: g engines, CNICs of B, a storage NIC of s x B."""
    return ClusterShape(prefill, decode, g, g, B, s * B, s * B, memory)


def test_the_paper_s_node_is_free_from_one_to_seven_up_to_seven_to_two() -> None:
    assert free_range(shape(1, 1)) == pytest.approx((1 / 7, 7 / 2))


def uneven(prefill: int, decode: int, *, prefill_s: float, decode_s: float) -> ClusterShape:
    return replace(
        shape(prefill, decode, memory=None),
        prefill_snic_bytes_per_s=prefill_s * B,
        decode_snic_bytes_per_s=decode_s * B,
    )


@pytest.mark.parametrize(
    ("cluster", "link"),
    [
        (shape(1, 2), None),
        (shape(2, 4), None),
        (shape(1, 7), None),
        (shape(7, 2), None),
        (shape(1, 8), "prefill CNIC writes"),
        (shape(4, 1, memory=None), "decode CNIC writes"),
        (shape(15, 4, memory=490e9), "decode node DRAM"),
        (shape(1, 1, s=4.5, memory=None), "decode CNIC reads"),
        (shape(1, 1, g=1, s=1 / 8, memory=None), None),
        (shape(8, 1, g=1, s=1 / 8, memory=None), "decode CNIC writes"),
        (uneven(1, 1, prefill_s=4.5, decode_s=0.01), "decode CNIC writes"),
        (uneven(1, 4, prefill_s=4.5, decode_s=0.01), "prefill CNIC reads"),
        (shape(1, 1, memory=120e9), "decode node DRAM"),
        (replace(shape(4, 1), prefill_snic_bytes_per_s=0.1 * B, decode_snic_bytes_per_s=0.1 * B,
                 memory_bytes_per_s=1e9), "decode node DRAM"),
    ],
)  # fmt: skip
def test_the_link_that_binds_is_named(cluster: ClusterShape, link: str | None) -> None:
    found = binding_link(cluster)
    assert (found and found.link) == link


def test_memory_of_a_prefill_node_counts_its_reads_twice() -> None:
    uses = {use.link: use.utilisation for use in link_uses(shape(1, 1))}
    assert uses["prefill node DRAM"] == pytest.approx(2 * B / 500e9)
    assert uses["decode node DRAM"] == pytest.approx(5 * B / 500e9)


def test_a_range_is_empty_where_a_link_binds_whatever_the_ratio() -> None:
    lowest, highest = free_range(shape(1, 1, s=4.5))
    assert lowest > highest


@pytest.mark.parametrize("field", ["prefill_nodes", "cnic_bytes_per_s", "decode_snic_bytes_per_s"])
def test_nothing_of_a_cluster_may_be_zero(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be above 0, got 0"):
        replace(shape(1, 1), **{field: 0})


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 8), st.floats(0.05, 6), st.floats(1e11, 1e12))
def test_a_link_binds_exactly_outside_the_range(
    prefill: int, decode: int, g: int, s: float, memory: float
) -> None:
    cluster = shape(prefill, decode, g=g, s=s, memory=memory)
    lowest, highest = free_range(cluster)
    ratio = prefill / decode
    if min(abs(ratio - lowest), abs(ratio - highest)) > 1e-9:
        assert (binding_link(cluster) is None) == (lowest < ratio < highest)
