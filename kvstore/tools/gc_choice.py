"""Which versions `gc` drops. Pure.

Every condition narrows: a version goes when all the given ones hold for it. So `--older-than 7
--keep-latest 2` drops what is older than a week, but never the two newest versions of a KV format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.tools.errors import WrongInput
from kvstore.tools.inventory import Inventory, StoredVersion

DAY_S = 86400


@dataclass(frozen=True, slots=True)
class GcRule:
    """What the command line asked for; None: no such condition."""

    weights: tuple[str, ...] | None = None
    keep_latest: int | None = None
    """Of each KV format; a version is as new as its newest segment."""
    older_than_days: float | None = None
    orphans: bool = False
    """Also segments of what stays that no hit can reach?"""
    bad: bool = False
    """Also segments that cannot be used at all?"""

    @property
    def chooses_versions(self) -> bool:
        conditions = (self.weights, self.keep_latest, self.older_than_days)
        return any(condition is not None for condition in conditions)


def choose_versions(inventory: Inventory, rule: GcRule, now_s: float) -> list[StoredVersion]:
    """The versions to drop; `now_s` is seconds since the epoch. Raises WrongInput for unknown weights."""
    if not rule.chooses_versions:
        return []
    known = {str(version.weights_id) for version in inventory.versions}
    unknown = sorted(set(rule.weights or ()) - known)
    if unknown:
        raise WrongInput(f"--weights {unknown[0]}: nothing is stored under it; {_known(sorted(known))}")
    chosen = []
    for versions in inventory.formats().values():
        chosen += [v for v in versions[rule.keep_latest or 0 :] if _falls(v, rule, now_s)]
    return chosen


def _falls(version: StoredVersion, rule: GcRule, now_s: float) -> bool:
    if rule.weights is not None and version.weights_id not in rule.weights:
        return False
    return rule.older_than_days is None or version.newest_s < now_s - rule.older_than_days * DAY_S


def _known(weights: Sequence[str]) -> str:
    if not weights:
        return "the store is empty"
    return f"there is {', '.join(weights[:4])}{' ...' if len(weights) > 4 else ''}"
