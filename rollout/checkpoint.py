"""What lies in a checkpoint folder besides DeepSpeed's own files.

    <directory>/latest                    name of the newest complete checkpoint
    <directory>/step-000003/              DeepSpeed's files, by rank
    <directory>/step-000003/trainer.json  CheckpointNote
    <directory>/step-000003/model/        a Hugging Face folder of the same weights

`latest` is written last and in one rename, so an interrupted save leaves the one before it in force.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rollout.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

NOTE_FILE = "trainer.json"
LATEST_FILE = "latest"
MODEL_FOLDER = "model"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".gguf", ".msgpack", ".index.json")


@dataclass(frozen=True, slots=True)
class CheckpointNote:
    """Where a run stood, and the ranks that wrote it: only as many, sharing alike, can read it."""

    step: int
    weights_version: int
    ranks: int
    zero_stage: int


def tag_of(step: int) -> str:
    """Folder name of a step's checkpoint."""
    return f"step-{step:06d}"


def write_note(folder: Path, note: CheckpointNote) -> None:
    (folder / NOTE_FILE).write_text(json.dumps(asdict(note)))


def set_latest(directory: Path, tag: str) -> None:
    """Make `tag` the checkpoint to resume from."""
    draft = directory / f"{LATEST_FILE}.draft"
    draft.write_text(tag)
    draft.replace(directory / LATEST_FILE)


def latest_checkpoint(directory: Path) -> Path:
    """The folder of the newest complete checkpoint."""
    latest = directory / LATEST_FILE
    if not latest.is_file():
        raise UserError(f"no checkpoint in {directory}: resume a run that had trainer.save_every_steps >= 1")
    return directory / latest.read_text().strip()


def read_note(folder: Path) -> CheckpointNote:
    """The note of a checkpoint, if it is whole."""
    try:
        return CheckpointNote(**json.loads((folder / NOTE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"checkpoint {folder} is damaged: {NOTE_FILE}: {error}") from error


def save_model_folder(folder: Path, source: Path, weights: Mapping[str, Tensor]) -> None:
    """Write `weights` with the configuration and tokenizer files of the model folder `source`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES):
            shutil.copyfile(file, folder / file.name)
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
