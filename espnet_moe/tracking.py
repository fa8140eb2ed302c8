"""wandb: how runs are called and grouped, and what it is told; offline unless asked otherwise.

``WANDB_MODE=online`` (after ``wandb login``) sends what is logged; ``wandb sync`` sends what was
logged offline.
"""

import argparse
import os
import secrets
from pathlib import Path
from typing import Any

PROJECT = "espnet_moe"
GROUPS = {
    "expert": "phase1-lora",
    "router": "phase2-routing",
    "joint": "phase2-routing",
    "finetune": "phase1-finetune",
}
ANALYSIS = "phase3-analysis"


def fill(args: argparse.Namespace) -> None:
    """Set what the options of a training leave open: project, name, group and id of its run.

    A training that goes on is another run of the same name: wandb keeps one of two offline runs
    with one id, and refuses a configuration that has changed, as by another commit.
    """
    _default_environment(GROUPS[args.phase])
    args.wandb_project = args.wandb_project or PROJECT
    args.wandb_name = args.wandb_name or run_name(args)
    args.wandb_id = args.wandb_id or secrets.token_hex(4)


def run_name(args: argparse.Namespace) -> str:
    """``<backbone>-<language>-r<rank>`` for an expert.

    A router has its network in the place of the language, a joint training ``joint``, a fine-tuned
    base the part that is trained and the training set.
    """
    if args.phase == "finetune":
        what = f"{args.finetune_conf.get('part', 'full')}-{Path(args.train_dir).name}"
    else:
        what = {
            "expert": "+".join(args.experts),
            "router": str(args.router),
            "joint": "joint",
        }[args.phase]
    rank = args.expert_conf.get("rank")
    parts = [backbone_name(args.backbone_conf["path"]), what]
    return "-".join(parts if args.phase == "router" or rank is None else [*parts, f"r{rank}"])


def backbone_name(path: str) -> str:
    """The last part of a path or hub name, without the end of an archive; as recipes name it."""
    return Path(path).name.removesuffix(".pt").removesuffix(".zip")


def log_scores(exp: Path, results: dict[str, Any]) -> None:
    """Log the scores of an experiment as a run of its own."""
    import wandb

    _default_environment(ANALYSIS)
    facts = {k: results[k] for k in ("command", "git_commit", "git_commit_date", "environment")}
    with wandb.init(
        project=PROJECT,
        name=f"{exp.name}-scores",
        group=ANALYSIS,
        dir=str(exp),
        config={**facts, "experts": results["experts"], "routers": results["routers"]},
    ) as run:
        rows = [row for row in results["rows"] if row["wer"] is not None]
        keys = ("system", "inference_tag", "set", "language", "wer", "cer")
        table = wandb.Table(columns=list(keys), data=[[row[k] for k in keys] for row in rows])
        means = {
            f"wer/{average['system']}/{average['inference_tag']}": average["wer"]
            for average in results["averages"]
        }
        run.log({"scores": table, **means})


def _default_environment(group: str) -> None:
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_RUN_GROUP", group)
