"""tools/test.sh: both halves of the tests count, and arguments go to one call of pytest."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/usr/bin/env bash
echo "$*" >> calls
echo "pytest said $*"
[[ " $* " != *" $FAILS "* ]]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "setup.sh": "#!/bin/sh\n",
        "check.sh": '#!/bin/sh\n[ "$FAILS" != check ]\n',
        "venv/bin/python": PYTHON,
    }.items():
        path = tmp_path / "tools" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    shutil.copy(ROOT / "tools/test.sh", tmp_path / "tools")
    return tmp_path


def call(project: Path, *words: str, fails: str = "nothing") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [project / "tools/test.sh", *words],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "FAILS": fails},
    )


def test_without_arguments_everything_runs_once(project):
    done = call(project)
    assert done.returncode == 0
    calls = (project / "calls").read_text().splitlines()
    assert len(calls) == 2 and all("-m not gpu" in line for line in calls)
    assert [line.endswith(" test/recipes") for line in sorted(calls)] == [False, True]
    assert sum("--ignore=test/recipes" in line for line in calls) == 1
    for line in calls:
        assert f"pytest said {line}" in done.stdout, "what both have said is shown"


@pytest.mark.parametrize("fails", ["check", "test/recipes", "--ignore=test/recipes"])
def test_each_part_can_fail(project, fails):
    done = call(project, fails=fails)
    assert done.returncode == 1
    assert len((project / "calls").read_text().splitlines()) == 2, "the others run all the same"


def test_arguments_go_to_one_call(project):
    assert call(project, "-k", "datadir").returncode == 0
    (line,) = (project / "calls").read_text().splitlines()
    assert line.endswith("-k datadir") and "recipes" not in line
    assert call(project, "-x", fails="-x").returncode == 1
