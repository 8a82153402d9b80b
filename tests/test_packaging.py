"""The wheel holds what the work tree holds, once, and serves other people's Hydra from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections import Counter
from email import message_from_string
from pathlib import Path

import pytest

import rollout

ROOT = Path(__file__).parent.parent
DEADLINE_S = 120

THEIR_APP = """\
import hydra
import rollout

@hydra.main(config_path=None, config_name="theirs", version_base="1.3")
def main(config):
    print(rollout.__file__, config.kvstore.kind, config.kvstore.block_tokens, config.engines.kind)

main()
"""
THEIR_CONFIG = """\
defaults:
  - kvstore: ssd
  - engines: transformers
hydra:
  searchpath: [pkg://rollout.conf]
"""


def run_python(*arguments: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def pip(*arguments: str, cwd: Path) -> None:
    done = run_python("-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd, path=cwd)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and none of what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel), cwd=folder)
    return folder


def test_every_configuration_file_ships_once(wheel):
    shipped = Counter(name for name in zipfile.ZipFile(wheel).namelist() if "/conf/" in name)
    in_tree = {f"rollout/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert shipped == Counter(in_tree | {"rollout/conf/__init__.py"})


def test_data_types_and_licences_ship(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for ending in ("rollout/data/arithmetic.jsonl", "licenses/LICENSE", "licenses/NOTICE"):
        assert any(name.endswith(ending) for name in names), ending
    assert {"kvstore/py.typed", "engines/py.typed", "rollout/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "conf/", "scripts/"))]


def test_name_version_and_licence_are_set(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_string(archive.read(name).decode())
    assert metadata["Name"] == "dualpath-rollout"
    assert metadata["Version"] == rollout.__version__
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_installed_wheel_composes_what_the_work_tree_composes(installed, tmp_path):
    command = ("-m", "rollout", "--cfg", "job", "run_dir=here")
    from_wheel = run_python(*command, cwd=tmp_path, path=installed)
    from_tree = run_python(*command, cwd=tmp_path, path=ROOT)
    assert from_wheel.returncode == 0, from_wheel.stderr
    assert from_wheel.stdout == from_tree.stdout


@pytest.mark.parametrize("where", ["the wheel", "the work tree"])
def test_other_hydra_applications_can_search_our_conf(where, installed, tmp_path):
    # An editable install puts the work tree on the path and nothing else.
    path = installed if where == "the wheel" else ROOT
    (tmp_path / "app.py").write_text(THEIR_APP)
    (tmp_path / "theirs.yaml").write_text(THEIR_CONFIG)
    done = run_python("app.py", "--config-dir", ".", cwd=tmp_path, path=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(path / "rollout" / "__init__.py"), "ssd", "64", "transformers"]


def test_an_editable_install_is_the_work_tree_itself(tmp_path):
    build = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    done = run_python("-c", build, cwd=ROOT, path=ROOT)
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(built)
    (link,) = (name for name in archive.namelist() if name.endswith(".pth"))
    assert {Path(line) for line in archive.read(link).decode().split()} == {ROOT}
    assert not [name for name in archive.namelist() if name.startswith("rollout/")]
    assert (ROOT / "rollout" / "conf" / "config.yaml").is_file()
