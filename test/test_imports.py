"""Imports point one way; heavy packages stay where they belong (the map is in CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "espnet_moe"

# A part may import itself and what stands in the rows above its own. `decoding` is above `model`,
# which measures word error rates in training with its search; `analysis` trains nothing.
ROWS = [
    {"errors", "__init__"},
    {"files", "config", "extensions", "linear"},
    {"archives", "data", "experts", "checkpoints", "provenance", "tracking"},
    {"scoring", "routing", "interruption", "memory", "stamps"},
    {"grid"},
    {"backbones", "report", "clustering"},
    {"decoding"},
    {"analysis"},
    {"inference", "model", "training_data", "phases"},
    {
        "preprocessing",
        "schedulers",
        "vtlp",
        "training_options",
        "training_setup",
        "model_building",
        "router_report",
    },
    {"trainer"},
    {"task"},
    {"converting", "exporting", "packing"},
    {"bin"},
]
# Parts that know no model, and what they may not import.
NO_MODEL = {"data", "scoring", "report", "stamps"}
MODEL_PARTS = {"backbones", "experts", "routing", "model", "task", "trainer", "decoding"}
ESPNET_ONLY_IN = {
    *("model", "task", "trainer", "packing", "preprocessing", "schedulers", "vtlp", "backbones"),
    "training_options",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the package that a file belongs to: its folder or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def row(name: str) -> int:
    found = [i for i, names in enumerate(ROWS) if name in names]
    assert found, f"espnet_moe/{name} is not in the map of test_imports.py"
    return found[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the whole name"
            assert node.module is not None
            if node.module == "espnet_moe":
                yield from ((node.lineno, f"espnet_moe.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


def wrong(path: Path) -> Iterator[str]:
    """What a file imports against the rules."""
    own = part(path)
    for line, name in imported(path):
        top, _, rest = name.partition(".")
        where = f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        if top == "espnet_moe" and not rest.startswith("__"):
            other = rest.split(".")[0]
            if other != own and row(other) >= row(own):
                yield f"{where} runs back: {own} comes before {other}"
            if own in NO_MODEL and other in MODEL_PARTS:
                yield f"{where}: {own} knows no model"
        elif top in {"espnet", "espnet2", "espnetez"}:
            if top != "espnet2" or own not in ESPNET_ONLY_IN:
                yield f"{where}: only espnet2, and only in {', '.join(sorted(ESPNET_ONLY_IN))}"
            if own == "backbones" and not path.stem.startswith("owsm"):
                yield f"{where}: among the backbones only owsm knows ESPnet"
        elif top in {"transformers", "peft", "whisper"} and own != "backbones":
            yield f"{where}: only in backbones"
        elif top == "torch" and own in NO_MODEL:
            yield f"{where}: {own} needs no torch"


def test_arrows_run_one_way() -> None:
    assert [problem for path in FILES for problem in wrong(path)] == []


def test_the_rules_find_what_they_forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    file = tmp_path / "data/new.py"
    file.parent.mkdir()
    for line in (
        "from espnet_moe.bin import cli",
        "from espnet_moe import model",
        "def f():\n    import espnet_moe.decoding.search",
        "import torch.nn",
        "from transformers import WhisperModel",
        "from espnet.nets import x",
    ):
        file.write_text(line)
        assert list(wrong(file)), line
    file.write_text("import numpy\nfrom espnet_moe.errors import UserError")
    assert list(wrong(file)) == []


def test_package_imports_nothing() -> None:
    script = "import sys; old = set(sys.modules); import espnet_moe; print(*set(sys.modules) - old)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert loaded == ["espnet_moe"]


@pytest.mark.parametrize(
    "module", ["data.datadir", "data.normalize", "scoring", "report.results_md"]
)
def test_data_and_scoring_load_no_model(module: str) -> None:
    script = f"import sys, espnet_moe.{module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "espnet2"} & set(loaded)
