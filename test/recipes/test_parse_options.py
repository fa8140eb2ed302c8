"""utils/parse_options.sh: a script's options from the command line, and its generated help."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = f"""#!/usr/bin/env bash
# Makes things.
set -euo pipefail

## Data
nj=2                # number of jobs
trim=true           # cut silence
langs="hi it"       # languages
max_wav_duration=30 # seconds
tag=                # name
. {ROOT}/egs2/TEMPLATE/moe1/utils/parse_options.sh
later=1
echo "$nj|$trim|$langs|$max_wav_duration|$tag"
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.sh"
    path.write_text(SCRIPT)
    return path


def call(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", script, *words], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], "2|true|hi it|30|"),
        (["--nj", "4", "--langs", "pa  te", "--tag", "$x *"], "4|true|pa  te|30|$x *"),
        (["--max-wav-duration", "9", "--trim", "false"], "2|false|hi it|9|"),
        (["--max_wav_duration", "-1", "--nj", "1", "--nj", "3"], "3|true|hi it|-1|"),
        (["--langs", ""], "2|true||30|"),
    ],
)
def test_values(script: Path, words: list[str], values: str) -> None:
    done = call(script, *words)
    assert (done.stdout, done.returncode) == (values + "\n", 0), done.stderr


def test_all_mistakes_at_once(script: Path) -> None:
    done = call(
        script,
        "--trim",
        "maybe",
        "--trin",
        "1",
        "word",
        "--later",
        "2",
        "--nj=3",
        "--PATH",
        "x",
        "--tag",
    )
    assert done.returncode == 2
    assert done.stdout == ""
    for part in (
        "--trim is true or false, not 'maybe'",
        "--trin is unknown",
        "--later is unknown",
        "--PATH is unknown",
        "'word' is no option",
        "'--nj=3' is written with a space",
        "--tag needs a value",
        "legal options: --nj --trim --langs --max_wav_duration --tag --config --help",
    ):
        assert part in done.stderr


def test_config_file(script: Path, tmp_path: Path) -> None:
    config = tmp_path / "options.conf"
    config.write_text("# mine\nnj=7\nlangs=\"te pa\"\n\ntag='a b'")
    assert call(script, "--nj", "5", "--config", str(config)).stdout == "5|true|te pa|30|a b\n"
    config.write_text("nj=7\nfoo=1\ntrim=1\nwhat\n")
    done = call(script, "--config", str(config), "--config", "gone.conf")
    assert done.returncode == 2
    for part in ("foo is unknown", "trim is true or false", "'what' is not", "gone.conf cannot"):
        assert part in done.stderr


def test_help_is_generated(script: Path) -> None:
    done = call(script, "--nj", "4", "--help")
    assert done.returncode == 0
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "Makes things.",
        "Data:",
        "--nj number of jobs (default: 2)",
        "--langs languages (default: hi it)",
        "--tag name",
    ):
        assert line in lines
