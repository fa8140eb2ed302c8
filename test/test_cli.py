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
