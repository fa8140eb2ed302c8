"""The ESPnet task: which classes there are, how a batch is made; everything else is ESPnet's."""

import argparse
import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.iterators.abs_iter_factory import AbsIterFactory
from espnet2.iterators.sequence_iter_factory import SequenceIterFactory
from espnet2.schedulers.abs_scheduler import AbsBatchStepScheduler
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask, IteratorOptions, optim_classes
from espnet2.train.abs_espnet_model import AbsESPnetModel
from espnet2.train.class_choices import ClassChoices
from espnet2.train.collate_fn import CommonCollateFn

from espnet_moe import (
    model_building,
    phases,
    provenance,
    tracking,
    training_options,
    training_setup,
)
from espnet_moe.backbones.loading import BackboneOptions, load_tokens
from espnet_moe.config import ConfigError, build_options
from espnet_moe.experts.kinds import known_kinds
from espnet_moe.interruption import leaving_together
from espnet_moe.model import ESPnetMoEModel, TrainedModel, precision_for
from espnet_moe.preprocessing import BalancedSampler, Preprocessor
from espnet_moe.routing.networks import known_networks
from espnet_moe.routing.oracle import OracleRouter
from espnet_moe.schedulers import LinearWarmupDecay
from espnet_moe.trainer import Trainer
from espnet_moe.training_data import (
    fill_data,
    leave_out_long,
    read_labels,
    read_lengths,
    text_room,
)
from espnet_moe.vtlp import VTLPSpecAug

# The one place where ESPnet looks schedulers up; children of DDP import this module again.
abs_task.scheduler_classes["linearwarmupdecay"] = LinearWarmupDecay

backbone_choices = ClassChoices(
    # What a path holds tells which; the name is for configurations written before there were two.
    "backbone",
    {"auto": BackboneOptions, "whisper": BackboneOptions},
    default="auto",
)
expert_choices = ClassChoices("expert", known_kinds(), default="lora")
router_choices = ClassChoices(
    "router", {"oracle": OracleRouter, **known_networks()}, default="oracle"
)
specaug_choices = ClassChoices(
    "specaug",
    {"specaug": SpecAug, "vtlp": VTLPSpecAug},
    type_check=AbsSpecAug,
    default=None,
    optional=True,
)
model_choices = ClassChoices(
    "model", {"moe": ESPnetMoEModel}, type_check=AbsESPnetModel, default="moe"
)

# Options of ESPnet's own trainer and adapters that this one would silently not follow.
UNUSED: tuple[str, ...] = (
    "use_adapter",
    "sharded_ddp",
    "unused_parameters",
    "ddp_comm_hook",
    "collect_stats",
    "nbest_averaging_interval",
)


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
        training_options.add_options(group)
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
        with leaving_together():
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
        if not args.experts and args.phase != "finetune":
            problems.append("--experts names no expert")
        data = [p for split in ("train", "valid") for p in fill_data(args, split)]
        problems += data
        if args.phase in phases.PHASES:
            problems += training_setup.complete(args, readable=not data)
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
            kind = specaug_choices.get_class(args.specaug)
            problems += _unknown_keys(kind, args.specaug_conf, "specaug_conf")
        if args.precision == "fp16" and args.ngpu == 0:
            problems.append(
                "--precision fp16 needs a GPU (--ngpu 1); on a CPU use auto, fp32 or bf16"
            )
        if args.use_amp:
            problems.append("--use_amp is set by --precision bf16|fp16: leave it out")
        if problems:
            raise ConfigError("; ".join(problems))
        for split in ("train", "valid"):
            leave_out_long(args, split)
        # Only fp16 needs ESPnet's gradient scaler; the model itself chooses the arithmetic.
        args.use_amp = args.precision == "fp16"
        args.provenance = provenance.of_training(args)
        if args.use_wandb:
            tracking.fill(args)

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
        """Text to ids, language to its index; speed and transcripts drawn in training."""
        path = build_options(BackboneOptions, args.backbone_conf, "").path
        folder = args.train_dir if train else args.valid_dir
        experts = args.experts if args.phase in phases.ROUTED else []
        labels = read_labels(folder, experts)
        return Preprocessor(train, load_tokens(path), args.speed_perturb, labels, text_room(path))

    @classmethod
    def build_sequence_iter_factory(
        cls, args: argparse.Namespace, iter_options: IteratorOptions, mode: str
    ) -> AbsIterFactory:
        """ESPnet's batches, or balanced ones in training."""
        if mode != "train" or args.balance == "none":
            return super().build_sequence_iter_factory(args, iter_options, mode)
        distributed = torch.distributed.get_rank, torch.distributed.get_world_size
        rank, world_size = (f() for f in distributed) if iter_options.distributed else (0, 1)
        classes = read_labels(args.train_dir, args.experts).classes(args.balance, args.experts)
        lengths = read_lengths(iter_options.shape_files[0])
        sampler = BalancedSampler(
            lengths, classes, iter_options.batch_size, args.seed, rank, world_size
        )
        logging.info("[%s] %d batches, balanced by %s", mode, len(sampler), args.balance)
        return SequenceIterFactory(
            dataset=cls.build_dataset(args, iter_options, set(lengths)),
            batches=sampler,
            seed=args.seed,
            num_iters_per_epoch=iter_options.num_iters_per_epoch,
            shuffle=True,
            num_workers=args.num_workers,
            collate_fn=iter_options.collate_fn,
            pin_memory=args.ngpu > 0,
        )

    @classmethod
    def required_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names that a batch must have."""
        return ("speech", "text", "language")

    @classmethod
    def optional_data_names(cls, train: bool = True, inference: bool = False) -> tuple[str, ...]:
        """Names that a batch may have."""
        return ()

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> TrainedModel:
        """Load the backbone, put experts in and a router beside it, freeze what does not train.

        Raises:
            UserError: For unknown keys in any ``*_conf``, a router or experts of another base, and
                a router that reads above the layer from which experts act.
        """
        conf = build_options(
            backbone_choices.get_class(args.backbone), args.backbone_conf, "backbone_conf"
        )
        legal = {"label_smoothing"} | ({"replay"} if args.phase == "router" else set())
        if unknown := sorted(set(args.model_conf) - legal):
            raise ConfigError(f"model_conf: unknown key(s) {unknown}; legal keys: {sorted(legal)}")
        router_options = build_options(
            router_choices.get_class(args.router), args.router_conf, "router_conf"
        )
        expert_options = build_options(
            expert_choices.get_class(args.expert), args.expert_conf, "expert_conf"
        )
        # Defaults included, so that config.yaml and the log tell what was really used.
        args.backbone_conf = asdict(conf)
        device = torch.device("cuda" if args.ngpu > 0 else "cpu")
        args.precision = precision_for(args.precision, device)
        backbone = conf.build()
        args.base_digest = backbone.digest()
        args.expert_settings = {"experts": list(args.experts)}
        batching = ("batch_type", "batch_size", "batch_bins", "accum_grad", "num_iters_per_epoch")
        args.batching = ", ".join(f"{key} {getattr(args, key)}" for key in batching)
        experts = None
        if args.phase not in ("router", "finetune"):
            experts = model_building.build_experts(args, backbone, expert_options)
        router = router_options
        if args.phase in phases.ROUTED:
            router = model_building.build_router(args, backbone, router_options)
        specaug_class = specaug_choices.get_class(args.specaug)
        specaug = None if specaug_class is None else specaug_class(**args.specaug_conf)
        model = model_building.assemble(args, backbone, experts, router, specaug)
        phases.begin(args.phase, model)
        return model

    @classmethod
    def get_default_config(cls) -> dict[str, Any]:
        """What ``--print_config`` shows, without what is set elsewhere (and so refused)."""
        config: dict[str, Any] = super().get_default_config()
        for key in ("split_layer", "router"):  # expert_conf's first_layer; --router
            config["model_conf"].pop(key, None)
        return config

    @classmethod
    def build_optimizers(
        cls, args: argparse.Namespace, model: torch.nn.Module
    ) -> list[torch.optim.Optimizer]:
        """One optimiser over exactly what the phase trains; the router may have its own rate."""
        parameters: list[Any] = phases.require(args.phase, model)  # type: ignore[arg-type]
        if args.router_lr is not None:
            router: dict[str, Any] = {"params": phases.router_of(model), "lr": args.router_lr}  # type: ignore[arg-type]
            own = {id(p) for p in router["params"]}
            parameters = [{"params": [p for p in parameters if id(p) not in own]}, router]
        known = sorted(optim_classes)
        if args.optim not in optim_classes:
            raise ConfigError(f"--optim {args.optim} is unknown: choose one of {' '.join(known)}")
        try:
            return [optim_classes[args.optim](parameters, **args.optim_conf)]
        except TypeError as error:
            raise ConfigError(f"optim_conf {args.optim_conf}: {error}") from error


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
