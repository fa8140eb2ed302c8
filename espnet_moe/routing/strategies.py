"""Routing strategies: small objects from a router's logits to gates, a decision a row or frame."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from espnet_moe.errors import UserError
from espnet_moe.experts.gates import Gates
from espnet_moe.routing.families import family_of, load_families
from espnet_moe.routing.routers import restrict

STRATEGIES = ("hard", "soft", "threshold", "topk", "hierarchical", "fixed")
TRAINING_GATES = ("soft", "straight_through", "topk")


@dataclass(frozen=True)
class StrategyOptions:
    """Settings of the strategies; each reads its own.

    Attributes:
        threshold: ``threshold``: the highest posterior above which a decision is hard.
        k: ``topk``: experts that are mixed.
        tree: ``hierarchical``: YAML file of the family tree.
        expert: ``fixed``: the expert that takes everything.
        allowed: Experts that may be chosen; all of them where empty.
        temperature: ``soft``, ``threshold``, ``topk``: of the softmax that makes the weights of a
            mixture; below 1 the better expert gets more than its posterior. Who is best, and
            whether the router is sure, goes by the posteriors.
    """

    threshold: float = 0.8
    k: int = 2
    tree: str = ""
    expert: str = ""
    allowed: tuple[str, ...] = ()
    temperature: float = 1.0


class Strategy(ABC):
    """From logits to gates.

    Args:
        options: The settings.
        experts: Names of the experts in the order of the logits.
    """

    def __init__(self, options: StrategyOptions, experts: Sequence[str]) -> None:
        self.options = options
        self.experts = tuple(experts)

    def gates(self, logits: torch.Tensor) -> Gates:
        """Decide.

        Args:
            logits: ``(batch, experts)``, or ``(batch, frames, experts)``; minus infinity rules an
                expert out.

        Returns:
            Gates of the same shape, without gradient. Utterances that all go to one expert have
            ``hard`` set, and a batch that all goes to the same one has ``uniform`` set.
        """
        logits = logits.detach().float()
        if self.options.allowed:
            logits = restrict(logits, self.experts, self.options.allowed)
        return self.decide(logits)

    @abstractmethod
    def decide(self, logits: torch.Tensor) -> Gates:
        """Gates from logits that are restricted to the allowed experts."""


class Hard(Strategy):
    """The most probable expert."""

    def decide(self, logits: torch.Tensor) -> Gates:
        """One expert a row or frame."""
        return one_expert(logits.argmax(-1), logits.size(-1))


class Soft(Strategy):
    """All experts, each with its posterior as the weight."""

    def decide(self, logits: torch.Tensor) -> Gates:
        """The posteriors, at the mixture's temperature."""
        return Gates.of((logits / self.options.temperature).softmax(-1))


class Threshold(Strategy):
    """The most probable expert where the router is sure, else the best two."""

    def decide(self, logits: torch.Tensor) -> Gates:
        """One expert where its posterior exceeds the threshold, else the two best renormalised."""
        posteriors = logits.softmax(-1)
        highest, best = posteriors.max(-1, keepdim=True)
        sure = highest > self.options.threshold
        if bool(sure.all()):
            return one_expert(best.squeeze(-1), logits.size(-1))
        single = torch.zeros_like(posteriors).scatter_(-1, best, 1.0)
        mixture = keep_best((logits / self.options.temperature).softmax(-1), 2)
        return Gates.of(torch.where(sure, single, mixture))


class TopK(Strategy):
    """The ``k`` most probable experts, their posteriors renormalised."""

    def decide(self, logits: torch.Tensor) -> Gates:
        """Fewer than ``k`` where fewer are allowed."""
        posteriors = (logits / self.options.temperature).softmax(-1)
        return Gates.of(keep_best(posteriors, self.options.k))


class Hierarchical(Strategy):
    """The most probable family first, then the most probable expert in it.

    A family's posterior is the sum over its members.
    """

    def __init__(self, options: StrategyOptions, experts: Sequence[str]) -> None:
        super().__init__(options, experts)
        tree = load_families(options.tree)
        family = torch.tensor(family_of(tree, experts))
        self.related = family.unsqueeze(0) == family.unsqueeze(1)  # (experts, experts)
        self.sums = self.related.float()

    def decide(self, logits: torch.Tensor) -> Gates:
        """One expert a row or frame."""
        if self.sums.device != logits.device:
            self.related, self.sums = self.related.to(logits.device), self.sums.to(logits.device)
        posteriors = logits.softmax(-1)
        of_family = (posteriors @ self.sums).argmax(-1)  # the first of its experts
        inside = torch.where(self.related[of_family], posteriors, -1.0)  # (..., experts)
        return one_expert(inside.argmax(-1), logits.size(-1))


class Fixed(Strategy):
    """One expert for everything, whatever the router says."""

    def decide(self, logits: torch.Tensor) -> Gates:
        """The same expert for every row and frame."""
        number = self.experts.index(self.options.expert)
        chosen = torch.full(logits.shape[:-1], number, device=logits.device)
        return one_expert(chosen, logits.size(-1))


_KINDS: dict[str, Callable[[StrategyOptions, Sequence[str]], Strategy]] = {
    "hard": Hard,
    "soft": Soft,
    "threshold": Threshold,
    "topk": TopK,
    "hierarchical": Hierarchical,
    "fixed": Fixed,
}


def build_strategy(name: str, options: StrategyOptions, experts: Sequence[str]) -> Strategy:
    """Make a strategy, with everything checked before any work starts.

    Args:
        name: One of :data:`STRATEGIES`.
        options: The settings.
        experts: Names of the experts in the order of the logits.

    Raises:
        UserError: For an unknown strategy or expert, ``k`` that exceeds the number of experts, a
            threshold outside [0, 1], or a family tree without one of the experts; all at once.
    """
    if name not in _KINDS:
        raise UserError(f"strategy '{name}' is unknown: choose one of {', '.join(STRATEGIES)}")
    problems = []
    if unknown := sorted(set(options.allowed) - set(experts)):
        problems.append(f"allowed expert(s) {', '.join(unknown)} are unknown")
    if name == "threshold" and not 0 <= options.threshold <= 1:
        problems.append(f"threshold is {options.threshold}, but must be in [0, 1]")
    if not options.temperature > 0:
        problems.append(f"temperature is {options.temperature}, but must be above 0")
    if name == "topk" and not 1 <= options.k <= len(experts):
        problems.append(f"k is {options.k}, but must be in 1..{len(experts)}, the experts' number")
    if name == "hierarchical" and not options.tree:
        problems.append("tree is needed: the YAML file of the family tree")
    if name == "fixed":
        if options.expert not in experts:
            problems.append(f"expert '{options.expert}' is unknown")
        elif options.allowed and options.expert not in options.allowed:
            problems.append(f"expert '{options.expert}' is not among the allowed ones")
    if problems:
        experts_are = f"experts: {', '.join(experts)}"
        raise UserError(f"strategy {name}: {'; '.join(problems)}; {experts_are}")
    return _KINDS[name](options, experts)


def one_expert(chosen: torch.Tensor, num_experts: int) -> Gates:
    """Gates that give each row ``(batch,)`` or frame ``(batch, frames)`` one expert alone."""
    if chosen.dim() == 1:
        return Gates.one_hot(chosen.tolist(), num_experts, chosen.device)
    return Gates.of(F.one_hot(chosen, num_experts).float())


def keep_best(posteriors: torch.Tensor, k: int) -> torch.Tensor:
    """The ``k`` highest of ``(..., experts)``, renormalised; the others are exactly zero."""
    values, best = posteriors.topk(min(k, posteriors.size(-1)), dim=-1)
    values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(posteriors).scatter(-1, best, values)


def training_gates(
    logits: torch.Tensor,
    kind: str,
    k: int = 2,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Gates:
    """Gates through which the task loss reaches the router; every expert is computed.

    Args:
        logits: ``(batch, experts)`` or ``(batch, frames, experts)``.
        kind: ``soft``: the posteriors; ``straight_through``: the best expert alone, with the
            gradient of the posteriors (arXiv:1308.3432); ``topk``: the softmax over the ``k``
            highest logits (Shazeer et al. 2017, arXiv:1701.06538).
        k: Experts of ``topk``.
        noise: Standard deviation of the normal noise on the logits before the choice, so that
            experts near the top get their turn (as in Shazeer et al.; here not learnt).
        generator: Source of the noise, on the device of the logits; the global one if ``None``.

    Raises:
        UserError: For an unknown kind, a ``k`` outside the number of experts, negative noise.
    """
    num_experts = logits.size(-1)
    if kind not in TRAINING_GATES:
        raise UserError(f"gates '{kind}' are unknown: choose one of {', '.join(TRAINING_GATES)}")
    if kind == "topk" and not 1 <= k <= num_experts:
        raise UserError(f"k is {k}, but must be in 1..{num_experts}, the number of experts")
    if noise < 0:
        raise UserError(f"noise is {noise}, but must be at least 0")
    logits = logits.float()
    if noise > 0:
        draw = torch.randn(logits.shape, generator=generator, device=logits.device)
        logits = logits + noise * draw
    if kind == "soft":
        return Gates.of(logits.softmax(-1))
    if kind == "topk":
        values, best = logits.topk(k, dim=-1)
        return Gates.of(torch.zeros_like(logits).scatter(-1, best, values.softmax(-1)))
    posteriors = logits.softmax(-1)
    chosen = F.one_hot(posteriors.argmax(-1), num_experts).to(posteriors)
    # Exactly one-hot in value: what is added is zero and has the posteriors' gradient.
    return Gates.of(chosen + (posteriors - posteriors.detach()))
