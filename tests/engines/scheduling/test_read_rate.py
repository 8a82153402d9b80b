from __future__ import annotations

import pytest

from engines.scheduling.read_rate import ReadRate


def test_the_rate_is_the_one_that_was_set_until_something_was_read() -> None:
    rate = ReadRate(100.0, memory_bytes=1000)
    rate.observe(0, 5.0)
    rate.observe(10, 0.0)
    assert rate.bytes_per_s == pytest.approx(100.0)


def test_a_nic_cut_to_a_tenth_is_found_out_after_a_few_times_the_memory() -> None:
    rate = ReadRate(100.0, memory_bytes=1000)
    for _ in range(30):
        rate.observe(100, 10.0)
    assert 10 <= rate.bytes_per_s < 11


def test_small_reads_count_as_much_as_one_of_their_size() -> None:
    small, large = ReadRate(100.0, memory_bytes=1000), ReadRate(100.0, memory_bytes=1000)
    for _ in range(10):
        small.observe(50, 1.0)
    large.observe(500, 10.0)
    assert small.bytes_per_s == pytest.approx(large.bytes_per_s)


@pytest.mark.parametrize(("rate", "memory"), [(0, 1), (-1, 1), (float("inf"), 1), (1, 0)])
def test_a_rate_or_memory_of_nothing_is_refused(rate: float, memory: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ReadRate(rate, memory)
