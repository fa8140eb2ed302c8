"""The ESPnet task: which classes there are, how a batch is made; everything else is ESPnet's."""

import argparse
import inspect
import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask, optim_classes
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.class_choices import ClassChoices
from espnet2.train.collate_fn import CommonCollateFn
from espnet2.utils.types import int_or_none, str2bool, str_or_none

from espnet_moe import phases
from espnet_moe.backbones.whisper import WhisperOptions
from espnet_moe.backbones.whisper_loading import load_tokens, max_target_length
from espnet_moe.config import ConfigError, build_options
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.files import atomic
from espnet_moe.model import PRECISIONS, ESPnetMoEModel
from espnet_moe.preprocessing import Preprocessor
from espnet_moe.routing.oracle import OracleRouter
from espnet_moe.schedulers import LinearWarmupDecay
from espnet_moe.trainer import Trainer

# The one place where ESPnet looks schedulers up; children of DDP import this module again.
abs_task.scheduler_classes["linearwarmupdecay"] = LinearWarmupDecay

backbone_choices = ClassChoices("backbone", {"whisper": WhisperOptions}, default="whisper")
expert_choices = ClassChoices("expert", {"lora": LoRAOptions}, default="lora")
router_choices = ClassChoices("router", {"oracle": OracleRouter}, default="oracle")
specaug_choices = ClassChoices(
    "specaug", {"specaug": SpecAug}, type_check=AbsSpecAug, default=None, optional=True
)
model_choices = ClassChoices(
    "model", {"moe": ESPnetMoEModel}, type_check=AbsESPnetModel, default="moe"
)

# What a data directory gives to a batch: file, name in the batch, ESPnet's reader.
DATA = (("wav.scp", "speech", "sound"), ("text", "text", "text"), ("utt2lang", "language", "text"))

# Options of ESPnet's own trainer and adapters that this one would silently not follow.
UNUSED: tuple[str, ...] = (
    "use_adapter",
    "sharded_ddp",
    "unused_parameters",
    "ddp_comm_hook",
    "collect_stats",
)
UNUSED += ("nbest_averaging_interval",)


class MoETask(AbsTask):
    """Training of mixtures of experts: ``python -m espnet_moe.bin.train --config …``."""

    num_optimizers = 1
    class_choices_list: ClassVar[list[ClassChoices]] = [
        backbone_choices,
        expert_choices,
        router_choices,
        specaug_choices,
        model_choices,
    ]
    trainer = Trainer

    @classmethod
    def add_task_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add this task's options to ESPnet's."""
        group = parser.add_argument_group("Mixture of experts")
        group.add_argument(
            "--phase", default="expert", help=f"what trains: {', '.join(phases.PHASES)}"
        )
        group.add_argument(
            "--experts", nargs="+", default=[], help="names of the experts, e.g. a language each"
        )
        group.add_argument("--train_dir", type=str_or_none, help="Kaldi data directory")
        group.add_argument("--valid_dir", type=str_or_none, help="Kaldi data directory")
        group.add_argument("--train_stats", type=str_or_none, help="folder of collect_shapes")
        group.add_argument("--valid_stats", type=str_or_none, help="folder of collect_shapes")
        group.add_argument(
            "--precision", default="fp32", choices=list(PRECISIONS), help="of the arithmetic"
        )
        group.add_argument(
            "--gradient_checkpointing", type=str2bool, default=False, help="less memory, more time"
        )
        group.add_argument(
            "--speed_perturb", nargs="*", type=float, default=[], help="factors, e.g. 0.9 1.0 1.1"
        )
        group.add_argument(
            "--wer_interval",
            type=int_or_none,
            default=None,
            help="measure the greedy WER on the validation set every N validations",
        )
        for choices in cls.class_choices_list:
            choices.add_arguments(group)
        parser.set_defaults(
            num_att_plot=0,
            resume=True,
            scheduler="linearwarmupdecay",
            optim="adamw",
            iterator_type="sequence",
            best_model_criterion=[["valid", "loss", "min"]],
            early_stopping_criterion=["valid", "loss", "min"],
        )

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd: Sequence[str] | None = None) -> None:
        """Parse, complete the options from the data directories, and train."""
        if args is None:
            args = cls.get_parser().parse_args(cmd)
        if not args.print_config and args.output_dir is not None:
            cls.complete(args)
        super().main(args=args)

    @classmethod
    def complete(cls, args: argparse.Namespace) -> None:
        """Fill in ESPnet's data options, and check what can be checked before a model is built.

        Raises:
            ConfigError: All that is wrong, at once.
        """
        problems = []
        if args.phase not in phases.PHASES:
            legal = ", ".join(phases.PHASES)
            problems.append(f"--phase {args.phase} is unknown: choose one of {legal}")
        if not args.experts:
            problems.append("--experts names no expert")
        for split in ("train", "valid"):
            problems += _fill_data(args, split)
        for key in ("freeze_param", "init_param"):
            if getattr(args, key):
                problems.append(f"--{key} has no place here: a phase says what trains")
        for key in UNUSED:
            if getattr(args, key):
                problems.append(f"--{key} has no effect here: leave it out")
        if args.train_dtype != "float32":
            problems.append("--train_dtype stays float32: the arithmetic is set by --precision")
        if args.ngpu > 1 and not args.multiprocessing_distributed:
            problems.append(f"--ngpu {args.ngpu} needs --multiprocessing_distributed true")
        problems += _scheduler_problems(args)
        if args.specaug is not None:
            problems += _unknown_keys(SpecAug, args.specaug_conf, "specaug_conf")
        if args.precision == "fp16" and args.ngpu == 0:
            problems.append("--precision fp16 needs a GPU (--ngpu 1); on a CPU use fp32 or bf16")
        if args.use_amp:
            problems.append("--use_amp is set by --precision bf16|fp16: leave it out")
        if problems:
            raise ConfigError("; ".join(problems))
        for split in ("train", "valid"):
            _leave_out_long(args, split)
        # Only fp16 needs ESPnet's gradient scaler; the model itself chooses the arithmetic.
        args.use_amp = args.precision == "fp16"
        if args.use_wandb:
            os.environ.setdefault("WANDB_MODE", "offline")

    @classmethod
    def build_collate_fn(
        cls, args: argparse.Namespace, train: bool
    ) -> Callable[
        [Collection[tuple[str, dict[str, np.ndarray]]]], tuple[list[str], dict[str, torch.Tensor]]
    ]:
        """Pad speech with zeros and text with 0, which the lengths mask."""
        return CommonCollateFn(float_pad_value=0.0, int_pad_value=0)

    @classmethod
    def build_preprocess_fn(cls, args: argparse.Namespace, train: bool) -> Preprocessor:
        """Text to ids, language to its index, speed perturbation in training."""
        tokens = load_tokens(build_options(WhisperOptions, args.backbone_conf, "").path)
        return Preprocessor(train, tokens, args.speed_perturb)

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names that a batch must have."""
        return ("speech", "text", "language")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names that a batch may have."""
        return ()

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> ESPnetMoEModel:
        """Load the backbone, put the experts in, freeze the rest.

        Raises:
            ConfigError: For unknown keys in any ``*_conf``.
        """
        conf = build_options(
            backbone_choices.get_class(args.backbone), args.backbone_conf, "backbone_conf"
        )
        options = build_options(
            expert_choices.get_class(args.expert), args.expert_conf, "expert_conf"
        )
        router = build_options(
            router_choices.get_class(args.router), args.router_conf, "router_conf"
        )
        legal = {"label_smoothing"}
        if unknown := sorted(set(args.model_conf) - legal):
            raise ConfigError(f"model_conf: unknown key(s) {unknown}; legal keys: {sorted(legal)}")
        # Defaults included, so that config.yaml and the log tell what was really used.
        args.backbone_conf = asdict(conf)
        args.expert_conf = {**asdict(options), "targets": list(options.targets)}
        backbone = conf.build()
        specaug_class = specaug_choices.get_class(args.specaug)
        specaug = None if specaug_class is None else specaug_class(**args.specaug_conf)
        args.base_digest = backbone.digest()
        args.expert_settings = {"experts": list(args.experts), **args.expert_conf}
        experts = ExpertSet(backbone, options, args.experts)
        model = ESPnetMoEModel(
            backbone,
            experts,
            router,
            specaug,
            split_layer=options.first_layer,
            precision=args.precision,
            gradient_checkpointing=args.gradient_checkpointing,
            **args.model_conf,
        )
        phases.begin(args.phase, model)
        logging.info("experts %s in %d layers", " ".join(experts.names), len(experts.layers))
        return model

    @classmethod
    def get_default_config(cls) -> dict[str, Any]:
        """What ``--print_config`` shows, without what is set elsewhere (and so refused)."""
        config: dict[str, Any] = super().get_default_config()
        config["model_conf"].pop("split_layer", None)  # expert_conf's first_layer
        return config

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """One optimiser over exactly what the phase trains."""
        parameters = phases.require(args.phase, model)  # type: ignore[arg-type]
        known = sorted(optim_classes)
        if args.optim not in optim_classes:
            raise ConfigError(f"--optim {args.optim} is unknown: choose one of {' '.join(known)}")
        try:
            return [optim_classes[args.optim](parameters, **args.optim_conf)]
        except TypeError as error:
            raise ConfigError(f"optim_conf {args.optim_conf}: {error}") from error


def _fill_data(args: argparse.Namespace, split: str) -> list[str]:
    """Set ESPnet's data path and shape file options of a split; tell what is wrong."""
    folder, stats = getattr(args, f"{split}_dir"), getattr(args, f"{split}_stats")
    problems = []
    files: dict[str, tuple[Any, Sequence[str]]] = {
        f"--{split}_dir": (folder, [name for name, _, _ in DATA]),
        f"--{split}_stats": (stats, ["speech_shape"]),
    }
    for option, (path, names) in files.items():
        if path is None:
            problems.append(f"{option} is missing")
        elif missing := [n for n in names if not (Path(path) / n).is_file()]:
            problems.append(f"{option} {path} has no {', '.join(missing)}")
    if not problems:
        data = [(str(Path(folder) / file), name, kind) for file, name, kind in DATA]
        setattr(args, f"{split}_data_path_and_name_and_type", data)
        setattr(args, f"{split}_shape_file", [str(Path(stats) / "speech_shape")])
    return problems


def _leave_out_long(args: argparse.Namespace, split: str) -> None:
    """Leave utterances out whose transcript has more tokens than the decoder takes; log them.

    ESPnet reads the utterances that the shape file names: a shorter one is written beside the
    checkpoints where any is left out.
    """
    path = build_options(WhisperOptions, args.backbone_conf, "backbone_conf").path
    tokens, shapes = load_tokens(path), Path(getattr(args, f"{split}_stats")) / "speech_shape"
    room = max_target_length(path) - tokens.prompt(tokens.languages[:1]).size(1)
    with open(Path(getattr(args, f"{split}_dir")) / "text", encoding="utf-8") as lines:
        texts = (line.rstrip("\n").partition(" ") for line in lines)
        long = {utt for utt, _, text in texts if len(tokens.encode(text)) > room}
    if not long:
        return
    with open(shapes, encoding="utf-8") as lines:
        kept = [line for line in lines if line.split(maxsplit=1)[0] not in long]
    if not kept:
        raise ConfigError(f"every transcript in {split} has more than {room} tokens")
    shorter = Path(args.output_dir) / f"{split}_speech_shape"
    with atomic(shorter) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    setattr(args, f"{split}_shape_file", [str(shorter)])
    logging.warning(
        "%d utterances of %s are left out: more than %d tokens, e.g. %s",
        len(long),
        split,
        room,
        ", ".join(sorted(long)[:5]),
    )


def _scheduler_problems(args: argparse.Namespace) -> list[str]:
    """What is wrong with ``--scheduler``: unknown, stepping by epochs, or with unknown options."""
    if args.scheduler is None:
        return []
    found = abs_task.scheduler_classes.get(args.scheduler)
    if found is None or not issubclass(found, AbsBatchStepScheduler):
        legal = [
            name
            for name, kind in abs_task.scheduler_classes.items()
            if isinstance(kind, type) and issubclass(kind, AbsBatchStepScheduler)
        ]
        return [
            f"--scheduler {args.scheduler} does not step with the optimiser: "
            f"choose one of {' '.join(sorted(legal))}"
        ]
    return _unknown_keys(found, args.scheduler_conf, "scheduler_conf")


def _unknown_keys(kind: type, conf: dict[str, Any], name: str) -> list[str]:
    legal = [k for k in inspect.signature(kind).parameters if k != "optimizer"]
    if not (unknown := sorted(set(conf) - set(legal))):
        return []
    return [f"{name}: unknown key(s) {', '.join(unknown)}; legal keys: {', '.join(legal)}"]
