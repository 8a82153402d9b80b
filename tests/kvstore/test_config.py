from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from kvstore.config import StoreConfig
from kvstore.errors import StoreError
from kvstore.mooncake_store import MooncakeStore
from kvstore.open_store import open_owner, open_store
from kvstore.ssd_store import SsdStore
from kvstore.staging import StagingMemory
from tests.kvstore.kv_blocks import SMALL

FILES = sorted((Path(__file__).parents[2] / "conf" / "kvstore").glob("*.yaml"))
KINDS = {"ssd", "3fs", "mooncake"}
OVER = {"vllm"}
"""Not a kind: what the connector puts over one."""
SHIPPED = next(path for path in FILES if path.stem == "ssd")


@pytest.fixture
def staging():
    with closing(StagingMemory.create("node", SMALL, num_slots=2)) as staging:
        yield staging


def load(path):
    return TypeAdapter(StoreConfig).validate_python(yaml.safe_load(path.read_text()))


def test_each_kind_has_its_file_named_after_it():
    assert {path.stem for path in FILES} == KINDS | OVER
    assert all(load(path).kind == path.stem for path in FILES if path.stem in KINDS)


def test_the_shipped_ssd_opens_a_directory(staging, tmp_path):
    with closing(open_store(load(SHIPPED), staging, directory=tmp_path, writer_id="w")) as store:
        assert type(store) is SsdStore


def test_the_shipped_3fs_says_what_it_needs_where_that_is_missing(staging, tmp_path):
    config = load(SHIPPED.with_stem("3fs"))
    with pytest.raises(StoreError, match="hf3fs_fuse"):
        open_store(config, staging, directory=tmp_path, writer_id="w")


def test_the_shipped_mooncake_opens_a_cluster(mooncake_cluster, staging, tmp_path):
    config = replace(load(SHIPPED.with_stem("mooncake")), mooncake=mooncake_cluster.config)
    with closing(open_store(config, staging, directory=tmp_path, writer_id="w")) as store:
        assert type(store) is MooncakeStore


@pytest.mark.parametrize(("kind", "bounds"), [("mooncake", "given"), ("ssd", "null")])
def test_a_mooncake_cluster_is_named_with_that_kind_and_no_other(kind, bounds):
    other = load(SHIPPED.with_stem("ssd" if kind == "mooncake" else "mooncake"))
    with pytest.raises(ValueError, match=rf"kvstore\.mooncake must be {bounds} where kvstore\.kind={kind}"):
        replace(other, kind=kind)


@pytest.mark.parametrize(
    ("key", "value", "bounds"),
    [
        ("kind", "tape", "ssd, 3fs or mooncake"),
        ("path", "", "a directory or null"),
        ("block_tokens", 0, r"1\.\.128"),
        ("block_tokens", 129, r"1\.\.128"),
        ("staging_bytes", 0, ">= 1"),
        ("io_threads", 0, r"1\.\.256"),
        ("io_threads", 257, r"1\.\.256"),
        ("deadline_s", 0.0, "above 0"),
        ("deadline_s", float("nan"), "above 0"),
        ("dram_bytes", -1, ">= 0"),
        ("dram_bytes", 300_000_000, "at most half of kvstore.staging_bytes=536870912"),
        ("capacity_bytes", 0, ">= 1, or null"),
        ("reserve_bytes", -1, ">= 0, or null"),
        ("segment_bytes", 0, r"1\.\.2\*\*40"),
        ("pack_bytes", 0, r"1\.\.2\*\*30"),
        ("durability", "some", "none, data or full"),
        ("lease_ttl_s", 0.0, "above 0"),
        ("lease_ttl_s", float("nan"), "above 0"),
        ("refresh_s", 0.0, "above 0"),
        ("refresh_s", float("inf"), "above 0"),
    ],
)
def test_a_value_out_of_range_is_refused_naming_key_value_and_range(key, value, bounds):
    with pytest.raises(ValueError, match=rf"kvstore\.{key} must be {bounds}.*got {value!r}"):
        replace(load(SHIPPED), **{key: value})


def test_a_reserve_that_leaves_nothing_of_the_capacity_is_refused_naming_both():
    with pytest.raises(ValueError, match=r"reserve_bytes must be below kvstore\.capacity_bytes=10, got 10"):
        replace(load(SHIPPED), capacity_bytes=10, reserve_bytes=10)


@pytest.mark.parametrize(
    ("values", "limit_bytes"),
    [
        # Two writers: three segments are kept free.
        ({"capacity_bytes": 1000 << 10, "segment_bytes": 100 << 10}, 700 << 10),
        ({"capacity_bytes": 300 << 10, "segment_bytes": 100 << 10}, 150 << 10),
        ({"capacity_bytes": 300 << 10, "segment_bytes": 100 << 10, "reserve_bytes": 1 << 10}, 299 << 10),
    ],
    ids=["a segment for each writer and one more", "at most half the capacity", "as the user says"],
)
def test_the_reserve_is(values, limit_bytes, tmp_path):
    config = replace(load(SHIPPED), **values)
    with closing(open_owner(config, directory=tmp_path, num_writers=2)) as owner:
        assert owner.limit_bytes == limit_bytes


def test_an_unknown_kind_is_refused_when_the_file_is_read():
    values = yaml.safe_load(SHIPPED.read_text()) | {"kind": "tape"}
    with pytest.raises(ValidationError, match="kind"):
        TypeAdapter(StoreConfig).validate_python(values)
