#!/usr/bin/env python3
"""What starting costs: the import of the package, every command line's ``--help``, a stage's jobs.

Wall time of processes of their own, in turn with a Python that does nothing, files in the page
cache.

  benchmarks/launching.py
  benchmarks/launching.py --quick
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial

from harness import ROOT, Report, Row, alternate, begin, get_parser

MODULES = sorted(
    path.stem
    for path in (ROOT / "espnet_moe/bin").glob("*.py")
    if path.stem not in ("__init__", "cli")
)


# A stage of a recipe as the template's are, whose four jobs have nothing to do.
STAGE = """
set -euo pipefail
python=$1 folder=$(mktemp -d -p "$2")
cd egs2/TEMPLATE/moe1
. utils/stages.sh
to_do "$folder/stamp.json" --inputs utils --options none --outputs "$folder/done"
perl utils/run.pl JOB=1:4 "$folder/JOB.log" touch "$folder/done"
finish "$folder/stamp.json"
[ -s "$folder/stamp.json" ]
"""


def run(*command: str) -> str:
    """The output of a process that must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True, cwd=ROOT
    )
    return done.stdout


def main(argv: Sequence[str] | None = None) -> Report:
    """Measure, print a table."""
    parser = get_parser(__doc__, rounds=5)
    parser.add_argument("--modules", nargs="+", default=MODULES, help="of espnet_moe.bin")
    report = begin("Starting", parser, argv)
    python = partial(run, sys.executable)
    calls = {
        "nothing": partial(python, "-c", ""),
        "import": partial(python, "-c", "import espnet_moe"),
    }
    for module in report.options.modules:
        calls[module] = partial(python, "-m", f"espnet_moe.bin.{module}", "--help")
        told = calls[module]()
        report.check(f"{module} --help tells its options", "--help" in told, True)
    with tempfile.TemporaryDirectory() as folder:
        calls["jobs"] = partial(run, "bash", "-c", STAGE, "stage", sys.executable, folder)
        times = alternate(calls, report.options.rounds, clock=time.perf_counter)
    report.seconds.append(times.seconds)
    report.add(Row("a Python that does nothing", times.of("nothing"), unit="s"))
    report.add(Row("import espnet_moe", times.of("import"), unit="s", bar="<= 0.3"))
    for module in report.options.modules:
        row = Row(f"espnet_moe.bin.{module} --help", times.of(module), unit="s", bar="<= 1")
        report.add(row)
    report.add(Row("a stage of four jobs that do nothing", times.of("jobs"), unit="s", bar="<= 2"))
    report.write()
    return report


if __name__ == "__main__":
    main()
