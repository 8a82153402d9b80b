"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def example() -> str:
    """Of the backend in a loop of one's own; the others need extras (tests/integrations)."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return str(blocks[0])


def test_the_example_is_short() -> None:
    assert len(example().strip().splitlines()) <= 15


@pytest.mark.ray
def test_the_example_plays_its_tasks(tiny_model_dir: Path, tmp_path: Path) -> None:
    """As a user would: from a file, in a folder that holds the model where the README says it is."""
    (model,) = re.findall(r"model\.path=([^\"]+)", example())
    (tmp_path / model).parent.mkdir(parents=True)
    (tmp_path / model).symlink_to(tiny_model_dir)
    script = tmp_path / "example.py"
    script.write_text(example())
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    *trajectories, written = done.stdout.strip().splitlines()
    assert len(trajectories) == 4
    assert re.fullmatch(r"\d+(\.\d+)? bytes of KV written", written), written
