"""What the README shows of TRL runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integrations.trl.ranks import ROOT, run_ranks

pytest.importorskip("trl", reason="TRL is not installed (pip install 'dualpath-rollout[trl]')")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def example() -> str:
    (found,) = re.findall(
        r"^In TRL, [^\n]*\n\n```python\n(.*?)^```$",
        (ROOT / "README.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return str(found)


def test_the_example_is_short() -> None:
    assert len(example().strip().splitlines()) <= 40


def test_the_example_trains(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user would: from a file, in a folder that holds the model where the README says it is."""
    (model,) = re.findall(r'^MODEL = "(.*)"$', example(), re.MULTILINE)
    (tmp_path / model).parent.mkdir(parents=True)
    (tmp_path / model).symlink_to(tiny_model_dir)
    (tmp_path / "train.py").write_text(example())
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    run_ranks(1, ["-f", "train.py"], cwd=tmp_path, logs=tmp_path, deadline_s=600)
    told = (tmp_path / "rank-0.log").read_text()
    assert len(re.findall(r"'rollout/jct_s'", told)) == 2, told
