"""What is read of a model folder beside its tokenizer's own files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import ModelUnsupported
from engines.model.tokenizer import end_token_ids


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"eos_token_id": 5}', (5,)),
        ('{"eos_token_id": [5, 8]}', (5, 8)),
        ('{"eos_token_id": null}', ()),
        ('{"temperature": 0.6}', ()),
    ],
)
def test_end_tokens_are_those_the_generation_config_names(
    content: str, expected: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    assert end_token_ids(str(tmp_path)) == expected


def test_a_folder_without_a_generation_config_names_no_end_tokens(tmp_path: Path) -> None:
    assert end_token_ids(str(tmp_path)) == ()


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "</s>"}'])
def test_a_generation_config_that_cannot_be_read_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(ModelUnsupported, match=r"generation_config\.json that names no end tokens"):
        end_token_ids(str(tmp_path))
