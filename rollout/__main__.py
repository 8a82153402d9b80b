"""The command line: `python -m rollout [overrides]`.

Nothing heavy is imported before the configuration has been judged, so a bad line costs no start.
Exit codes: 0 the job ended well, 1 it failed, 2 bad input, 130 interrupted; one line says why.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rollout.errors import RolloutError, UserError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

ABOUT = """\
Rollouts of tool-using agents over prefill and decode engines, with their KV cache on SSD, and GRPO.

Every setting is an override, key=value or group=choice:
  python -m rollout                                      the default job
  python -m rollout job=rollout task.prompts_per_step=8  rollout alone, more of it
  python -m rollout job=replay trace=my.csv              recorded agents played again, paced
  python -m rollout job=simulate trace=paper-64k         the same in virtual time, on a cluster of any size
  python -m rollout job=plan budget.nodes=6              how many of 6 nodes should be prefill nodes?
  python -m rollout job=serve                            an OpenAI-compatible endpoint that records agents
  python -m rollout job=doctor                           what this machine offers, and what it lacks
  python -m rollout experiment=tiny_rl                   a tiny model learns to use its tool
  python -m rollout model.path=/path/to/a/model          your own causal LM
  python -m rollout resume=runs/train-...                go on where a run was cut off
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see python -m rollout --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job and return the process's exit code."""
    try:
        return _run(_parser().parse_args(arguments))
    except UserError as error:
        return _stop(f"error: {error}", EXIT_BAD_INPUT)
    except RolloutError as error:
        return _stop(f"failed: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return _stop("interrupted", EXIT_INTERRUPTED)


def _run(options: argparse.Namespace) -> int:
    from rollout.compose import load_config, to_yaml
    from rollout.run_dir import resumed_overrides

    overrides = resumed_overrides(options.overrides)
    config = load_config(overrides)
    if options.cfg is not None:
        return _print(to_yaml(config))

    if config.job == "doctor":
        from rollout.probes.doctor import run_doctor

        return run_doctor(config, overrides)

    if config.is_simulated:
        from rollout.simulation.job import run_plan, run_simulation

        run = run_simulation if config.job == "simulate" else run_plan
        return run(config, overrides)

    from rollout.preflight import check

    replay = check(config)

    if config.job == "serve":
        from rollout.serve.extra import load_serving

        load_serving()
        from rollout.serve.job import run_serve

        return run_serve(config, overrides)

    from rollout.job import run_job

    return run_job(config, overrides, replay)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m rollout",
        description=ABOUT,
        epilog=_choices() + "\nEvery key and its value: python -m rollout --cfg job",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cfg", choices=["job"], help="print the configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="override", help="key=value, group=choice")
    return parser


def _choices() -> str:
    """The groups of conf/ and what each offers."""
    groups = sorted(path for path in (Path(__file__).parent / "conf").iterdir() if path.is_dir())
    lines = [
        f"  {group.name + '=':<12}{' | '.join(sorted(file.stem for file in group.glob('*.yaml')))}"
        for group in groups
        if any(group.glob("*.yaml"))
    ]
    return "\n".join(["choices:", *lines])


def _print(text: str) -> int:
    """Write to standard output; a reader that hangs up early is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _stop(line: str, code: int) -> int:
    sys.stderr.write(f"rollout: {' '.join(line.split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
