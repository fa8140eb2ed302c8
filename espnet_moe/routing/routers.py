"""Routers: small networks from encoder frames to logits over experts and languages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from espnet_moe.errors import UserError
from espnet_moe.routing.calibration import Calibration
from espnet_moe.routing.networks import NETWORKS, RouterOptions, network_of
from espnet_moe.routing.pooling import valid_frames

__all__ = ["NETWORKS", "Routed", "Router", "RouterOptions", "restrict"]


@dataclass
class Routed:
    """What a router says of a batch.

    Attributes:
        experts: Logits ``(batch, experts)``, or ``(batch, frames, experts)`` at frame level.
        languages: Logits ``(batch, languages)`` or ``(batch, frames, languages)``; the same tensor
            as ``experts`` where the experts are the languages.
        lengths: ``(batch,)`` valid frames at frame level, else ``None``.
    """

    experts: torch.Tensor
    languages: torch.Tensor
    lengths: torch.Tensor | None = None


class Router(nn.Module):
    """A network over frozen encoder frames, with a head for experts and one for languages.

    Where the experts are the languages there is one head. The frames are detached and taken in
    single precision: nothing below the router gets a gradient from it.

    Args:
        options: Options of one of :data:`NETWORKS`.
        dim: Width of the encoder frames.
        experts: Names of the experts in the order of the gates.
        languages: Language codes in the order of the language logits.

    Raises:
        UserError: For options that cannot be used, empty or repeated names; all named at once.
    """

    def __init__(
        self, options: RouterOptions, dim: int, experts: Sequence[str], languages: Sequence[str]
    ) -> None:
        super().__init__()
        problems = [f"dim is {dim}, but must be at least 1"] if dim < 1 else []
        problems += _name_problems("experts", experts) + _name_problems("languages", languages)
        problems += options.problems()
        if problems:
            raise UserError(f"router {network_of(options)}: {'; '.join(problems)}")
        self.options = options
        self.network = network_of(options)
        self.dim = dim
        self.experts = tuple(experts)
        self.languages = tuple(languages)
        self.trunk = options.build(dim)
        width = int(self.trunk.out_dim)  # type: ignore[arg-type]
        self.expert_head = nn.Linear(width, len(self.experts))
        self.language_head = (
            None if self.experts == self.languages else nn.Linear(width, len(self.languages))
        )
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("language_temperature", torch.tensor(1.0))
        self.temperature: torch.Tensor
        self.language_temperature: torch.Tensor

    @property
    def layer(self) -> int:
        """The encoder layer that the router reads."""
        return self.options.layer

    def set_temperatures(self, experts: float = 1.0, languages: float = 1.0) -> None:
        """Set what the heads' logits are divided by; a single head follows ``experts``."""
        self.temperature.fill_(experts)
        self.language_temperature.fill_(experts if self.language_head is None else languages)

    @torch.no_grad()
    def calibrate(self, experts: Calibration, languages: Calibration) -> None:
        """Set temperatures, and add biases to those that the heads have learnt.

        Args:
            experts: Fitted to the expert head's logits at temperature 1.
            languages: To the language head's; unused where one head serves both.
        """
        self.set_temperatures(experts.temperature, languages.temperature)
        heads = [(self.expert_head, experts)]
        heads += [] if self.language_head is None else [(self.language_head, languages)]
        for head, own in heads:
            head.bias.add_(own.bias.to(head.bias), alpha=own.temperature)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> Routed:
        """Route a batch; a row's logits do not depend on how far it was padded.

        Args:
            frames: ``(batch, frames, dim)`` from encoder layer :attr:`layer`.
            lengths: ``(batch,)`` valid frames.

        Returns:
            Logits in float32, divided by the head's temperature in evaluation mode. At frame level
            those behind a row's end mean nothing.

        Raises:
            UserError: For frames of another width.
        """
        if frames.size(-1) != self.dim:
            raise UserError(
                f"the router takes frames {self.dim} wide, but these are {frames.size(-1)} wide: "
                "use it with the backbone that it was trained on"
            )
        frames = frames.detach()
        if torch.is_grad_enabled():
            # Padding may hold anything. Networks keep it out of their results, but what is not
            # finite stays so in gradients. (A sixth of a cheap router's time on a CPU.)
            outside = ~valid_frames(lengths, frames.size(1)).unsqueeze(2)  # (batch, frames, 1)
            frames = frames.masked_fill(outside, 0.0)
        with torch.autocast(frames.device.type, enabled=False):
            hidden = self.trunk(frames.float(), lengths.clamp(min=1))
            experts = self._scale(self.expert_head(hidden), self.temperature)
            languages = experts
            if self.language_head is not None:
                languages = self._scale(self.language_head(hidden), self.language_temperature)
        return Routed(experts, languages, lengths if self.options.level == "frame" else None)

    def _scale(self, logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        return logits if self.training else logits / temperature


def restrict(logits: torch.Tensor, names: Sequence[str], allowed: Sequence[str]) -> torch.Tensor:
    """Rule out all but some candidates.

    Args:
        logits: ``(..., candidates)``.
        names: What the candidates are called, in their order.
        allowed: Those that stay.

    Returns:
        A copy with minus infinity for the others, of which a softmax makes exactly zero.

    Raises:
        UserError: Where nothing is allowed, or an unknown name.
    """
    legal = f"legal names: {', '.join(names)}"
    if not allowed:
        raise UserError(f"the list of allowed names is empty; {legal}")
    if unknown := sorted(set(allowed) - set(names)):
        raise UserError(f"allowed name(s) {', '.join(unknown)} are unknown; {legal}")
    ruled_out = torch.tensor([name not in allowed for name in names], device=logits.device)
    return logits.masked_fill(ruled_out, float("-inf"))


def _name_problems(what: str, names: Sequence[str]) -> list[str]:
    """What is wrong with a list of names."""
    if not names:
        return [f"no {what} are given"]
    problems = [f"{what} hold an empty name"] if any(not name.strip() for name in names) else []
    if repeated := sorted({name for name in names if list(names).count(name) > 1}):
        problems.append(f"{what} name {', '.join(repeated)} twice")
    return problems
