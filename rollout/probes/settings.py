"""Whether the settings fit one another and the files they name: what a job looks at before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.probes.finding import Finding, Verdict
from rollout.config import RunConfig
from rollout.errors import UserError
from rollout.preflight import check


def probe_settings(config: RunConfig) -> Sequence[Finding]:
    """The first thing a job of this configuration would stop at. It is no fault of the machine's."""
    try:
        check(config)
    except UserError as error:
        return [Finding("settings", Verdict.WARN, str(error), "a job would stop with this line")]
    return [Finding("settings", Verdict.OK, f"model, tasks and memory fit (model.path={config.model.path})")]
