"""From the options of a phase to its experts, its router, and the model around them."""

import argparse
import logging
from dataclasses import asdict
from typing import Any

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.config import ConfigError, build_options
from espnet_moe.experts.expert_files import load_experts
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.kinds import ExpertOptions
from espnet_moe.model import (
    AugmentOptions,
    ESPnetMoEModel,
    FineTunedModel,
    FinetuneOptions,
    JointModel,
    JointOptions,
    RouterModel,
    TrainedModel,
)
from espnet_moe.routing.router_files import load_router
from espnet_moe.routing.routers import Router, RouterOptions


def build_experts(
    args: argparse.Namespace, backbone: Backbone, options: ExpertOptions
) -> ExpertSet:
    """New experts, or those of ``--init_experts`` in the order of ``--experts``.

    Raises:
        ExpertError: For targets that match nothing, and experts of another base.
    """
    if args.init_experts:
        experts = load_experts(backbone, {n: args.init_experts[n] for n in args.experts})
        args.expert_settings["options"] = {
            name: _as_lists(asdict(own)) for name, own in experts.options.items()
        }
        logging.info("experts start from %s", args.init_experts)
        dropouts = {n: own.dropout for n, own in experts.options.items() if hasattr(own, "dropout")}
        if len(set(dropouts.values())) > 1:
            logging.warning(
                "experts trained with different dropouts, %s: here all have that of the first",
                ", ".join(f"{name} {value}" for name, value in dropouts.items()),
            )
    else:
        experts = ExpertSet(backbone, options, args.experts)
        args.expert_conf = _as_lists(asdict(options))
        args.expert_settings |= args.expert_conf
    logging.info("experts %s in %d layers", " ".join(experts.names), len(experts.layers))
    return experts


def build_router(args: argparse.Namespace, backbone: Backbone, options: RouterOptions) -> Router:
    """A new router, or that of ``--init_router``.

    Raises:
        UserError: For options that cannot be used, and a router of another base.
    """
    if not 0 <= options.layer <= backbone.num_encoder_layers:
        raise ConfigError(
            f"router_conf: layer {options.layer} is not in 0..{backbone.num_encoder_layers}, "
            "the encoder layers of this backbone"
        )
    if args.init_router:
        router = load_router(args.init_router, args.base_digest)
        logging.info("the router starts from %s", args.init_router)
    else:
        router = Router(options, backbone.dim, args.experts, args.languages)
    args.router_conf = _as_lists(asdict(options))
    args.expert_settings |= {
        "phase": args.phase,
        "languages": list(args.languages),
        "router": args.router,
        "router_conf": args.router_conf,
    }
    return router


def assemble(
    args: argparse.Namespace,
    backbone: Backbone,
    experts: ExpertSet | None,
    router: Any,
    specaug: Any,
) -> TrainedModel:
    """The model of the phase.

    Args:
        args: ``phase``, ``precision``, ``model_conf`` and the phase's own options, to which the
            defaults are added.
        backbone: With the experts inside.
        experts: ``None`` in phases router and finetune.
        router: A network, in phase expert the oracle.
        specaug: ESPnet's SpecAugment, or ``None``.
    """
    common = {"specaug": specaug, "precision": args.precision, **args.model_conf}
    if args.phase == "router":
        augment = build_options(AugmentOptions, args.augment_conf, "augment_conf")
        args.augment_conf = _as_lists(asdict(augment))
        return RouterModel(backbone, router, augment=augment, **common)
    common["gradient_checkpointing"] = args.gradient_checkpointing
    if args.phase == "finetune":
        finetune = build_options(FinetuneOptions, args.finetune_conf, "finetune_conf")
        args.finetune_conf = asdict(finetune)
        args.expert_settings["finetune_conf"] = args.finetune_conf
        return FineTunedModel(backbone, finetune, **common)
    assert experts is not None
    if args.phase == "joint":
        joint = build_options(JointOptions, args.joint_conf, "joint_conf")
        args.joint_conf = asdict(joint)
        args.expert_settings["joint_conf"] = args.joint_conf
        return JointModel(backbone, experts, router, joint=joint, **common)
    first_layer = experts.options[experts.names[0]].first_layer
    return ESPnetMoEModel(backbone, experts, router, split_layer=first_layer, **common)


def _as_lists(options: dict[str, Any]) -> dict[str, Any]:
    """Options as YAML and JSON write them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}
