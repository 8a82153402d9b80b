"""The judge of a chaos run finds what is wrong, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engines.types import PhaseSeconds
from rollout.chaos.teacher import first_wrong_token
from rollout.chaos.weights import model_of, weights_of
from rollout.char_model import make_char_model
from rollout.types import Segment, StopReason, Trajectory


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_char_model(folder, seed=3)
    return str(folder)


def spoken(path: str, versions: tuple[int, ...]) -> Trajectory:
    """A greedy trajectory, three tokens by each version with two given ones between."""
    segment = Segment()
    for version in versions:
        segment.append_given([1, 2])
        for _ in range(3):
            with torch.no_grad():
                said = (
                    model_of(path, version)(torch.tensor([list(segment.token_ids)]))
                    .logits[0, -1]
                    .log_softmax(-1)
                )
            token = int(said.argmax())
            segment.append_sampled([token], [float(said[token])], version)
    return Trajectory("t", "g", 0, (segment,), (), 0.0, StopReason.DONE, 0.0, 1.0, PhaseSeconds())


def wrong(trajectory: Trajectory, path: str, *, greedy: bool = True) -> str | None:
    return first_wrong_token(trajectory, lambda version: model_of(path, version), greedy=greedy)


def test_what_each_version_says_is_right(path: str) -> None:
    assert wrong(spoken(path, (0, 1, 2)), path) is None


def test_a_logprob_that_is_off_is_found_and_told_where(path: str) -> None:
    trajectory = spoken(path, (0, 1))
    trajectory.segments[0].logprobs[8] += 0.002
    told = wrong(trajectory, path)
    assert told is not None
    assert told.startswith("g/0, segment 0, token 8, version 1: logprob ")


def test_a_version_that_did_not_sample_it_is_found(path: str) -> None:
    trajectory = spoken(path, (1,))
    versions = trajectory.segments[0].weights_versions
    for place, version in enumerate(versions):
        versions[place] = 2 if version == 1 else version
    assert wrong(trajectory, path) is not None


def test_a_token_that_is_not_the_likeliest_is_wrong_only_where_it_was_to_be(path: str) -> None:
    segment = Segment()
    segment.append_given([1, 2])
    with torch.no_grad():
        said = model_of(path, 0)(torch.tensor([[1, 2]])).logits[0, -1].log_softmax(-1)
    worst = int(said.argmin())
    segment.append_sampled([worst], [float(said[worst])], 0)
    trajectory = replace(spoken(path, (0,)), segments=(segment,))
    assert wrong(trajectory, path, greedy=False) is None
    told = wrong(trajectory, path)
    assert told is not None
    assert "another token has" in told


def test_weights_of_a_version_are_the_same_each_time_and_differ_between_versions(path: str) -> None:
    one, again, other = (dict(weights_of(path, version)) for version in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
