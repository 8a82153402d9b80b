"""A causal LM as training calls it: rows in, the logprobs of their sampled tokens out.

Most of a row is prompt, so logits are computed only where a sampled token follows. Whether a model's
logits are nothing but its output head on its last hidden states is found by trying; if they are not
(soft-capped or scaled logits), the whole model is called. Padding stands on the right, where causal
attention does not see it, so no attention mask is passed: on CPU one doubles the time of a forward pass.
Axes: B rows, T tokens, V vocabulary, N loss tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rollout.batch import TrainRow
from rollout.grpo import token_logprobs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class RowTensors:
    """A micro batch, padded on the right."""

    token_ids_BT: Tensor
    loss_mask_BT: Tensor
    """True on sampled tokens."""
    rollout_logprobs_N: Tensor
    advantages_N: Tensor


def row_tensors(rows: Sequence[TrainRow], device: torch.device) -> RowTensors:
    """Pad rows to one length. No rows make one row of a token that weighs nothing.

    So a rank with an empty micro batch runs the same layers as the others, as ZeRO needs.
    """
    longest = max((row.num_tokens for row in rows), default=2)
    shape = (max(len(rows), 1), longest)
    token_ids_BT = torch.zeros(shape, dtype=torch.long)
    loss_mask_BT = torch.zeros(shape, dtype=torch.bool)
    rollout_logprobs_BT = torch.zeros(shape)
    advantages_BT = torch.zeros(shape)
    if not rows:
        loss_mask_BT[0, 1] = True
    for index, row in enumerate(rows):
        num_tokens = row.num_tokens
        token_ids_BT[index, :num_tokens] = torch.tensor(row.token_ids)
        loss_mask_BT[index, 1:num_tokens] = torch.tensor(row.loss_mask[1:]) == 1
        rollout_logprobs_BT[index, :num_tokens] = torch.tensor(row.old_logprobs)
        advantages_BT[index] = row.advantage
    return RowTensors(
        token_ids_BT.to(device),
        loss_mask_BT.to(device),
        rollout_logprobs_BT[loss_mask_BT].to(device),
        advantages_BT[loss_mask_BT].to(device),
    )


class PolicyModel(torch.nn.Module):
    """Wraps a causal LM. DeepSpeed wraps this, so that its hooks see every call of a part."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.head_alone = has_plain_head(model)
        self.model = model

    def forward(self, rows: RowTensors, temperature: float) -> Tensor:
        """logprobs_N of the sampled tokens, row by row."""
        follows_BT = rows.loss_mask_BT[:, 1:]
        target_ids_N = rows.token_ids_BT[:, 1:][follows_BT]
        if self.head_alone:
            hidden_BTD = self.model.base_model(input_ids=rows.token_ids_BT, use_cache=False).last_hidden_state
            logits_NV = output_head(self.model)(hidden_BTD[:, :-1][follows_BT])
        else:
            logits_BTV = self.model(input_ids=rows.token_ids_BT, use_cache=False).logits
            logits_NV = logits_BTV[:, :-1][follows_BT]
        return token_logprobs(logits_NV, target_ids_N, temperature)


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its output head on its base model's last hidden states."""
    head = output_head(model)
    if model.base_model is model:
        return False
    token_ids_BT = torch.arange(4, device=model.device)[None] % model.config.vocab_size
    was_training = model.training
    model.train(False)
    with torch.no_grad():
        logits_BTV = model(input_ids=token_ids_BT, use_cache=False).logits
        hidden_BTD = model.base_model(input_ids=token_ids_BT, use_cache=False).last_hidden_state
        plain_BTV = head(hidden_BTD)
    model.train(was_training)
    # Bit for bit: a soft cap hardly bends the small logits of an untrained model.
    return bool(torch.equal(plain_BTV.float(), logits_BTV.float()))


def output_head(model: PreTrainedModel) -> torch.nn.Module:
    head: torch.nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head
