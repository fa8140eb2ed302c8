"""What trains when: a phase declares its parameters, and anything else trainable is an error."""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import nn

from espnet_moe.config import ConfigError
from espnet_moe.experts.expert_set import ExpertSet


class PhasedModel(Protocol):
    """What a phase needs of a model."""

    experts: ExpertSet | None
    router: Any

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All parameters by name."""


def experts_of(model: PhasedModel) -> list[nn.Parameter]:
    """Parameters of all experts."""
    return [] if model.experts is None else model.experts.parameters()


def router_of(model: PhasedModel) -> list[nn.Parameter]:
    """Parameters of the router; the oracle has none."""
    return list(model.router.parameters()) if isinstance(model.router, nn.Module) else []


def _joint(model: PhasedModel) -> list[nn.Parameter]:
    return experts_of(model) + router_of(model)


def finetuned_of(model: PhasedModel) -> list[nn.Parameter]:
    """Parameters of the base that are trained as a whole."""
    found: list[nn.Parameter] = getattr(model, "finetuned", [])
    return found


PHASES: dict[str, Callable[[PhasedModel], list[nn.Parameter]]] = {
    "router": router_of,
    "expert": experts_of,
    "joint": _joint,
    "finetune": finetuned_of,
}
ROUTED = ("router", "joint")  # phases in which it matters which expert an utterance belongs to


def begin(phase: str, model: PhasedModel) -> None:
    """Make exactly the phase's parameters trainable.

    Raises:
        ConfigError: For an unknown phase.
    """
    if phase not in PHASES:
        raise ConfigError(f"phase '{phase}' is unknown: choose one of {', '.join(PHASES)}")
    for _, parameter in model.named_parameters():
        parameter.requires_grad_(False)
    for parameter in PHASES[phase](model):
        parameter.requires_grad_(True)


def require(phase: str, model: PhasedModel) -> list[nn.Parameter]:
    """Check that exactly the phase's parameters are trainable, and log how many there are.

    Returns:
        The trainable parameters, for the optimiser.

    Raises:
        ConfigError: Where another parameter is trainable, or one of the phase's is frozen.
    """
    wanted = {id(p) for p in PHASES[phase](model)}
    named = list(model.named_parameters())
    strangers = [n for n, p in named if p.requires_grad and id(p) not in wanted]
    frozen = [n for n, p in named if not p.requires_grad and id(p) in wanted]
    if strangers or frozen:
        what = [f"trainable but not of this phase: {n}" for n in strangers[:5]]
        what += [f"of this phase but frozen: {n}" for n in frozen[:5]]
        raise ConfigError(
            f"phase '{phase}' trains exactly its own parameters, but {len(strangers)} others are "
            f"trainable and {len(frozen)} of its own are frozen ({'; '.join(what)}); "
            "look at freeze_param and at code that sets requires_grad"
        )
    trainable = sum(p.numel() for _, p in named if p.requires_grad)
    total = sum(p.numel() for _, p in named)
    logging.info(
        "phase %s: %d of %d parameters are trainable (%.3f %%)",
        phase,
        trainable,
        total,
        100 * trainable / total,
    )
    return [p for _, p in named if p.requires_grad]
