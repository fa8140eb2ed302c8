"""Decode a batch with one system: encode below the router, route, encode above it, search."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.protocol import Backbone
from espnet_moe.config import ConfigError
from espnet_moe.decoding.parts import (
    Part,
    groups,
    join_hypotheses,
    join_records,
    padded,
    whole_or_windows,
)
from espnet_moe.decoding.plans import SYSTEMS, FramePlan, PausePlan, Plan, build_plan
from espnet_moe.decoding.routing import Route, RoutingOptions, Truth
from espnet_moe.decoding.search import Hypothesis, SearchOptions, search
from espnet_moe.decoding.windows import pieces, stretches
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.gates import use_gates
from espnet_moe.routing.routers import Router

__all__ = ["SYSTEMS", "DecodeOptions", "Decoded", "Decoder"]


@dataclass(frozen=True)
class DecodeOptions:
    """Options of a decode, the search's among them.

    Attributes:
        batch_size: Utterances (windows, pieces) decoded at once.
        beam_size, max_tokens, length_penalty, repetition_limit, ctc_weight: See
            :class:`espnet_moe.decoding.search.SearchOptions`.
        predict_time: Let OWSM say timestamps too; the text is without them.
        routing: How decisions are made.
    """

    batch_size: int = 16
    beam_size: int = 1
    max_tokens: int = 0
    length_penalty: float = 1.0
    repetition_limit: int = 4
    ctc_weight: float = 0.0
    predict_time: bool = False
    routing: RoutingOptions = field(default_factory=RoutingOptions)

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {self.batch_size}")
        self.search()

    def search(self) -> SearchOptions:
        """The search's share."""
        return SearchOptions(
            self.beam_size,
            self.max_tokens,
            self.length_penalty,
            self.repetition_limit,
            self.ctc_weight,
        )


@dataclass(frozen=True)
class Spoken:
    """What was decoded as one row: an utterance, a window or a piece of it.

    Attributes:
        start: Seconds from the utterance's beginning.
        end: Likewise.
        language: Of the prompt.
        text: Transcript.
    """

    start: float
    end: float
    language: str
    text: str


@dataclass(frozen=True)
class Decoded:
    """What came of one utterance.

    Attributes:
        text: Transcript.
        hypothesis: Tokens, score, why it ended.
        latency: Seconds from the waveform in memory to the text, of the batch it was in.
        language: Of the prompt; of the first part where there are several.
        route: Posteriors, gates and segments by name; empty where no expert acts.
        encode_seconds: In the encoder, of the batch by its utterances.
        route_seconds: In the router and its strategy, likewise.
        parts: Its windows and pieces in turn; one where it was not cut.
    """

    text: str
    hypothesis: Hypothesis
    latency: float
    language: str = ""
    route: Mapping[str, Any] = field(default_factory=dict)
    encode_seconds: float = 0.0
    route_seconds: float = 0.0
    parts: tuple[Spoken, ...] = ()


class Decoder:
    """A backbone with or without experts and router, and how to decode with it.

    Args:
        backbone: On its device, in evaluation mode.
        experts: The experts inside it; ``None`` decodes with the backbone alone.
        options: Batch size, search, decisions.
        system: One of :data:`SYSTEMS`; by default ``oracle`` with experts, ``baseline`` without.
        router: Of the systems that have one.

    Raises:
        UserError: Where system, experts, router and options do not fit together.
    """

    def __init__(
        self,
        backbone: Backbone,
        experts: ExpertSet | None,
        options: DecodeOptions,
        system: str = "",
        router: Router | None = None,
    ) -> None:
        self.backbone, self.experts, self.options = backbone.eval(), experts, options
        self.system = system or ("oracle" if experts else "baseline")
        if options.ctc_weight > 0 and backbone.ctc_weight == 0:
            raise ConfigError("ctc_weight is 0 for this backbone, which has no CTC branch")
        self.tokens = backbone.tokens
        if options.predict_time:
            self.tokens = backbone.tokens.with_timestamps()
        names = experts.names if experts else ()
        tokens_for = backbone.tokens.languages
        self.plan: Plan = build_plan(
            self.system, names, router, options.routing, tokens_for, backbone.frame_samples
        )
        lowest = experts.lowest_encoder_layer if experts else 0
        self.first_layer = backbone.num_encoder_layers if lowest is None else lowest
        if self.plan.router is not None:
            self.plan.router = self.plan.router.to(backbone.device).eval()
            _require_fit(self.plan.router, backbone)

    @torch.inference_mode()
    def __call__(
        self,
        speech: Sequence[np.ndarray],
        languages: Sequence[str],
        memberships: Sequence[Mapping[str, float]] | None = None,
    ) -> list[Decoded]:
        """Decode a batch; languages may differ from row to row.

        Recordings longer than the backbone takes are cut into windows, each with a decision of its
        own.

        Args:
            speech: Waveforms ``(samples,)`` at 16 kHz.
            languages: Of each; the prompt's in the systems baseline and oracle.
            memberships: Oracle for experts that are no languages: weight by expert of each.
        """
        began, spent = time.perf_counter(), _Spent(self.backbone.device)
        limit, margin = self.backbone.max_seconds, self.options.routing.window_margin
        parts = whole_or_windows(speech, languages, limit, margin)
        if len(parts) > len(speech):
            logging.info(
                "%d of %d recordings are longer than %.0f s: decoded in %d windows",
                len({p.owner for p in parts if p.start}),
                len(speech),
                limit,
                len(parts) - len(speech) + len({p.owner for p in parts if p.start}),
            )
        rows = self._cut(parts, spent) if self.plan.cuts else parts
        for group in groups(rows, self.options.batch_size):
            self._decode(group, memberships, spent)
        latency, count = time.perf_counter() - began, len(speech)
        return [
            self._joined(
                [p for p in parts if p.owner == owner],
                [p for p in rows if p.owner == owner],
                (latency, spent.encode / count, spent.route / count),
            )
            for owner in range(count)
        ]

    def _decode(
        self,
        parts: list[Part],
        memberships: Sequence[Mapping[str, float]] | None,
        spent: "_Spent",
    ) -> None:
        """Encode, route and search one batch of parts; the results are put into them."""
        own = None if memberships is None else [memberships[p.owner] for p in parts]
        encoded, route = self._encode(parts, Truth([p.language for p in parts], own), spent)
        prompts = self.tokens.prompt(route.languages)
        found = search(
            self.backbone,
            encoded,
            prompts,
            self.options.search(),
            route.gates,
            route.first,
            self.tokens,
        )
        told = zip(parts, found, route.languages, route.records(), strict=True)
        for part, hypothesis, language, record in told:
            part.hypothesis, part.language, part.record = hypothesis, language, record
            part.text = self.tokens.decode(hypothesis.tokens)

    def _encode(self, parts: list[Part], truth: Truth, spent: "_Spent") -> tuple[Encoded, Route]:
        """Encoder states with the experts in force, and the route that chose them."""
        backbone, router = self.backbone, self.plan.router
        speech, lengths = padded(parts, backbone.device)
        if router is None or self.plan.cuts:
            # The route needs no look at the encoder: all of it runs with the gates in force.
            with spent.on("route"):
                route = self._known(parts, truth)
            with spent.on("encode"), use_gates(route.gates):
                lower = backbone.encode_lower(speech, lengths, 0)
                return backbone.encode_upper(lower, 0), route
        # No expert acts below its first layer: up to there, one pass serves router and experts.
        layer, shared = router.layer, min(router.layer, self.first_layer)
        with spent.on("encode"), use_gates(None):
            lower = backbone.encode_lower(speech, lengths, shared)
            read = backbone.encode_layers(lower, shared, layer) if layer > shared else lower
        with spent.on("route"):
            route = self.plan.decide(read.hidden, read.spoken)
        with spent.on("encode"), use_gates(route.gates):
            return backbone.encode_upper(lower, shared), route

    def _known(self, parts: list[Part], truth: Truth) -> Route:
        """The route that needs no router, or that a cut has chosen already."""
        if not self.plan.cuts:
            return self.plan.known(truth, self.backbone.device)
        assert self.experts is not None
        gates = self.experts.one_hot([p.expert for p in parts], self.backbone.device)
        return Route(gates, list(truth.languages), expert_names=self.experts.names)

    def _cut(self, parts: list[Part], spent: "_Spent") -> list[Part]:
        """Pieces of one language each, their experts chosen (system ``segment``)."""
        if isinstance(self.plan, PausePlan):
            return self._cut_at_pauses(parts, self.plan, spent)
        plan, found = self.plan, []
        assert isinstance(plan, FramePlan) and plan.router is not None
        for group in groups(parts, self.options.batch_size):
            speech, lengths = padded(group, self.backbone.device)
            with spent.on("encode"), use_gates(None):
                read = self.backbone.encode_lower(speech, lengths, plan.router.layer)
            with spent.on("route"):
                route = plan.decide(read.hidden, read.spoken)
            told = zip(group, route.records(), route.segments(), strict=True)
            for row, (part, record, segments) in enumerate(told):
                part.record = record
                cut = pieces(
                    part.speech,
                    segments,
                    self.options.routing.min_segment,
                    self.options.routing.snap,
                )
                for a, b, language in cut:
                    expert = plan.expert_of(route, row, (a, b), language)
                    piece = part.speech[a:b]
                    found.append(Part(part.owner, part.start + a, piece, language, expert))
        return sorted(found, key=lambda p: (p.owner, p.start))

    def _cut_at_pauses(self, parts: list[Part], plan: PausePlan, spent: "_Spent") -> list[Part]:
        """Stretches between pauses, those in turn of one language joined again."""
        assert plan.router is not None
        options, found = self.options.routing, []
        cut = [stretches(p.speech, options.pause_spacing, options.pause_depth) for p in parts]
        candidates = [
            Part(i, a, part.speech[a:b], part.language)
            for i, (part, spans) in enumerate(zip(parts, cut, strict=True))
            for a, b in spans
        ]
        routes: dict[int, tuple[Route, int]] = {}
        for group in groups(candidates, self.options.batch_size):
            speech, lengths = padded(group, self.backbone.device)
            with spent.on("encode"), use_gates(None):
                read = self.backbone.encode_lower(speech, lengths, plan.router.layer)
            with spent.on("route"):
                route = plan.decide(read.hidden, read.spoken)
            for row, (stretch, record) in enumerate(zip(group, route.records(), strict=True)):
                stretch.record = record
                routes[id(stretch)] = route, row
        for i, part in enumerate(parts):
            own = [p for p in candidates if p.owner == i]
            part.record = join_records(own)
            with spent.on("route"):
                runs = plan.runs([routes[id(p)] for p in own])
            for first, last, language, expert in runs:
                a, b = own[first].start, own[last - 1].start + len(own[last - 1].speech)
                piece = part.speech[a:b]
                found.append(Part(part.owner, part.start + a, piece, language, expert))
        return found

    def _joined(
        self, parts: list[Part], rows: list[Part], seconds: tuple[float, float, float]
    ) -> Decoded:
        """An utterance from its windows and, where it was cut further, their pieces."""
        record = join_records(parts)
        if self.plan.cuts:
            gates = join_records(rows)["gates"]
            cuts = [[*p.span, p.language] for p in rows]
            record = {**record, "gates": gates, "segments": cuts}
        text = " ".join(p.text for p in rows if p.text)
        hypothesis = join_hypotheses([p.hypothesis for p in rows if p.hypothesis is not None])
        latency, encode, route = seconds
        spoken = tuple(Spoken(*p.span, p.language, p.text) for p in rows)
        return Decoded(text, hypothesis, latency, rows[0].language, record, encode, route, spoken)

    def require(self, languages: Sequence[str], has_memberships: bool = False) -> None:
        """Check before hours of decoding that every language has a token and an expert.

        Args:
            languages: True languages of what is to be decoded.
            has_memberships: Whether the oracle goes by memberships instead of languages.

        Raises:
            UserError: Naming those that have none.
        """
        if self.system not in ("baseline", "oracle"):
            return
        self.tokens.prompt(languages)
        if self.experts is None or has_memberships:
            return
        if missing := sorted(set(languages) - set(self.experts.names)):
            raise ConfigError(
                f"no expert for language(s) {', '.join(missing)}; "
                f"experts: {' '.join(self.experts.names)}; experts that are no languages need "
                "--utt2experts FILE"
            )

    def parameters(self) -> tuple[int, int]:
        """Number of parameters of the whole, and of experts and router."""
        own = sum(p.numel() for p in self.experts.parameters()) if self.experts else 0
        if self.plan.router is not None:
            own += (router := sum(p.numel() for p in self.plan.router.parameters()))
        else:
            router = 0
        return sum(p.numel() for p in self.backbone.parameters()) + router, own


class _Spent:
    """Seconds spent in the encoder and in routing; the GPU's queue is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.encode, self.route = device, 0.0, 0.0

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Add the time inside to ``encode`` or ``route``."""
        began = self._now()
        yield
        setattr(self, what, getattr(self, what) + self._now() - began)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _require_fit(router: Router, backbone: Backbone) -> None:
    """Refuse a router that reads what this backbone does not have."""
    problems = []
    if not 0 <= router.layer <= backbone.num_encoder_layers:
        last = backbone.num_encoder_layers
        problems.append(f"it reads encoder layer {router.layer}, but the layers are 0..{last}")
    if router.dim != (width := backbone.dim):
        problems.append(f"it takes frames {router.dim} wide, but these are {width} wide")
    if problems:
        raise ConfigError(f"the router is not for this backbone: {'; '.join(problems)}")
