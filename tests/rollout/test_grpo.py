from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from rollout.batch import TrainRow, make_rows, micro_batches
from rollout.grpo import ClipRange, Drift, grpo_loss, measure_drift, token_logprobs
from rollout.policy_model import PolicyModel, row_tensors
from tests.rollout.training import make_segment, make_trajectory

CPU = torch.device("cpu")
CLIP = ClipRange(0.2, 0.3)
TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


def tiny_model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**TINY, final_logit_softcapping=30.0)).eval()
    if name == "cohere":
        return CohereForCausalLM(CohereConfig(**TINY, logit_scale=0.0625)).eval()
    return LlamaForCausalLM(LlamaConfig(**TINY)).eval()


def some_rows() -> tuple[TrainRow, ...]:
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0]
    segments = [make_segment([1, 2, 3 + n], [5 + n] * (n + 1), -3.0 - n / 10) for n in range(5)]
    return make_rows(
        [
            make_trajectory(reward, segment, sample_index=index)
            for index, (reward, segment) in enumerate(zip(rewards, segments, strict=True))
        ],
        normalise_std=True,
    ).rows


def gradient_of(model: PolicyModel, rows: tuple[TrainRow, ...], max_tokens: int) -> torch.Tensor:
    """Of the loss over all the rows, one micro batch at a time."""
    model.zero_grad()
    total_loss_tokens = sum(row.num_loss_tokens for row in rows)
    for batch in micro_batches(rows, max_tokens):
        tensors = row_tensors(batch, CPU)
        new_N = model(tensors, 1.0)
        old_N, advantages_N = tensors.rollout_logprobs_N, tensors.advantages_N
        grpo_loss(new_N, old_N, advantages_N, CLIP, total_loss_tokens).loss.backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_token_logprobs_are_log_softmax_of_logits_over_temperature(temperature: float) -> None:
    logits_BTV, token_ids_BT = torch.randn(2, 3, 7), torch.randint(0, 7, (2, 3))
    want = torch.log_softmax(logits_BTV / temperature, -1).gather(2, token_ids_BT[..., None])
    got = token_logprobs(logits_BTV, token_ids_BT, temperature)
    torch.testing.assert_close(got, want[..., 0])


def test_temperature_zero_counts_as_one() -> None:
    logits_NV, token_ids_N = torch.randn(4, 7), torch.randint(0, 7, (4,))
    got = token_logprobs(logits_NV, token_ids_N, 0.0)
    torch.testing.assert_close(got, token_logprobs(logits_NV, token_ids_N, 1.0))


def test_with_equal_logprobs_the_gradient_is_the_advantage_per_token() -> None:
    new_N = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    parts = grpo_loss(new_N, new_N.detach(), torch.tensor([2.0, -1.0, 0.0]), CLIP, 4)
    parts.loss.backward()
    assert parts.loss.item() == pytest.approx(-0.25)
    torch.testing.assert_close(new_N.grad, torch.tensor([-0.5, 0.25, 0.0]))
    assert parts.num_clipped == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "clipped"),
    [(1.4, 1.0, True), (1.4, -1.0, False), (0.7, 1.0, False), (0.7, -1.0, True), (1.25, 1.0, False)],
)
def test_clipping_stops_only_the_side_that_would_go_further(
    ratio: float, advantage: float, clipped: bool
) -> None:
    new_N = torch.tensor([math.log(ratio)], requires_grad=True)
    parts = grpo_loss(new_N, torch.zeros(1), torch.tensor([advantage]), CLIP, 1)
    parts.loss.backward()
    assert parts.num_clipped == int(clipped)
    bound = min(max(ratio, 0.8), 1.3)
    assert parts.loss.item() == pytest.approx(-advantage * (bound if clipped else ratio))
    assert new_N.grad.item() == pytest.approx(0.0 if clipped else -advantage * ratio)


def test_how_rows_are_cut_into_micro_batches_does_not_change_the_gradient() -> None:
    model = PolicyModel(tiny_model("llama"))
    whole = gradient_of(model, some_rows(), 1000)
    assert whole.abs().max() > 1e-3
    for max_tokens in (8, 16):
        torch.testing.assert_close(gradient_of(model, some_rows(), max_tokens), whole, atol=1e-7, rtol=1e-4)


def test_drift_adds_up_over_micro_batches() -> None:
    new_N, old_N = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -2.0, -0.6])
    whole = measure_drift(new_N, old_N)
    parts = measure_drift(new_N[:1], old_N[:1]) + measure_drift(new_N[1:], old_N[1:]) + Drift()
    assert parts.num_tokens == whole.num_tokens == 3
    assert (whole.diff_max, whole.ratio_max) == pytest.approx((0.5, math.exp(0.5)))
    assert (whole.diff_sum, whole.ratio_sum) == pytest.approx((parts.diff_sum, parts.ratio_sum))
    assert measure_drift(new_N[:0], old_N[:0]) == Drift()


@pytest.mark.parametrize(("name", "head_alone"), [("llama", True), ("gemma2", False), ("cohere", False)])
def test_rows_get_the_logprobs_of_the_whole_model(name: str, head_alone: bool) -> None:
    """A soft cap or a scale on the logits is seen, and then the head is not called alone."""
    model = tiny_model(name)
    policy, rows = PolicyModel(model), some_rows()
    assert policy.head_alone == head_alone
    got_N = policy(row_tensors(rows, CPU), 0.7).detach()
    want = []
    for row in rows:
        token_ids_BT = torch.tensor([row.token_ids.tolist()])
        logprobs_TV = torch.log_softmax(model(input_ids=token_ids_BT).logits[0] / 0.7, -1)
        want += [logprobs_TV[t - 1, row.token_ids[t]] for t in range(3, row.num_tokens)]
    torch.testing.assert_close(got_N, torch.stack(want).detach(), atol=1e-5, rtol=0)


def test_no_rows_make_one_token_whose_loss_is_zero() -> None:
    policy = PolicyModel(tiny_model("llama"))
    tensors = row_tensors([], CPU)
    new_N = policy(tensors, 1.0)
    grpo_loss(new_N, new_N.detach(), tensors.advantages_N, CLIP, 1).loss.backward()
    assert len(new_N) == 1
    assert all(not weight.grad.any() for weight in policy.parameters())
