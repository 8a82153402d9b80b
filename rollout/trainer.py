"""One rank of the trainer: GRPO steps on DeepSpeed, weights out, checkpoints.

The only place that imports deepspeed, and not before `setup`. A rank knows nothing of Ray or engines;
whoever runs it gives each rank a process of its own. Every public method but `weight_names`,
`bucket_plan` and `close` is collective: all ranks call it, in the same order, with equal arguments.
Nothing is compiled at run time on CPU: torch's AdamW is used, and gloo without DeepSpeed's shared-memory
extension.
"""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from rollout import checkpoint
from rollout.batch import TrainRow, make_rows, micro_batches, shard
from rollout.checkpoint import CheckpointNote
from rollout.errors import RolloutError, UserError
from rollout.train_metrics import TrainMetrics, summarise
from rollout.trainer_config import TrainerConfig
from rollout.types import Trajectory
from rollout.weight_buckets import WEIGHT_DTYPE, WeightSpec, plan_buckets

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    import torch
    from deepspeed.runtime.engine import DeepSpeedEngine  # type: ignore[import-untyped]
    from numpy.typing import NDArray
    from torch import Tensor

    from rollout.grpo_step import StepFigures
    from rollout.policy_model import RowTensors

    NamedArray: TypeAlias = tuple[str, NDArray[np.float32]]

__all__ = ["TrainMetrics", "TrainerRank"]

CHECKPOINT_BUCKET_BYTES = 256 << 20
"""Weights gathered at a time for a checkpoint's model folder."""


class TrainerRank:
    """Holds this rank's share of the model and the optimiser, from `setup` to `close`."""

    _engine: DeepSpeedEngine
    _device: torch.device
    _parameters: dict[str, torch.nn.Parameter]

    def __init__(
        self,
        config: TrainerConfig,
        model_path: str,
        *,
        rank: int,
        world_size: int,
        master_port: int,
        seed: int,
    ) -> None:
        self._config = config
        self._model_path = Path(model_path)
        self._rank = rank
        self._world_size = world_size
        self._master_port = master_port
        self._seed = seed
        self._weights: list[WeightSpec] = []
        self._buckets: list[list[str]] = []

    # Start and end.

    def setup(self) -> None:
        """Join the other ranks and load the model."""
        # Read when torch is first imported: threads that spin while they wait starve the other processes.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        self._device = self._choose_device()
        if self._device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(self._config.threads)
        torch.manual_seed(self._seed)
        self._join()
        self._load_model()

    def close(self) -> None:
        """Leave the other ranks; may be called twice."""
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _choose_device(self) -> torch.device:
        import torch

        if self._config.device == "cpu" or not torch.cuda.is_available():
            if self._config.device == "cuda":
                raise UserError("trainer.device=cuda but torch sees no CUDA device; use auto or cpu")
            return torch.device("cpu")
        device = torch.device("cuda", self._rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def _join(self) -> None:
        os.environ.update(
            RANK=str(self._rank),
            LOCAL_RANK=str(self._device.index or 0),
            WORLD_SIZE=str(self._world_size),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(self._master_port),
            GLOO_SOCKET_IFNAME="lo",
        )
        import deepspeed  # type: ignore[import-untyped]

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend="nccl" if self._device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
            timeout=timedelta(seconds=self._config.collective_deadline_s),
        )

    def _load_model(self) -> None:
        import deepspeed
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        from rollout.policy_model import PolicyModel

        disable_progress_bar()  # type: ignore[no-untyped-call]
        model = AutoModelForCausalLM.from_pretrained(
            self._model_path, dtype=getattr(torch, self._config.dtype), local_files_only=True
        )
        policy = PolicyModel(model).to(self._device)
        self._parameters = dict(model.named_parameters())
        self._weights = [
            WeightSpec(name, tuple(weight.shape), WEIGHT_DTYPE) for name, weight in self._parameters.items()
        ]
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=self._config.learning_rate,
            betas=self._config.betas,
            weight_decay=self._config.weight_decay,
        )
        self._engine, *_ = deepspeed.initialize(
            model=policy, optimizer=optimizer, config=self._deepspeed_config()
        )
        # No dropout: the logprobs must be those of the model that the engines run.
        self._engine.eval()

    def _deepspeed_config(self) -> dict[str, object]:
        num_elements = sum(parameter.numel() for parameter in self._parameters.values())
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._config.grad_clip,
            "bf16": {"enabled": self._config.dtype == "bfloat16"},
            "zero_optimization": {
                "stage": self._config.zero_stage,
                "reduce_bucket_size": min(num_elements, 500_000_000),
            },
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 60,
        }

    # Training.

    def train_step(self, trajectories: Sequence[Trajectory], sampling_temperature: float) -> TrainMetrics:
        """One GRPO step on a rollout step's trajectories; every rank gets all of them.

        Where every advantage is 0 there is nothing to learn, and the weights stay as they are.
        """
        from rollout.grpo import ClipRange
        from rollout.grpo_step import StepWork, measure_only, optimise

        started_s = time.monotonic()
        batch = make_rows(trajectories, normalise_std=self._config.normalise_std)
        rows = batch.rows
        if self._config.skip_zero_advantage:
            rows = tuple(row for row in rows if row.advantage)
        work = StepWork(
            shard(rows, self._rank, self._world_size, self._config.micro_batch_tokens),
            batch.num_loss_tokens,
            sampling_temperature,
            ClipRange(self._config.clip_low, self._config.clip_high),
            old_from_rollout=self._config.old_logprobs == "rollout",
        )
        engine = _SharedModel(self._engine, self._device, self._world_size)
        if any(row.advantage for row in rows):
            num_optimizer_steps = self._config.epochs_per_step
            figures = optimise(engine, work, num_optimizer_steps)
        else:
            num_optimizer_steps = 0
            figures = measure_only(engine, work)
        self._check_finite(figures)
        return summarise(batch, figures, num_optimizer_steps, time.monotonic() - started_s)

    def logprobs(self, rows: Sequence[TrainRow], sampling_temperature: float) -> list[array[float]]:
        """The model's logprobs of the rows' sampled tokens, 0.0 elsewhere; every rank runs every row."""
        import torch

        from rollout.policy_model import row_tensors

        logprobs: dict[int, array[float]] = {}
        for batch in micro_batches(rows, self._config.micro_batch_tokens):
            tensors = row_tensors(batch, self._device)
            with torch.no_grad():
                found_N = self._engine(tensors, sampling_temperature)
            found_BT = torch.zeros(tensors.token_ids_BT.shape)
            found_BT[tensors.loss_mask_BT.cpu()] = found_N.cpu()
            for row, found_T in zip(batch, found_BT.tolist(), strict=True):
                logprobs[id(row)] = array("f", found_T[: row.num_tokens])
        return [logprobs[id(row)] for row in rows]

    def _check_finite(self, figures: StepFigures) -> None:
        if not (isfinite(figures.loss) and isfinite(figures.grad_norm)):
            raise RolloutError(
                f"training diverged: loss {figures.loss}, gradient norm {figures.grad_norm}; "
                f"lower trainer.learning_rate={self._config.learning_rate}"
            )

    # Weights out.

    def weight_names(self) -> list[WeightSpec]:
        """Every weight with its shape and the dtype it is gathered in; tied weights once."""
        return list(self._weights)

    def bucket_plan(self, bucket_bytes: int) -> list[list[str]]:
        """Cut the weights into buckets, for `gather_bucket`."""
        self._buckets = plan_buckets(self._weights, bucket_bytes)
        return self._buckets

    def gather_bucket(self, index: int) -> list[NamedArray] | None:
        """The weights of the plan's bucket `index`, on rank 0; None on the others."""
        gathered = self._gather(self._buckets[index])
        return gathered if self._rank == 0 else None

    def _gather(self, names: Sequence[str]) -> list[NamedArray]:
        """Copies of whole weights, on rank 0."""
        return gather_whole({name: self._parameters[name] for name in names}, keep=self._rank == 0)

    # Checkpoints.

    def save_checkpoint(self, directory: str, step: int, weights_version: int) -> None:
        """Write weights, optimiser, step and version; `latest` names it once all of it is there."""
        root, tag = Path(directory), checkpoint.tag_of(step)
        self._engine.save_checkpoint(directory, tag=tag, save_latest=False)
        weights = list(self._all_weights())
        if self._rank == 0:
            note = CheckpointNote(step, weights_version, self._world_size, self._config.zero_stage)
            checkpoint.save_model_folder(
                root / tag / checkpoint.MODEL_FOLDER, self._model_path, dict(weights)
            )
            checkpoint.write_note(root / tag, note)
            checkpoint.set_latest(root, tag)

    def load_checkpoint(self, directory: str) -> tuple[int, int]:
        """Go on from the newest checkpoint; return its step and weights version."""
        folder = checkpoint.latest_checkpoint(Path(directory))
        note = checkpoint.read_note(folder)
        if (note.ranks, note.zero_stage) != (self._world_size, self._config.zero_stage):
            raise UserError(
                f"checkpoint {folder} was written with trainer.ranks={note.ranks} "
                f"trainer.zero_stage={note.zero_stage}; resume with the same, got "
                f"{self._world_size} and {self._config.zero_stage}"
            )
        path, _ = self._engine.load_checkpoint(directory, tag=folder.name)
        if path is None:
            raise UserError(f"checkpoint {folder} is damaged: DeepSpeed finds no state in it")
        return note.step, note.weights_version

    def _all_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight in the model's dtype, on rank 0."""
        import torch

        dtype = getattr(torch, self._config.dtype)
        for names in plan_buckets(self._weights, CHECKPOINT_BUCKET_BYTES):
            for name, weight in self._gather(names):
                yield name, torch.from_numpy(weight).to(dtype)


def gather_whole(parameters: Mapping[str, torch.nn.Parameter], *, keep: bool) -> list[NamedArray]:
    """Copies of whole weights in float32, which only ranks with `keep` get. Collective under ZeRO-3."""
    with _whole(list(parameters.values())):
        if not keep:
            return []
        return [(name, weight.detach().float().cpu().numpy().copy()) for name, weight in parameters.items()]


def _whole(parameters: list[torch.nn.Parameter]) -> AbstractContextManager[object]:
    """Under ZeRO-3 a weight lies in pieces over the ranks; inside this it is whole."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[object] = deepspeed.zero.GatheredParameters(parameters)
    return gathered


class _SharedModel:
    """A DeepSpeed engine as a GradientEngine.

    DeepSpeed averages gradients over ranks, so losses are multiplied by their number. It is told of one
    accumulation step whatever their true number, and of each step's last backward pass.
    """

    def __init__(self, engine: DeepSpeedEngine, device: torch.device, world_size: int) -> None:
        self._engine = engine
        self._world_size = world_size
        self.device = device

    def forward(self, rows: RowTensors, temperature: float) -> Tensor:
        logprobs_N: Tensor = self._engine(rows, temperature)
        return logprobs_N

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(is_last)
        self._engine.backward(loss * self._world_size)

    def step(self) -> float:
        from torch.nn.utils import get_total_norm

        gradients = [weight.grad for weight in self._engine.parameters() if weight.grad is not None]
        # Without ZeRO, DeepSpeed does not tell the norm; with it, not every gradient is at hand.
        own_norm = 0.0 if self._engine.zero_optimization() else float(get_total_norm(gradients))
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return own_norm if norm is None else float(norm)
