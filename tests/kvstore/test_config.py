from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from kvstore.config import StoreConfig
from kvstore.open_store import open_store
from kvstore.ssd_store import SsdStore
from tests.kvstore.kv_blocks import SMALL

FILES = sorted((Path(__file__).parents[2] / "conf" / "kvstore").glob("*.yaml"))
KINDS = {"ssd": SsdStore}


def load(path):
    return TypeAdapter(StoreConfig).validate_python(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_opens_the_store_it_is_named_after(path, tmp_path):
    with closing(open_store(load(path), SMALL, directory=tmp_path, writer_id="w")) as store:
        assert type(store) is KINDS[path.stem]


def test_each_kind_has_its_file():
    assert {path.stem for path in FILES} == set(KINDS)


@pytest.mark.parametrize(
    ("key", "value", "bounds"),
    [
        ("kind", "tape", "ssd"),
        ("path", "", "a directory or null"),
        ("block_tokens", 0, r"1\.\.128"),
        ("block_tokens", 129, r"1\.\.128"),
        ("staging_bytes", 0, ">= 1"),
        ("io_threads", 0, r"1\.\.256"),
        ("io_threads", 257, r"1\.\.256"),
        ("deadline_s", 0.0, "above 0"),
        ("deadline_s", float("nan"), "above 0"),
    ],
)
def test_a_value_out_of_range_is_refused_naming_key_value_and_range(key, value, bounds):
    with pytest.raises(ValueError, match=rf"kvstore\.{key} must be {bounds}.*got {value!r}"):
        replace(load(FILES[0]), **{key: value})


def test_an_unknown_kind_is_refused_when_the_file_is_read():
    values = yaml.safe_load(FILES[0].read_text()) | {"kind": "tape"}
    with pytest.raises(ValidationError, match="kind"):
        TypeAdapter(StoreConfig).validate_python(values)
