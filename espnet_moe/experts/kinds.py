"""What a kind of experts is: options that say where it acts, and a layer that holds all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espnet_moe import extensions
from espnet_moe.errors import UserError
from espnet_moe.experts.gates import current_gates
from espnet_moe.linear import FewRowsLinear


class ExpertError(UserError):
    """An expert that cannot be made, loaded or used here."""


class ExpertLayer(nn.Module):
    """A frozen linear layer with what all experts of a kind add to it.

    A kind's ``forward`` adds it as :meth:`gate_weights` says; without gates it is ``base`` to the
    bit. All parameters beside those of ``base``, which are never written, are the experts'.

    Args:
        base: The layer to wrap; kept as it is and frozen.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        base.requires_grad_(False)

    @property
    def in_features(self) -> int:
        """Size of the input."""
        return self.base.in_features

    @property
    def out_features(self) -> int:
        """Size of the output."""
        return self.base.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The base weight ``(out, in)``, as callers of the wrapped layer expect it."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base bias ``(out,)``."""
        return self.base.bias

    def expert_parameters(self) -> list[nn.Parameter]:
        """The parameters of all experts."""
        return [p for name, p in self.named_parameters() if not name.startswith("base.")]

    def tensors(self, expert: int) -> dict[str, torch.Tensor]:
        """Views of an expert's tensors by name: what is saved, and what is loaded into."""
        raise NotImplementedError

    def merged(self, expert: int) -> nn.Linear:
        """A plain layer that does what the base does with one expert, in single precision."""
        raise NotImplementedError

    def merged_mixture(self, weights: torch.Tensor) -> nn.Linear:
        """The same for a mixture of experts, ``weights (experts,)``, where a kind allows it.

        Raises:
            ExpertError: For a kind whose mixtures are no linear layers.
        """
        raise ExpertError(f"mixtures of {type(self).__name__} cannot be merged into one layer")

    def gate_weights(self, x: torch.Tensor) -> torch.Tensor | None:
        """How much of each expert the gates in force give to ``x (batch, frames, in)``.

        Returns:
            ``(batch, 1, experts)`` or ``(batch, frames, experts)``, of one row where all have the
            same; ``None`` where no expert acts here.

        Raises:
            ValueError: Where the gates are those of another batch.
        """
        gates = current_gates()
        if gates is None or self in gates.off:
            return None
        weights = gates.weights
        if gates.uniform is not None:
            weights = weights[:1]
        elif weights.size(0) != x.size(0):
            # Broadcasting would give every row the experts of one.
            raise ValueError(f"gates of {weights.size(0)} rows for a batch of {x.size(0)}")
        return weights if weights.dim() == 3 else weights.unsqueeze(1)

    def plain(self, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
        """A frozen linear layer of this size, with these values."""
        kind = FewRowsLinear if isinstance(self.base, FewRowsLinear) else nn.Linear
        found = kind(self.in_features, self.out_features, bias is not None, device="meta")
        found.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            found.bias = nn.Parameter(bias, requires_grad=False)
        return found


def names_of_experts(network: nn.Module) -> set[str]:
    """Names, in a network's state dict, of what its expert layers hold beside their base."""
    return {
        f"{name}.{key}"
        for name, module in network.named_modules()
        if isinstance(module, ExpertLayer)
        for key in module.state_dict()
        if not key.startswith("base.")
    }


@dataclass(frozen=True)
class ExpertOptions:
    r"""Which layers get experts; a kind adds what it needs, and :meth:`layer`.

    Attributes:
        targets: Names of linear layers: the last part of the module name (``q_proj``) or, with
            dots, its last parts (``cgmlp.channel_proj2``) or a regular expression for the whole
            (``.*encoder_attn\.k_proj``); ``all-linear`` for every one in a layer. None: the
            backbone's default, the attentions' queries and values.
        where: ``encoder``, ``decoder`` or ``both``.
        first_layer: Encoder layer ``k`` from which on experts act; the router reads below it.
    """

    targets: tuple[str, ...] = ()
    where: str = "both"
    first_layer: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        if wrong := self.problems():
            raise ExpertError("; ".join(wrong))

    def problems(self) -> list[str]:
        """What is wrong with the values, empty where nothing is."""
        wrong = []
        if self.where not in ("encoder", "decoder", "both"):
            wrong.append(f"where is encoder, decoder or both, not '{self.where}'")
        if self.first_layer < 0:
            wrong.append(f"first_layer is 0 or more, not {self.first_layer}")
        return wrong

    @classmethod
    def layer(cls, base: nn.Linear, each: Sequence[Any]) -> ExpertLayer:
        """The layer that takes the place of ``base``, with an expert for each of the options."""
        raise NotImplementedError

    def peft_config(self) -> dict[str, Any]:
        """What PEFT is told in ``adapter_config.json``; it takes the kinds that it knows."""
        return {"peft_type": kind_of(self).upper()}


# Filled where the kinds are: `KINDS["lora"] = LoRAOptions`.
KINDS: dict[str, type[ExpertOptions]] = {}


def known_kinds() -> Mapping[str, type[ExpertOptions]]:
    """All kinds of experts, extensions' among them."""
    extensions.load()
    return KINDS


def kind_of(options: ExpertOptions) -> str:
    """Name of the kind that options belong to.

    Raises:
        ExpertError: For options of no kind.
    """
    for name, kind in KINDS.items():
        if type(options) is kind:
            return name
    raise ExpertError(
        f"{type(options).__name__} are options of no kind of experts; there are {', '.join(KINDS)}"
    )
