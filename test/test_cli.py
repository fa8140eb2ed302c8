"""What all command lines share."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def decode(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "espnet_moe.bin.decode", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_options_from_a_file(tmp_path: Path) -> None:
    words = tmp_path / "args"
    words.write_text("--backbone\na b\n--system\nbest\n--data\nx\ny\n--out\nz\n")
    done = decode(f"@{words}")
    assert done.returncode == 2
    assert "error: --system best is unknown" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_of_options_that_is_missing() -> None:
    done = decode("@nowhere/args")
    assert done.returncode == 2
    assert "@nowhere/args: the options in it cannot be read" in done.stderr


def test_a_reader_that_has_enough() -> None:
    """``… | head -1``: no traceback where nobody reads on."""
    script = (
        "from espnet_moe.bin import cli\n"
        "cli.run(lambda argv: [print('x' * 1000) for _ in range(10000)] and None)"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as done:
        assert done.stdout is not None and done.stderr is not None
        done.stdout.readline()
        done.stdout.close()
        errors = done.stderr.read()
    assert done.returncode == 1 and errors == b""
