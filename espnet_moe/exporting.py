"""From a training's best checkpoint to expert folders that decoding loads."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import torch

from espnet_moe.config import ConfigError
from espnet_moe.data.normalize import NORMALIZER
from espnet_moe.experts.expert_files import save_expert
from espnet_moe.files import sha256
from espnet_moe.task import MoETask


def export_experts(args: argparse.Namespace) -> list[Path]:
    """Write the experts of a finished training.

    Args:
        args: The training's options, as the trainer completed them.

    Returns:
        ``<output_dir>/expert`` for a single expert, else ``<output_dir>/expert_<name>`` each.

    Raises:
        ConfigError: Where there is no best checkpoint.
    """
    output = Path(args.output_dir)
    phase, key, _ = args.best_model_criterion[0]
    best = output / f"{phase}.{key}.best.pth"
    if not best.exists():
        raise ConfigError(f"{best} is missing: the training made no checkpoint to export")
    model = MoETask.build_model(args)
    model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
    facts = {
        "backbone": args.backbone_conf["path"],
        "context": args.backbone_conf["context"],
        "tokenizer_digest": model.backbone.tokens.digest(),
        "languages": _languages(Path(args.train_dir)),
        "data_digest": sha256(*(Path(args.train_dir) / n for n in ("wav.scp", "text"))),
        "normalizer": NORMALIZER,
        "git_commit": git_commit(),
        "phase": args.phase,
        "metrics": _metrics(output, best),
    }
    folders = []
    for name in model.experts.names:
        folder = output / ("expert" if len(model.experts) == 1 else f"expert_{name}")
        save_expert(folder, model.experts, name, args.base_digest, facts)
        folders.append(folder)
    return folders


def git_commit() -> str | None:
    """The commit of this code, or ``None`` outside a checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _languages(folder: Path) -> list[str]:
    with open(folder / "utt2lang", encoding="utf-8") as lines:
        return sorted({line.split()[1] for line in lines})


def _metrics(output: Path, best: Path) -> dict[str, Any]:
    """The validation figures of the best epoch, as the checkpoint holds them."""
    states = torch.load(output / "checkpoint.pth", map_location="cpu", weights_only=True)
    epoch = int(best.resolve().name.removesuffix("epoch.pth"))
    valid = states["reporter"]["stats"][epoch]["valid"]
    figures = {k: round(float(v), 4) for k, v in valid.items() if k in ("loss", "acc", "wer")}
    return {"epoch": epoch, **figures}
