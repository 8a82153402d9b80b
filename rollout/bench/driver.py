"""A process that plays one job after the other on one Ray.

A short replay's wall time is mostly its start; here only the first job waits for imports and for Ray. Every
job has engines, agent workers and a store of its own, as if it were alone. `python -m rollout.bench.driver`
reads a job a line, {"arguments": [...], "log": path}, and answers each with its exit code in a line. What the
job says goes to its log.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path

from rollout.__main__ import EXIT_FAILED, EXIT_INTERRUPTED
from rollout.__main__ import main as run_one
from rollout.actors import RayCluster

_MOST_NODES = 16
"""Of a job's cluster. Ray's CPUs are only numbers here."""
_START_DEADLINE_S = 60.0


def main() -> int:
    """Play jobs until standard input ends."""
    with ExitStack() as ends:
        ray: RayCluster | None = None
        for line in sys.stdin:
            job = json.loads(line)
            with Path(job["log"]).open("w") as log, redirect_stderr(log), redirect_stdout(log):
                try:
                    if ray is None:
                        ray = RayCluster(None, num_nodes=_MOST_NODES, start_deadline_s=_START_DEADLINE_S)
                        ends.callback(ray.close)
                    code = run_one(job["arguments"])
                except Exception:  # noqa: BLE001  (whatever it met, the next job may be played)
                    traceback.print_exc()
                    code = EXIT_FAILED
            os.write(sys.stdout.fileno(), f"{code}\n".encode())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
