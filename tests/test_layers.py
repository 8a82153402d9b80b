"""Imports run one way, a heavy import has one address, and policy touches nothing but its arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kvstore", "engines", "rollout")
MAY_IMPORT = {
    "kvstore": {"kvstore"},
    "engines": {"kvstore", "engines"},
    "rollout": {"kvstore", "engines", "rollout"},
}
ONLY_IN: dict[str, set[str]] = {
    "ray": {"rollout/actors.py"},
    "deepspeed": {"rollout/trainer.py"},
    "wandb": {"rollout/monitor.py"},
    "hydra": {"rollout/compose.py"},
    "omegaconf": {"rollout/compose.py"},
    "pyverbs": {"kvstore/verbs_library.py"},
    "nixl": {"kvstore/nixl_library.py"},
    "nixl_cu12": {"kvstore/nixl_library.py"},
    "vllm": {f"engines/vllm/{name}.py" for name in ("connector", "feed_connector", "page_kind", "runner")},
    "mooncake": {"kvstore/mooncake_store.py"},
    "hf3fs_fuse": {"kvstore/usrbio_files.py"},
    "fastapi": {"rollout/serve/app.py"},
    "starlette": {"rollout/serve/app.py"},
    "uvicorn": {"rollout/serve/endpoint.py"},
    "prometheus_client": {"rollout/serve/metrics.py"},
    "skyrl_gym": {"rollout/skyrl_gym_environment.py"},
    "trl": {"rollout/integrations/trl.py"},
}
PURE = (
    "engines/scheduling/*.py",
    "kvstore/layout.py",
    "kvstore/keys.py",
    "kvstore/slots.py",
    "kvstore/tcp_wire.py",
    "kvstore/nixl_handshake.py",
    "kvstore/transfer_portions.py",
    "kvstore/verbs_handshake.py",
    "kvstore/verbs_requests.py",
    "kvstore/prefix_index.py",
    "kvstore/indexed_blocks.py",
    "kvstore/indexed_segment.py",
    "kvstore/matched_prefixes.py",
    "kvstore/lineage.py",
    "kvstore/eviction.py",
    "rollout/concurrency.py",
    "rollout/journal_record.py",
    "rollout/limits.py",
    "rollout/serve/answer.py",
    "rollout/serve/asked.py",
    "rollout/serve/told.py",
    "rollout/tools/breaker.py",
    "rollout/tools/calls.py",
    "rollout/tools/figures.py",
    "rollout/metrics.py",
    "rollout/step_policy.py",
)
NOT_IN_POLICY = {"torch", "ray", "time", "os", "socket", "threading", "subprocess"}


def imported(source: str) -> set[str]:
    """Top-level names of the packages that `source` imports anywhere, inside functions too."""
    return set(_names(ast.parse(source)))


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0] if node.level == 0 else "a relative import"


def sources(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


MODULES = [name for room in ROOMS for name in sources(f"{room}/**/*.py") if "/conf/" not in name]
POLICY = [name for pattern in PURE for name in sources(pattern)]


def test_an_import_is_seen_wherever_it_stands():
    source = (
        "import json\ndef f():\n    import ray.util\n    from torch.nn import functional\nfrom . import x"
    )
    assert imported(source) == {"json", "ray", "torch", "a relative import"}


def test_there_is_something_to_check():
    assert {name.partition("/")[0] for name in MODULES} == set(ROOMS)
    assert "kvstore/layout.py" in POLICY
    assert any(name.startswith("engines/scheduling/") for name in POLICY)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    names = imported((ROOT / module).read_text())
    ours = names & {*ROOMS, "tests", "scripts", "conf", "a relative import"}
    assert ours <= MAY_IMPORT[module.partition("/")[0]]


@pytest.mark.parametrize("module", MODULES)
def test_a_heavy_import_has_one_address(module):
    names = imported((ROOT / module).read_text())
    strays = {name for name in names & ONLY_IN.keys() if module not in ONLY_IN[name]}
    assert not strays, f"{module} imports {strays}; their addresses are {[ONLY_IN[name] for name in strays]}"


@pytest.mark.parametrize("module", POLICY)
def test_policy_has_no_clock_no_io_no_ray_no_torch(module):
    assert not imported((ROOT / module).read_text()) & NOT_IN_POLICY
