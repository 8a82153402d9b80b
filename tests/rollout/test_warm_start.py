from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rollout.chain_arithmetic import ALPHABET, ChainProblem, ChainStep, demonstration
from rollout.char_model import make_char_model
from rollout.warm_start import (
    WarmStartProgress,
    demonstrations,
    learning_rate,
    transcript,
    warm_start,
)
from rollout.warm_start_config import WarmStartConfig

SHORT = WarmStartConfig(
    steps=12,
    give_up_steps=3,
    give_up_share=0.75,
    batch_size=16,
    learning_rate=2e-3,
    min_operators=1,
    max_operators=1,
    threads=1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("char")
    make_char_model(folder, seed=3)
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def as_text(token_ids: list[int]) -> str:
    return "".join(ALPHABET[token_id] for token_id in token_ids)


def test_the_tokenizer_has_one_token_per_character_and_gives_the_text_back(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(ALPHABET).input_ids == list(range(len(ALPHABET)))
    assert tokenizer.decode(list(range(len(ALPHABET)))) == ALPHABET
    assert tokenizer("Q23*47-5?").input_ids == [ALPHABET.index(char) for char in "Q23*47-5?"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, ALPHABET.index(";"))


def test_the_tokenizer_refuses_a_character_it_does_not_know(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.raises(Exception, match="Missing"):
        tokenizer("Qx?")


def test_the_model_is_small_and_its_weights_depend_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    weights = weights_of(folder)
    assert sum(weight.numel() for weight in weights.values()) < 1_000_000
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    for seed, same in ((3, True), (4, False)):
        torch.rand(1)
        make_char_model(tmp_path / str(seed), seed)
        other = weights_of(tmp_path / str(seed))
        assert all(torch.equal(other[name], weights[name]) for name in weights) == same


def test_a_transcript_marks_what_the_model_writes() -> None:
    problem = ChainProblem("7+5", (ChainStep(7, "+", 5, 12),), 12)
    seen = transcript(demonstration(problem, use_tool=True))
    assert as_text(seen.token_ids) == "Q7+5?C7+5;R12;A12;"
    written = [char for char, mine in zip(as_text(seen.token_ids), seen.written, strict=True) if mine]
    assert "".join(written) == "C7+5;A12;"


def test_demonstrations_give_up_only_in_the_later_steps_and_then_mostly() -> None:
    config = replace(SHORT, batch_size=400)
    shares = []
    for step in (0, config.steps - 1, config.steps):
        texts = [as_text(one.token_ids) for one in demonstrations(config, step, random.Random(1))]
        shares.append(sum(text.endswith("?A0;") for text in texts) / len(texts))
    assert shares[:2] == [0, 0]
    assert shares[2] == pytest.approx(0.75, abs=0.06)


def test_the_learning_rate_rises_then_falls_to_a_tenth_and_stays_there() -> None:
    config = replace(SHORT, steps=300, give_up_steps=40)
    rates = [learning_rate(config, step) for step in range(340)]
    assert rates[0] < rates[15] < rates[29]
    assert 0.97 * config.learning_rate < max(rates) <= config.learning_rate
    assert rates[100] > rates[200] > rates[299]
    assert set(rates[300:]) == {config.learning_rate / 10}


def test_a_warm_start_lowers_the_loss_and_saves_what_it_learnt(tmp_path: Path) -> None:
    make_char_model(tmp_path, seed=0)
    before = weights_of(tmp_path)
    heard: list[WarmStartProgress] = []
    report = warm_start(tmp_path, SHORT, 0, heard.append)
    assert [one.steps_done for one in heard] == list(range(1, 16))
    assert {one.steps_total for one in heard} == {15}
    assert report.tool_loss < 0.9 * heard[0].loss
    assert (report.steps, report.loss) == (15, heard[-1].loss)
    assert report.tool_loss == heard[11].loss
    assert 0 < report.seconds < 60
    after = weights_of(tmp_path)
    assert all(not torch.equal(after[name], before[name]) for name in before)


def test_two_warm_starts_of_one_seed_are_equal(tmp_path: Path) -> None:
    config = replace(SHORT, steps=3, give_up_steps=1)
    reports = []
    for name in ("a", "b"):
        make_char_model(tmp_path / name, seed=0)
        reports.append(warm_start(tmp_path / name, config, 5, lambda progress: None))
    assert reports[0].loss == reports[1].loss
    assert reports[0].tool_loss == reports[1].tool_loss


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("give_up_share", 1.5),
        ("max_operators", 0),
        ("threads", 0),
    ],
)
def test_a_bad_warm_start_value_is_refused_by_name_and_value(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .* got {value}"):
        replace(SHORT, **{field: value})
