"""The Python packages: is what the project asks for there, and in a version it can use?"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from kvstore.probes.finding import Finding, Verdict
from rollout import __version__

PROJECT = "dualpath-rollout"
_TOLD = ("torch", "transformers", "ray", "deepspeed")
_OPTIONAL = ("mooncake-transfer-engine-non-cuda", "nixl", "nixl-cu12", "pyverbs", "vllm")


def probe_packages() -> Sequence[Finding]:
    """Versions, and what does not match the project's own requirements."""
    told = [f"{PROJECT} {__version__}", f"python {platform.python_version()}"]
    told += [f"{name} {_version(name) or 'missing'}" for name in _TOLD]
    extras = [f"{name} {found}" for name in _OPTIONAL if (found := _version(name))]
    if extras:
        told.append("optional: " + ", ".join(extras))
    unmet = list(_unmet())
    if unmet:
        advice = f"pip install {' '.join(repr(str(each)) for each in unmet)}, or run scripts/setup"
        return [Finding("packages", Verdict.FAIL, ", ".join(told), advice)]
    return [Finding("packages", Verdict.OK, ", ".join(told))]


def _unmet() -> Iterator[Requirement]:
    """Of the project's requirements without extras; none where it runs from a checkout not installed."""
    try:
        wanted = requires(PROJECT) or ()
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield requirement


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
