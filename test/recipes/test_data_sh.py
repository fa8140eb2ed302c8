"""Stage 1 of the recipes: which splits and which release each corpus is asked for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EGS = Path(__file__).resolve().parents[2] / "egs2"
SOURCES = "hi:kathbath,commonvoice it:commonvoice pa:kathbath"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A copy whose environment is the test's, and whose prepare_data only is asked."""
    shutil.copytree(EGS / "TEMPLATE", tmp_path / "egs2/TEMPLATE", symlinks=True)
    folder = tmp_path / "egs2/TEMPLATE/moe1"
    (folder / "path.sh").write_text("")
    (folder / "db.sh").write_text("COMMONVOICE=/corpora/cv\nKATHBATH=/corpora/kb\n")
    (folder / "cmd.sh").write_text("train_cmd=true\n")
    return folder


def run(recipe: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["local/data.sh", "--sources", SOURCES, *words],
        cwd=recipe,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )


def arguments(recipe: Path, name: str) -> dict[str, list[str]]:
    """What prepare_data would be told, by the option."""
    from espnet_moe.bin.prepare_data import get_parser

    words = (recipe / f"data/log/{name}.args").read_text().splitlines()
    return vars(get_parser().parse_args(words))


def test_further_tests_and_release(recipe: Path) -> None:
    words = ["--further_tests", "kathbath:test_noisy kathbath:test_known", "--release", "26.0"]
    done = run(recipe, *words)
    assert done.returncode == 0, done.stderr
    usual = ["train", "dev", "test"]
    for name in ("kathbath_hi", "kathbath_pa"):
        asked = arguments(recipe, name)
        assert asked["splits"] == [*usual, "test_noisy", "test_known"]
        assert asked["release"] is None and asked["root"] == "/corpora/kb"
    for name in ("commonvoice_hi", "commonvoice_it"):
        asked = arguments(recipe, name)
        assert (asked["splits"], asked["release"]) == (usual, "26.0")


def test_without_them(recipe: Path) -> None:
    assert run(recipe).returncode == 0
    for name in ("kathbath_hi", "commonvoice_hi"):
        asked = arguments(recipe, name)
        assert (asked["splits"], asked["release"]) == (["train", "dev", "test"], None)


def test_mistakes(recipe: Path) -> None:
    done = run(recipe, "--further_tests", "kathbath=test_noisy mls:test_noisy hi:test_x")
    assert done.returncode == 2
    for message in (
        "--further_tests is of CORPUS:SPLIT, such as kathbath:test_noisy, not 'kathbath=test",
        "--further_tests: mls is no corpus of --sources",
        "--further_tests: hi is no corpus of --sources",
    ):
        assert message in done.stderr
