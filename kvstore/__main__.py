"""The command line of a store: `python -m kvstore stat|verify|gc|bench PATH`.

Exit codes: 0 fine, 1 bad blocks found, 2 wrong input or a store that cannot be worked with, 130 interrupted.
One line on stderr says what is wrong. Nothing is imported before it is needed.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kvstore.errors import KvStoreError
from kvstore.tools.errors import WrongInput

EXIT_BAD_BLOCKS = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130
DEFAULT_THREADS = 8
DEFAULT_LEASE_TTL_S = 30.0

ABOUT = """\
Look at, check, clean and measure a KV block store. PATH is the store's directory (kvstore.path).

  python -m kvstore stat PATH                      what is in it, who owns it
  python -m kvstore verify PATH                    read everything, name each bad block
  python -m kvstore gc PATH --keep-latest 2        drop all but the two newest versions of a KV format
  python -m kvstore bench PATH --json OUT          measure in a new folder inside PATH
"""
GC_ABOUT = """\
Drop whole versions: all segments of a weights id. A version goes when every given condition holds for it.
--orphans and --bad drop what is of no use to anybody, with or without versions.
Takes the store's lease, so no job may own the store meanwhile.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like everything else here."""

    def error(self, message: str) -> NoReturn:
        raise WrongInput(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    level_before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # what matters of it ends the command with a line of its own
    try:
        options = _parser().parse_args(arguments)
        if options.json is not None:
            from kvstore.tools.output import check_writable

            check_writable(options.json)
        return int(options.run(options))
    except KvStoreError as error:
        return _stop(str(error), EXIT_WRONG_INPUT)
    except BrokenPipeError:  # a reader that hangs up early is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _stop(f"{error.filename or 'the store'}: {error.strerror or error}", EXIT_WRONG_INPUT)
    except KeyboardInterrupt:
        return _stop("interrupted", EXIT_INTERRUPTED)
    finally:
        logging.disable(level_before)


def _stat(options: argparse.Namespace) -> int:
    from kvstore.files import PosixFiles
    from kvstore.tools.output import report
    from kvstore.tools.stat import stat_report, stat_store

    stat = stat_store(_directory(options.path), PosixFiles())
    report(options.json, stat.answer(), stat_report(stat))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from kvstore.files import PosixFiles
    from kvstore.tools.output import report
    from kvstore.tools.progress import bytes_read
    from kvstore.tools.verify import verify_store

    directory, files = _directory(options.path), PosixFiles()
    with bytes_read(directory, files) as progress:
        found = verify_store(directory, files, num_threads=options.threads, progress=progress)
    report(options.json, found.answer(), found.report())
    return EXIT_BAD_BLOCKS if found.bad_blocks else 0


def _gc(options: argparse.Namespace) -> int:
    import time

    from kvstore.files import PosixFiles
    from kvstore.tools.gc import GcOutcome, owned, plan_gc, run_gc
    from kvstore.tools.gc_choice import GcRule
    from kvstore.tools.output import report

    weights = tuple(options.weights) if options.weights else None
    rule = GcRule(weights, options.keep_latest, options.older_than, options.orphans, options.bad)
    if not (rule.chooses_versions or rule.orphans or rule.bad):
        raise WrongInput("say what to drop: --weights, --keep-latest, --older-than, --orphans or --bad")
    directory, files = _directory(options.path), PosixFiles()
    if options.dry_run:
        plan = plan_gc(directory, files, rule, now_s=time.time())
        outcome = GcOutcome(directory, plan, dry_run=True, freed_bytes=0)
    else:
        with owned(directory, files, lease_ttl_s=options.lease_ttl) as owner:
            plan = plan_gc(directory, files, rule, now_s=time.time())
            outcome = run_gc(owner, directory, plan)
    report(options.json, outcome.answer(), outcome.report())
    return 0


def _bench(options: argparse.Namespace) -> int:
    from kvstore.tools.bench.run import bench_report, run_bench
    from kvstore.tools.bench.sizes import FULL, QUICK
    from kvstore.tools.output import report

    findings, conditions = run_bench(Path(options.path), QUICK if options.quick else FULL)
    answer = findings.answer(conditions, quick=options.quick)
    report(options.json, answer, bench_report(findings, conditions, quick=options.quick))
    return 0


def _directory(path: str) -> Path:
    directory = Path(path)
    if not directory.exists():
        raise WrongInput(f"there is no directory {path}; PATH is what kvstore.path names")
    if not directory.is_dir():
        raise WrongInput(f"{path} is a file; PATH is the directory that holds a store's segments")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise WrongInput(f"{path} cannot be read: permission denied")
    return directory


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m kvstore",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="stat|verify|gc|bench")

    def command(name: str, run: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, description=about, allow_abbrev=False)
        added.add_argument("path", metavar="PATH", help="the store's directory")
        added.add_argument("--json", type=Path, metavar="FILE", help="write JSON there; - for stdout")
        added.set_defaults(run=run)
        return added

    command("stat", _stat, "What is in a store, and who owns it.")
    verify = command("verify", _verify, "Read every record and name each bad block; exit code 1 if any.")
    verify.add_argument("--threads", type=_count, default=DEFAULT_THREADS, help="default: %(default)s")
    _add_conditions(command("gc", _gc, GC_ABOUT))
    bench = command("bench", _bench, "Measure the store against the bare disk, in a new folder inside PATH.")
    bench.add_argument("--quick", action="store_true", help="smaller, a minute or less, no goal judged")
    return parser


def _add_conditions(gc: argparse.ArgumentParser) -> None:
    gc.add_argument("--weights", nargs="+", metavar="ID", help="versions of these weights ids")
    gc.add_argument("--keep-latest", type=_count, metavar="N", help="all but the N newest of each KV format")
    gc.add_argument(
        "--older-than", type=_positive, metavar="DAYS", help="versions whose newest segment is older"
    )
    gc.add_argument(
        "--orphans",
        action="store_true",
        help="also segments of which no block can be reached from a context's start; "
        "contexts begun with an adapter or a salt count as such",
    )
    gc.add_argument(
        "--bad",
        action="store_true",
        help="also segments of which nothing can be used: no header that this version reads",
    )
    gc.add_argument("--dry-run", action="store_true", help="say what would go, drop nothing")
    gc.add_argument(
        "--lease-ttl",
        type=_positive,
        default=DEFAULT_LEASE_TTL_S,
        metavar="SECONDS",
        help="kvstore.lease_ttl_s of the jobs that use the store: how long a silent holder on another host "
        "is waited for (default: %(default)s)",
    )


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def _stop(line: str, code: int) -> int:
    sys.stderr.write(f"kvstore: {' '.join(line.split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
