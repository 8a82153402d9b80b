"""What a push of new weights does not name is read from the model's folder."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from engines.vllm.folder_weights import other_weights


def test_weights_that_are_not_given_are_read_from_all_files_of_the_index(tmp_path):
    save_file({"a": torch.full((2,), 1.0), "b": torch.full((2,), 2.0)}, tmp_path / "one.safetensors")
    save_file({"c": torch.full((2,), 3.0)}, tmp_path / "two.safetensors")
    save_file({"d": torch.full((2,), 4.0)}, tmp_path / "of-another-format.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    others = dict(other_weights(tmp_path, {"b"}))
    assert {name: tensor.tolist() for name, tensor in others.items()} == {"a": [1.0, 1.0], "c": [3.0, 3.0]}


def test_a_folder_may_have_one_file_or_none(tmp_path):
    assert list(other_weights(tmp_path, ())) == []
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert [name for name, _ in other_weights(tmp_path, ())] == ["a"]
