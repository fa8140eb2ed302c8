"""A LoRA adapter from elsewhere, layer by layer, and the expert that does the same."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.experts.expert_files import save_expert
from espnet_moe.experts.expert_set import (
    ExpertError,
    ExpertSet,
    LoRAOptions,
    find_targets,
)


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one linear layer: ``scale · B A``.

    Attributes:
        down: ``A (rank, in)``.
        up: ``B (out, rank)``.
        scale: Factor.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Of the update."""
        return self.down.size(0)


def write_expert(
    updates: Mapping[str, Update],
    backbone: Backbone,
    folder: str | Path,
    name: str,
    facts: Mapping[str, Any],
) -> None:
    """Write an adapter as an expert of a backbone.

    Experts have one rank and one scale. Where an adapter's layers differ, the smaller ones get rows
    and columns of zeros, and each scale goes into its ``B``: the product is the same.

    Args:
        updates: By the name of the layer in the backbone's network.
        backbone: That the adapter was trained on; it has no experts, and is as before afterwards.
        folder: Where to.
        name: What the expert is called.
        facts: What else its manifest tells.

    Raises:
        ExpertError: For updates that have no place in this backbone, or do not fit there.
    """
    _require_fit(updates, backbone)
    rank = max(update.rank for update in updates.values())
    alone = {(update.rank, update.scale) for update in updates.values()}
    scale = next(iter(alone))[1] if len(alone) == 1 else 1.0
    options = _options(backbone, updates, rank, scale * rank)
    experts = ExpertSet(backbone, options, [name])
    try:
        state = {}
        for layer, update in updates.items():
            down, up = torch.zeros(rank, update.down.size(1)), torch.zeros(update.up.size(0), rank)
            down[: update.rank] = update.down
            up[:, : update.rank] = update.up.float() * (update.scale / scale)
            state[f"{layer}.lora_A"], state[f"{layer}.lora_B"] = down, up
        experts.load_state(name, state)
        told = {"tokenizer_digest": backbone.tokens.digest(), **facts}
        save_expert(folder, experts, name, backbone.digest(), told)
    finally:
        experts.remove(backbone)


def _require_fit(updates: Mapping[str, Update], backbone: Backbone) -> None:
    if not updates:
        raise ExpertError("the adapter holds no LoRA weights")
    modules = dict(backbone.network.named_modules())
    problems = []
    for name, update in updates.items():
        layer = modules.get(name)
        if not isinstance(layer, nn.Linear) or backbone.layer_of(name) is None:
            problems.append(f"{name} is no linear layer of its encoder or decoder")
        elif (layer.out_features, layer.in_features) != (update.up.size(0), update.down.size(1)):
            was = f"{update.up.size(0)} × {update.down.size(1)}"
            problems.append(f"{name} is {layer.out_features} × {layer.in_features}, not {was}")
    if problems:
        rest = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ExpertError(
            f"the adapter does not fit this backbone: {'; '.join(problems[:3])}{rest}"
        )


def _options(
    backbone: Backbone, layers: Mapping[str, Update], rank: int, alpha: float
) -> LoRAOptions:
    """Options that choose exactly these layers, in as few words as they take.

    Experts of one set say alike where they act: those that are found by kind of layer can be mixed
    with experts that were trained here.
    """
    kinds = sorted({name.rsplit(".", 1)[-1] for name in layers})
    if set(kinds) == set(backbone.default_targets):
        kinds = list(backbone.default_targets)
    places = [place for name in layers if (place := backbone.layer_of(name)) is not None]
    parts = {part for part, _ in places}
    where = "both" if len(parts) == 2 else parts.pop()
    lowest = min((number for part, number in places if part == "encoder"), default=0)
    for targets in (("all-linear",), tuple(kinds)):
        for first in (0, lowest):
            options = LoRAOptions(targets, where, first, rank, alpha)
            if set(_found(backbone, options)) == set(layers):
                return options
    return LoRAOptions(tuple(re.escape(name) for name in sorted(layers)), rank=rank, alpha=alpha)


def _found(backbone: Backbone, options: LoRAOptions) -> list[str]:
    try:
        return find_targets(backbone, options)
    except ExpertError:
        return []  # a kind of layer that is called by a number has no name of its own
