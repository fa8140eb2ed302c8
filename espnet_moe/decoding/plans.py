"""Which experts and which prompt language an utterance gets, system by system.

A plan is chosen once from the system's name. It either knows the route beforehand (baseline,
oracle) or reads the encoder's layer ``k`` and decides by a router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch

from espnet_moe.config import ConfigError
from espnet_moe.decoding.routing import Route, RoutingOptions, Truth, frame_mean
from espnet_moe.experts.gates import Gates
from espnet_moe.routing.families import is_of_experts, load_families
from espnet_moe.routing.oracle import OracleRouter, membership_gates
from espnet_moe.routing.pooling import FRAME_SAMPLES, SAMPLE_RATE, hold_last, valid_frames
from espnet_moe.routing.routers import Routed, Router, restrict
from espnet_moe.routing.smoothing import smooth, viterbi
from espnet_moe.routing.strategies import STRATEGIES, Strategy, StrategyOptions, build_strategy

SYSTEMS = ("baseline", "oracle", *STRATEGIES, "frame", "segment")


class Plan(Protocol):
    """Where the route of a batch comes from."""

    router: Router | None
    cuts: bool

    def known(self, truth: Truth, device: torch.device) -> Route:
        """The route, where it needs no look at the encoder (``router`` is ``None``)."""

    def decide(self, frames: torch.Tensor, lengths: torch.Tensor) -> Route:
        """The route from frames ``(batch, frames, dim)`` of the router's layer."""


class KnownPlan:
    """Baseline, oracle, or one fixed expert: the route is known beforehand.

    Args:
        experts: Names of the experts in the order of the gates; none for the baseline.
        expert: The one that takes everything, whose name is also the prompt's language.
    """

    router: Router | None = None
    cuts = False

    def __init__(self, experts: Sequence[str], expert: str = "") -> None:
        self.experts, self.expert = tuple(experts), expert

    def known(self, truth: Truth, device: torch.device) -> Route:
        """True languages, true experts; or the fixed one."""
        languages = list(truth.languages)
        if not self.experts:
            return Route(None, languages)
        if self.expert:
            languages = [self.expert] * len(languages)
        if truth.memberships is not None and not self.expert:
            gates = membership_gates(truth.memberships, self.experts, device)
        else:
            gates = OracleRouter().gates(languages, self.experts, device)
        return Route(gates, languages, expert_names=self.experts)

    def decide(self, frames: torch.Tensor, lengths: torch.Tensor) -> Route:
        """Never asked."""
        raise ConfigError("this system has no router")


class UtterancePlan:
    """A decision a row, by a strategy; a frame router's posteriors are averaged over the row.

    Args:
        system: One of ``STRATEGIES``.
        router: In evaluation mode.
        options: The strategy's and the allowed languages.
        tokens_for: Languages that the backbone can be prompted with.
    """

    cuts = False

    def __init__(
        self, system: str, router: Router, options: RoutingOptions, tokens_for: Sequence[str]
    ) -> None:
        self.router: Router | None = router
        self.allowed = options.allowed
        self.same = router.experts == router.languages
        settings = StrategyOptions(
            options.threshold,
            options.k,
            options.tree,
            options.expert,
            options.allowed if self.same else (),
            options.temperature,
        )
        # The prompt says the language of the one expert that was chosen, where there is one. Where
        # experts are clusters, a tree of languages chooses the prompt beside the best cluster.
        self.by_gates = self.same and system == "hierarchical"
        self.prompts: Strategy | None = None
        if system == "hierarchical" and options.tree and not self.same:
            tree = load_families(options.tree)
            if not is_of_experts(tree, router.experts, router.languages):
                own = replace(settings, allowed=options.allowed)
                self.prompts, system = build_strategy(system, own, router.languages), "hard"
        self.strategy = build_strategy(system, settings, router.experts)
        self.language = options.expert if system == "fixed" else ""
        if self.language not in tokens_for:
            self.language = ""
        _require_languages(router, options.allowed, tokens_for)

    def known(self, truth: Truth, device: torch.device) -> Route:
        """Never asked."""
        raise ConfigError("this system's router decides")

    def decide(self, frames: torch.Tensor, lengths: torch.Tensor) -> Route:
        """One look at the batch."""
        assert self.router is not None
        routed = self.router(frames, lengths)
        experts, languages = _allow(routed, self.router, self.allowed)
        if routed.lengths is not None:
            mean = frame_mean(experts.softmax(-1), lengths).log()
            languages = mean if self.same else frame_mean(languages.softmax(-1), lengths).log()
            experts = mean
        gates = self.strategy.gates(experts)
        best = gates.weights if self.by_gates else languages
        if self.prompts is not None:
            best = self.prompts.gates(languages).weights
        names = self.router.languages
        chosen = [self.language] * len(best) if self.language else []
        posteriors = experts.softmax(-1)
        return Route(
            gates,
            chosen or [names[i] for i in best.argmax(-1).tolist()],
            expert_names=self.router.experts,
            experts=posteriors,
            language_names=names,
            posteriors=posteriors if languages is experts else languages.softmax(-1),
            lengths=lengths,
        )


class FramePlan:
    """A decision a frame, smoothed; the systems ``frame`` and ``segment``.

    Args:
        system: ``frame``, or ``segment``, which cuts the utterance at the switches.
        router: A frame-level one, in evaluation mode.
        options: Smoothing, gates, allowed languages.
        tokens_for: Languages that the backbone can be prompted with.
        frame_samples: Samples from one encoder frame to the next.
    """

    def __init__(
        self,
        system: str,
        router: Router,
        options: RoutingOptions,
        tokens_for: Sequence[str],
        frame_samples: int = FRAME_SAMPLES,
    ) -> None:
        if router.options.level != "frame":
            raise ConfigError(
                f"--system {system} needs a frame-level router, but this one has level "
                f"{router.options.level}: train one with --router_conf level=frame"
            )
        self.router: Router | None = router
        self.cuts = system == "segment"
        self.frame_samples = frame_samples
        self.options, self.smoothing = options, options.smoother()
        self.same = router.experts == router.languages
        _require_languages(router, options.allowed, tokens_for)

    def known(self, truth: Truth, device: torch.device) -> Route:
        """Never asked."""
        raise ConfigError("this system's router decides")

    def decide(self, frames: torch.Tensor, lengths: torch.Tensor) -> Route:
        """One look at the batch."""
        assert self.router is not None
        experts, languages = _allow(self.router(frames, lengths), self.router, self.options.allowed)
        labels = smooth(languages, lengths, self.smoothing, self.frame_samples)
        posteriors = experts.softmax(-1)
        if self.options.frame_gates == "soft":
            weights = posteriors
        else:
            chosen = labels
            if not self.same:
                chosen = smooth(experts, lengths, self.smoothing, self.frame_samples)
            weights = torch.nn.functional.one_hot(chosen, experts.size(-1)).float()
        # Frames behind the speech have no say of their own: they go with the last one.
        weights = hold_last(weights, lengths)
        opening = (labels == labels[:, :1]).long().cummin(1).values.bool()
        opening &= valid_frames(lengths, labels.size(1))
        opening[:, 0] = True
        first = (weights * opening[..., None]).sum(1) / opening.sum(1, keepdim=True)
        return Route(
            Gates.of(weights),
            [self.router.languages[i] for i in labels[:, 0].tolist()],
            first,
            self.router.experts,
            frame_mean(posteriors, lengths),
            self.router.languages,
            frame_mean(languages.softmax(-1), lengths),
            labels,
            experts,
            lengths,
            self.frame_samples,
        )

    def expert_of(self, route: Route, row: int, span: tuple[int, int], language: str) -> str:
        """The expert of a piece of a row (samples): its language's, or its frames' best."""
        if self.same:
            return language
        assert route.expert_logits is not None
        start, end = span[0] // self.frame_samples, -(-span[1] // self.frame_samples)
        # An encoder may have fewer frames than the samples would fill: behind them is padding.
        if route.lengths is not None:
            end = min(end, int(route.lengths[row]))
        start = max(0, min(start, end - 1))
        posteriors = route.expert_logits[row, start:end].softmax(-1)
        return route.expert_names[int(posteriors.mean(0).argmax())]


class PausePlan(UtterancePlan):
    """An utterance is cut at its pauses, and each stretch is decided by an utterance-level router.

    Stretches in turn that are decided alike are one piece again: a pause too many costs nothing.
    The decisions of an utterance are made together, where each change of language has its price.
    A second of speech counts once: posteriors of long stretches weigh more, of short ones less.

    Args:
        router: Utterance-level, in evaluation mode.
        options: Pauses, price, allowed languages.
        tokens_for: Languages that the backbone can be prompted with.
        frame_samples: Samples from one encoder frame to the next.
    """

    cuts = True

    def __init__(
        self,
        router: Router,
        options: RoutingOptions,
        tokens_for: Sequence[str],
        frame_samples: int = FRAME_SAMPLES,
    ) -> None:
        super().__init__("hard", router, options, tokens_for)
        self.options, self.frame_samples = options, frame_samples

    def runs(self, routed: Sequence[tuple[Route, int]]) -> list[tuple[int, int, str, str]]:
        """Stretches of one utterance that belong together.

        Args:
            routed: Route and row of each stretch in turn.

        Returns:
            First and last (exclusive) stretch, language and expert of each run.
        """
        assert self.router is not None
        posteriors = _rows([(route.posteriors, row) for route, row in routed])
        experts = _rows([(route.experts, row) for route, row in routed])
        frames = _rows([(route.lengths, row) for route, row in routed])
        seconds = frames * self.frame_samples / SAMPLE_RATE
        log = posteriors.clamp(min=1e-9).log() * seconds.unsqueeze(1)
        labels = viterbi(log, self.options.pause_penalty).tolist()
        found, start = [], 0
        for end in range(1, len(labels) + 1):
            if end < len(labels) and labels[end] == labels[start]:
                continue
            language = self.router.languages[labels[start]]
            expert = language
            if not self.same:
                expert = self.router.experts[int(experts[start:end].mean(0).argmax())]
            found.append((start, end, language, expert))
            start = end
        return found


def _rows(found: Sequence[tuple[torch.Tensor | None, int]]) -> torch.Tensor:
    return torch.stack([values[row] for values, row in found if values is not None])


def build_plan(
    system: str,
    experts: Sequence[str],
    router: Router | None,
    options: RoutingOptions,
    tokens_for: Sequence[str],
    frame_samples: int = FRAME_SAMPLES,
) -> Plan:
    """The plan of a system, everything checked.

    Args:
        system: One of :data:`SYSTEMS`.
        experts: Names of the experts in the order of the gates.
        router: Where the system has one.
        options: Settings of the decisions.
        tokens_for: Languages that the backbone can be prompted with.
        frame_samples: Samples from one encoder frame to the next.

    Raises:
        UserError: For what the system lacks or cannot use.
    """
    if system not in SYSTEMS:
        raise ConfigError(f"--system {system} is unknown: choose one of {', '.join(SYSTEMS)}")
    if system in ("baseline", "oracle"):
        return KnownPlan(experts if system == "oracle" else ())
    if router is None:
        if system == "fixed" and options.expert in experts and options.expert in tokens_for:
            return KnownPlan(experts, options.expert)
        raise ConfigError(
            f"--system {system} needs --router FOLDER"
            + (
                "; without one, routing: expert names an expert that is a language of the backbone"
                if system == "fixed"
                else ""
            )
        )
    if tuple(experts) != router.experts:
        raise ConfigError(
            f"the router chooses among {' '.join(router.experts)}, but the experts given are "
            f"{' '.join(experts)}: give each of the router's experts"
        )
    if system == "segment" and router.options.level == "utterance":
        return PausePlan(router, options, tokens_for, frame_samples)
    if system in ("frame", "segment"):
        return FramePlan(system, router, options, tokens_for, frame_samples)
    return UtterancePlan(system, router, options, tokens_for)


def _require_languages(router: Router, allowed: Sequence[str], tokens_for: Sequence[str]) -> None:
    """Refuse languages that are none of the router's, or that no prompt can name."""
    problems = []
    if unknown := sorted(set(allowed) - set(router.languages)):
        problems.append(f"routing: allowed language(s) {', '.join(unknown)} are unknown")
    chosen = [code for code in router.languages if not allowed or code in allowed]
    if mute := sorted(set(chosen) - set(tokens_for)):
        problems.append(f"the backbone has no token for language(s) {', '.join(mute)}")
    if problems:
        names = " ".join(router.languages)
        raise ConfigError(f"{'; '.join(problems)}; languages of the router: {names}")


def _allow(
    routed: Routed, router: Router, allowed: Sequence[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Expert and language logits with what is not allowed ruled out."""
    if not allowed:
        return routed.experts, routed.languages
    languages = restrict(routed.languages, router.languages, allowed)
    return (languages if router.experts == router.languages else routed.experts), languages
