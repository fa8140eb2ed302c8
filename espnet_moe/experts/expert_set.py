"""Putting experts into a backbone: wrap layers by name, freeze the rest, give rows their gates."""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn

from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.experts.kinds import ExpertError, ExpertLayer, ExpertOptions
from espnet_moe.experts.lora import LoRAOptions

__all__ = ["ExpertError", "ExpertHost", "ExpertSet", "LoRAOptions", "find_targets"]


class ExpertHost(Protocol):
    """What a backbone tells so that experts can be put into it."""

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Targets where the options name none."""

    @property
    def network(self) -> nn.Module:
        """The model whose module names are the experts' target names."""

    def layer_of(self, name: str) -> tuple[str, int] | None:
        """Part (``encoder``, ``decoder``) and number of the layer that a module is in."""


def find_targets(host: ExpertHost, options: ExpertOptions) -> list[str]:
    """Names of the linear layers that the options choose.

    Raises:
        ExpertError: Where a target matches nothing; the message lists what exists.
    """
    linear = [n for n, m in host.network.named_modules() if isinstance(m, nn.Linear | ExpertLayer)]
    linear = [n for n in linear if not n.endswith(".base") and host.layer_of(n) is not None]
    chosen, unmatched = set(), []
    for target in options.targets or host.default_targets:
        hits = [n for n in linear if _matches(target, n)]
        chosen.update(hits)
        if not hits:
            unmatched.append(target)
    if unmatched:
        known = sorted({_short(n) for n in linear})
        raise ExpertError(
            f"no linear layer is named {', '.join(unmatched)}; targets of this backbone: "
            f"{' '.join(known)} (or all-linear, or a regular expression for a whole name, like "
            f"{linear[0]})"
        )
    return [n for n in linear if n in chosen and _is_inside(host, n, options)]


def _short(name: str) -> str:
    """The last part of a name; of a numbered module (in a Sequential) the last two."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _matches(target: str, name: str) -> bool:
    if target == "all-linear":
        return True
    if "." in target:
        if name.endswith(f".{target}"):
            return True
        try:
            return re.fullmatch(target, name) is not None
        except re.error as error:
            raise ExpertError(f"target '{target}' is no regular expression: {error}") from error
    return name.rsplit(".", 1)[-1] == target


def _is_inside(host: ExpertHost, name: str, options: ExpertOptions) -> bool:
    place = host.layer_of(name)
    if place is None:
        return False
    part, layer = place
    if options.where not in ("both", part):
        return False
    return part == "decoder" or layer >= options.first_layer


class ExpertSet:
    """The experts inside one backbone: their names, layers, and the way to use them.

    Not a module: the parameters live in the layers, so that they follow the backbone's ``to()`` and
    ``state_dict()``.

    Args:
        host: The backbone; its chosen layers are replaced by those of the experts' kind
            (:class:`LoRALinear`), its own parameters are frozen.
        options: Which layers, and how large; one for all experts or one an expert (of one kind and
            in the same layers).
        names: The experts, in the order of the gates.
    """

    def __init__(
        self,
        host: ExpertHost,
        options: ExpertOptions | Mapping[str, ExpertOptions],
        names: Sequence[str],
    ) -> None:
        self.names = tuple(names)
        if not self.names or len(set(self.names)) < len(self.names):
            raise ExpertError(f"experts need names, each once; these are: {', '.join(self.names)}")
        if not isinstance(options, Mapping):
            options = dict.fromkeys(self.names, options)
        # What was left to the backbone is named from here on: in the files of an expert, too.
        self.options = {
            name: replace(own, targets=own.targets or host.default_targets)
            for name, own in ((name, options[name]) for name in self.names)
        }
        self._require_same_layers()
        first = self.options[self.names[0]]
        targets = find_targets(host, first)
        # One layer of another set is enough: gates are for all of them.
        for name, module in host.network.named_modules():
            if isinstance(module, ExpertLayer):
                raise ExpertError(f"{name} holds experts already: a backbone takes one expert set")
        host.network.requires_grad_(False)
        self.layers: dict[str, ExpertLayer] = {}
        for name in targets:
            parent_name, _, leaf = name.rpartition(".")
            parent = host.network.get_submodule(parent_name)
            base = getattr(parent, leaf)
            layer = first.layer(base, list(self.options.values()))
            setattr(parent, leaf, layer)
            self.layers[name] = layer
        if not self.layers:
            raise ExpertError(
                f"no layer is left: targets {' '.join(first.targets)}, where {first.where}, "
                f"first_layer {first.first_layer}"
            )
        places = [place for name in self.layers if (place := host.layer_of(name)) is not None]
        numbers = [number for part, number in places if part == "encoder"]
        #: The first encoder layer with an expert; ``None`` where only the decoder has any.
        self.lowest_encoder_layer = min(numbers, default=None)

    def remove(self, host: ExpertHost) -> None:
        """Take the experts out of their backbone: its own layers come back."""
        for name, layer in self.layers.items():
            parent_name, _, leaf = name.rpartition(".")
            setattr(host.network.get_submodule(parent_name), leaf, layer.base)

    def merge(self, host: ExpertHost, name: str) -> None:
        """Leave one expert in the backbone for good: plain layers take the place of all experts.

        Args:
            host: The backbone that these experts are in. Its base weights stay as they are; layers
                with experts get weights of their own.
            name: Which expert.
        """
        e = self.index(name)
        self._replace(host, lambda layer: layer.merged(e))

    def merge_mixture(self, host: ExpertHost, weights: torch.Tensor) -> None:
        """Leave one mixture in the backbone for good, as :meth:`merge` leaves one expert.

        Gates that stay the same for many decoder steps, of one utterance and its beams, then cost
        nothing a step; the merging itself costs about as much as some tens of steps save.

        Args:
            host: The backbone that these experts are in.
            weights: ``(experts,)``, of the same mixture for everything that is decoded.

        Raises:
            ExpertError: For weights of another number of experts, and for a kind that cannot.
        """
        if weights.shape != (len(self),):
            raise ExpertError(
                f"a mixture of {len(self)} experts has as many weights, these have the shape "
                f"{tuple(weights.shape)}"
            )
        self._replace(host, lambda layer: layer.merged_mixture(weights))

    def _replace(self, host: ExpertHost, plain: Callable[[ExpertLayer], nn.Linear]) -> None:
        made = {name: plain(layer) for name, layer in self.layers.items()}
        for layer_name, layer in made.items():
            parent_name, _, leaf = layer_name.rpartition(".")
            setattr(host.network.get_submodule(parent_name), leaf, layer)

    def _require_same_layers(self) -> None:
        def place(o: ExpertOptions) -> tuple[object, ...]:
            return type(o), o.targets, o.where, o.first_layer

        first = place(self.options[self.names[0]])
        other = [n for n, o in self.options.items() if place(o) != first]
        if other:
            raise ExpertError(
                f"experts of one set act in the same layers, but {', '.join(other)} "
                f"differ from {self.names[0]} in kind, targets, where or first_layer"
            )

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Position of an expert in the gates.

        Raises:
            ExpertError: For an unknown name; the message lists what exists.
        """
        if name not in self.names:
            raise ExpertError(f"there is no expert '{name}'; experts: {' '.join(self.names)}")
        return self.names.index(name)

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of all experts."""
        return [p for layer in self.layers.values() for p in layer.expert_parameters()]

    def one_hot(self, names: Sequence[str], device: torch.device) -> Gates:
        """Gates that give row ``i`` the expert ``names[i]``."""
        return Gates.one_hot([self.index(n) for n in names], len(self), device)

    def use(self, gates: Gates | None) -> AbstractContextManager[None]:
        """Put gates in force: ``with experts.use(gates): backbone…``."""
        return use_gates(gates)

    def without(self, gates: Gates, layers: Collection[str]) -> Gates:
        """The same gates with all experts switched off in some layers: ablation, no retraining.

        Args:
            gates: What acts in the other layers; gates an utterance.
            layers: Names of expert layers, of :attr:`layers`.

        Raises:
            ExpertError: For a name that is none (the message lists some that are), and for gates a
                frame: decoding mixes these anew at every step, and all layers would be on again.
        """
        if gates.weights.dim() == 3:
            raise ExpertError("experts are switched off with gates an utterance, not a frame")
        if unknown := sorted(set(layers) - self.layers.keys()):
            raise ExpertError(
                f"no expert layer is called {', '.join(unknown)}; there are {len(self.layers)}, "
                f"such as {next(iter(self.layers))}"
            )
        return replace(gates, off=gates.off | {self.layers[name] for name in layers})

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """An expert's tensors by ``<layer>.<name>``, such as ``….q_proj.lora_A (rank, in)``."""
        return {key: view.detach().clone() for key, view in self._views(name).items()}

    def _views(self, name: str) -> dict[str, torch.Tensor]:
        e = self.index(name)
        return {
            f"{layer_name}.{key}": view
            for layer_name, layer in self.layers.items()
            for key, view in layer.tensors(e).items()
        }

    @torch.no_grad()
    def load_state(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Copy an expert's tensors in.

        Raises:
            ExpertError: For missing, unexpected or misshapen tensors; nothing is changed then.
        """
        wanted = self._views(name)
        problems = []
        if missing := sorted(wanted.keys() - state.keys()):
            problems.append(f"{len(missing)} tensors are missing, e.g. {missing[0]}")
        if extra := sorted(state.keys() - wanted.keys()):
            problems.append(f"{len(extra)} tensors have no place here, e.g. {extra[0]}")
        for key in sorted(wanted.keys() & state.keys()):
            if wanted[key].shape != state[key].shape:
                was, here = tuple(state[key].shape), tuple(wanted[key].shape)
                problems.append(f"{key} has the shape {was}, here it is {here}")
                break
        if problems:
            raise ExpertError(f"expert '{name}' does not fit: " + "; ".join(problems))
        for key, view in wanted.items():
            view.copy_(state[key])
        logging.debug("expert %s: %d tensors", name, len(wanted))
