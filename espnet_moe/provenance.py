"""What a result was made from: commit of the code, digests of the data, versions of packages."""

import argparse
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

from espnet_moe.files import sha256

PACKAGES = ("espnet_moe", "espnet", "torch", "transformers", "jiwer", "numpy")
# What a training reads of a data directory, besides the audio itself.
DATA = ("wav.scp", "text", "utt2lang", "utt2experts", "utt2weight", "text.alt", "text.ctc")


def commit() -> dict[str, str | None]:
    """``git_commit`` and ``git_commit_date`` of this code; None outside a checkout."""
    command = ["git", "log", "-1", "--format=%H%n%cI"]
    try:
        found = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        found = []
    of_code, date = found if len(found) == 2 else (None, None)
    return {"git_commit": of_code, "git_commit_date": date}


def versions() -> dict[str, str | None]:
    """Versions that could change a number; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def data_digest(folder: str | Path) -> str:
    """SHA-256 of what a training reads of a data directory."""
    return sha256(*(Path(folder) / name for name in DATA if (Path(folder) / name).is_file()))


def of_training(args: argparse.Namespace) -> dict[str, Any]:
    """What a training is made from, besides its options; for ``config.yaml`` and wandb."""
    folders = {"train": args.train_dir, "valid": args.valid_dir}
    return {
        **commit(),
        "data": {split: data_digest(folder) for split, folder in folders.items()},
        "versions": versions(),
    }
