"""From a training's best checkpoint to the expert and router folders that decoding loads."""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from espnet_moe.backbones.loading import FINETUNED
from espnet_moe.checkpoints import Checkpoints
from espnet_moe.config import ConfigError
from espnet_moe.data.files import write_text
from espnet_moe.data.normalize import NORMALIZER
from espnet_moe.experts.expert_files import save_expert
from espnet_moe.files import whole_folder
from espnet_moe.model import FineTunedModel, JointModel, RouterModel
from espnet_moe.provenance import commit, data_digest
from espnet_moe.router_report import decide, figures
from espnet_moe.routing.calibration import Calibration
from espnet_moe.routing.router_files import save_router
from espnet_moe.task import MoETask

COLLAPSED_SHARE = 0.01  # of an expert's fair share of the utterances


def export(args: argparse.Namespace) -> list[Path]:
    """Write what a finished training has trained.

    Args:
        args: The training's options, as the trainer completed them.

    Returns:
        Phase expert: ``<output_dir>/expert`` for a single expert, else
        ``<output_dir>/expert_<name>`` each. Phase router: ``<output_dir>/router``. Phase joint:
        ``<output_dir>/expert_<name>`` each and ``<output_dir>/router``, which is the last. Phase
        finetune: ``<output_dir>/backbone``, which loads wherever a backbone does.

    Raises:
        ConfigError: Where there is no best checkpoint.
    """
    output = Path(args.output_dir)
    phase, key, _ = args.best_model_criterion[0]
    best = output / f"{phase}.{key}.best.pth"
    if not best.exists():
        raise ConfigError(f"{best} is missing: the training made no checkpoint to export")
    model: Any = MoETask.build_model(args)
    model.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
    data = Path(args.train_dir)
    figures_of_best = _valid_figures(output, best)
    facts = {
        "backbone": args.backbone_conf["path"],
        "context": args.backbone_conf["context"],
        "tokenizer_digest": model.backbone.tokens.digest(),
        "data_digest": data_digest(data),
        "normalizer": NORMALIZER,
        "git_commit": commit()["git_commit"],
        "phase": args.phase,
        "metrics": {
            k: v
            for k, v in figures_of_best.items()
            if k in ("epoch", "loss", "wer") or k.startswith("acc")
        },
    }
    if args.phase == "joint":
        facts["collapsed"] = _collapsed(figures_of_best, args.experts)
    if isinstance(model, FineTunedModel):
        facts |= {"part": args.finetune_conf["part"], "languages": _languages(data)}
        return [_save_base(output / "backbone", model, args.base_digest, facts)]
    folders = []
    for name in () if model.experts is None else model.experts.names:
        alone = args.phase == "expert" and len(model.experts) == 1
        folders.append(output / ("expert" if alone else f"expert_{name}"))
        own = {**facts, "languages": _languages(data)}
        save_expert(folders[-1], model.experts, name, args.base_digest, own)
    if isinstance(model, RouterModel | JointModel):
        folders.append(output / "router")
        facts["metrics"] |= _calibrate(args, model)
        save_router(folders[-1], model.router, args.base_digest, facts)
    return folders


def _save_base(
    folder: Path, model: FineTunedModel, base_digest: str, facts: dict[str, Any]
) -> Path:
    """Write a fine-tuned base with a list of what it is; an earlier one stays until then."""
    trained = sum(parameter.numel() for parameter in model.finetuned)
    content = {**facts, "base_digest": base_digest, "trained_params": trained}
    with whole_folder(folder) as beside:
        beside.mkdir()
        model.backbone.save_pretrained(beside)
        write_text(beside / FINETUNED, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return folder


def _calibrate(args: argparse.Namespace, model: RouterModel | JointModel) -> dict[str, Any]:
    """Calibrate a router's heads by the validation set, and measure them there.

    The router of a joint training stays as it is where the experts have learnt with its gates, or
    where nothing has tied an expert to its label. Calibrated is one that labels have trained and
    whose gates went straight through, an expert an utterance. What the trainer measured (accuracy,
    WER, usage) is of the router before.
    """
    model.to("cuda" if args.ngpu > 0 else "cpu")
    batches = MoETask.build_streaming_iterator(
        args.valid_data_path_and_name_and_type,
        preprocess_fn=MoETask.build_preprocess_fn(args, train=False),
        collate_fn=MoETask.build_collate_fn(args, train=False),
        dtype="float32",
        key_file=args.valid_shape_file[0],
        batch_size=args.valid_batch_size or args.batch_size,
        num_workers=args.num_workers,
        ngpu=args.ngpu,
    )
    experts, languages = decide(model, batches)
    router = model.router
    own, of_languages = (
        Calibration.none(len(router.experts)),
        Calibration.none(len(router.languages)),
    )
    if isinstance(model, RouterModel) or model.chooses_by_labels:
        own = experts.fit()
        of_languages = own if router.language_head is None else languages.fit()
        router.calibrate(own, of_languages)
    model.to("cpu")
    found = {"language": figures(languages, of_languages, router.languages)}
    if router.experts != router.languages:
        found["expert"] = figures(experts, own, router.experts)
    for head, values in found.items():
        if values:
            logging.info(
                "router on %s: %s accuracy %.2f %% (%.2f %% before calibration), calibration "
                "error %.4f (%.4f)",
                args.valid_dir,
                head,
                *(values[key] for key in ("accuracy", "accuracy_before", "ece", "ece_before")),
            )
    told = {"temperature": round(own.temperature, 4), "bias": _biases(router.experts, own)}
    if router.language_head is not None:
        told["language_bias"] = _biases(router.languages, of_languages)
    return told | found


def _biases(names: Sequence[str], calibration: Calibration) -> dict[str, float]:
    return {n: round(float(b), 4) for n, b in zip(names, calibration.bias, strict=True)}


def _languages(folder: Path) -> list[str]:
    with open(folder / "utt2lang", encoding="utf-8") as lines:
        return sorted({line.split()[1] for line in lines})


def _valid_figures(output: Path, best: Path) -> dict[str, Any]:
    """The validation figures of the best epoch, as the checkpoint holds them."""
    states = Checkpoints(output).load("cpu")
    if states is None:
        raise ConfigError(f"{output} has no checkpoint, but {best.name}: train again")
    epoch = int(best.resolve().name.removesuffix("epoch.pth"))
    valid = states["reporter"]["stats"][epoch]["valid"]
    numbers = {k: round(float(v), 4) for k, v in valid.items() if isinstance(v, int | float)}
    return {"epoch": epoch, **numbers}


def _collapsed(valid: dict[str, Any], experts: list[str]) -> list[str]:
    """Experts that got (nearly) no utterance of the validation set."""
    least = COLLAPSED_SHARE / len(experts)
    collapsed = [name for name in experts if valid[f"usage_{name}"] < least]
    if collapsed:
        logging.warning("collapsed: no utterance is routed to %s", ", ".join(collapsed))
    return collapsed
