"""Which layers of an expert matter: each switched off, and each alone, without retraining."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from espnet_moe.analysis.passes import Batch, Subject, make_batches, token_loss, transcribe
from espnet_moe.analysis.record import About, Analysis
from espnet_moe.analysis.similarity import groups_of
from espnet_moe.analysis.updates import place_of
from espnet_moe.backbones.attention import Encoded
from espnet_moe.data.utterance import Utterance
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.scoring.error_rates import EditCounts, bootstrap_rates, interval, join_counts

ALL, NONE = "all", "none"
OFF, ALONE = "off", "alone"

SOURCES = (
    "Zhang et al., Are all layers created equal?, arXiv:1902.01996 (a layer matters as much as "
    "taking its training away costs)",
    "Michel et al., Are sixteen heads really better than one?, arXiv:1905.10650 (each part alone "
    "masked at test time)",
    "Bisani and Ney, Bootstrap estimates for confidence intervals in ASR performance evaluation, "
    "ICASSP 2004",
)


@dataclass(frozen=True)
class Losses:
    """Losses of utterances with some expert layers off.

    Attributes:
        sums: Nats by condition, each ``(utterances,)``.
        tokens: That the losses are of, ``(utterances,)``.
        words: Word edits by condition, where they were measured.
    """

    sums: Mapping[str, np.ndarray]
    tokens: np.ndarray
    words: Mapping[str, EditCounts]


def conditions_of(modules: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What is switched off in which condition: modules by ``off encoder.3``, ``alone fc1``."""
    conditions: dict[str, tuple[str, ...]] = {ALL: (), NONE: tuple(modules)}
    for group, own in groups_of(modules).items():
        conditions[f"{OFF} {group}"] = tuple(own)
        conditions[f"{ALONE} {group}"] = tuple(m for m in modules if m not in set(own))
    return conditions


def measure(
    subject: Subject, expert: str, batches: Sequence[Batch], with_words: Sequence[str] = ()
) -> Losses:
    """One pass over the utterances in every condition.

    What conditions share is computed once a batch: the layers below the first expert, and the
    encoder wherever the same of its layers are off.

    Args:
        subject: Backbone and experts.
        expert: That acts.
        batches: Utterances.
        with_words: Conditions that are decoded too.
    """
    conditions = conditions_of(list(subject.experts.layers))
    sums: dict[str, list[np.ndarray]] = {name: [] for name in conditions}
    words: dict[str, list[EditCounts]] = {name: [] for name in with_words}
    for batch in batches:
        gates = subject.gates(expert, len(batch.utterances))
        assert gates is not None
        encoder = _Encoder(subject, batch)
        for name, off in conditions.items():
            own = subject.experts.without(gates, off)
            encoded = encoder.run(own, off)
            sums[name].append(token_loss(subject, batch, encoded, own))
            if name in words:
                words[name].append(transcribe(subject, batch, encoded, own))
    return Losses(
        {name: np.concatenate(found) for name, found in sums.items()},
        np.concatenate([batch.counts for batch in batches]),
        {name: join_counts(found) for name, found in words.items()},
    )


class _Encoder:
    """The encoder's outputs for a batch, each computed once."""

    def __init__(self, subject: Subject, batch: Batch) -> None:
        self.subject = subject
        lowest = subject.experts.lowest_encoder_layer
        self.layer = subject.backbone.num_encoder_layers if lowest is None else lowest
        with torch.inference_mode(), use_gates(None):
            self.lower = subject.backbone.encode_lower(batch.speech, batch.lengths, self.layer)
        self.known: dict[frozenset[str], Encoded] = {}

    @torch.inference_mode()
    def run(self, gates: Gates, off: Sequence[str]) -> Encoded:
        """The output with these modules off; of them only the encoder's matter."""
        key = frozenset(module for module in off if place_of(module).part == "encoder")
        if key not in self.known:
            with use_gates(gates):
                self.known[key] = self.subject.backbone.encode_upper(self.lower, self.layer)
        return self.known[key]


def importance(losses: Losses, groups: Sequence[str], draws: int, seed: int) -> dict[str, Any]:
    """How much each group of layers matters.

    Args:
        losses: Of all conditions.
        groups: Names of the groups.
        draws: Of the bootstrap over utterances.
        seed: Of the draws.

    Returns:
        ``loss`` with all and none of the expert, and by group ``off``: the ``change`` of the loss
        when it is taken away, ``alone``: its ``gain`` over none when nothing else acts, both with
        intervals, and as a ``share`` of what the whole expert gains (``None`` where that is not
        above 0).
    """
    total = float(losses.tokens.sum())
    means = {name: float(values.sum()) / total for name, values in losses.sums.items()}
    gain = means[NONE] - means[ALL]
    found: dict[str, Any] = {
        "utterances": len(losses.tokens),
        "tokens": int(total),
        "loss": {ALL: means[ALL], NONE: means[NONE]},
        "gain": {
            "value": gain,
            "interval": _interval(losses, NONE, ALL, draws, seed),
        },
        "groups": {},
    }
    for group in groups:
        row: dict[str, dict[str, Any]] = {}
        for kind, more, less in ((OFF, f"{OFF} {group}", ALL), (ALONE, NONE, f"{ALONE} {group}")):
            change = means[more] - means[less]
            row[kind] = {
                "change" if kind == OFF else "gain": change,
                "interval": _interval(losses, more, less, draws, seed),
                "share": change / gain if gain > 0 else None,
            }
            if f"{kind} {group}" in losses.words:
                row[kind]["wer"] = _words(losses, f"{kind} {group}", draws, seed)
        found["groups"][group] = row
    if losses.words:
        found["wer"] = {name: losses.words[name].rate for name in (ALL, NONE)}
    return found


def _interval(losses: Losses, more: str, less: str, draws: int, seed: int) -> tuple[float, float]:
    """Interval of the difference of two conditions' losses a token: utterances are drawn."""
    apart = losses.sums[more] - losses.sums[less]
    low, high = interval(bootstrap_rates(apart, losses.tokens, draws, seed))
    return low / 100, high / 100


def _words(losses: Losses, name: str, draws: int, seed: int) -> dict[str, Any]:
    """WER of a condition, and its change from that with all of the expert."""
    own, whole = losses.words[name], losses.words[ALL]
    apart = [bootstrap_rates(c.errors, c.lengths, draws, seed) for c in (own, whole)]
    return {
        "wer": own.rate,
        "change": own.rate - whole.rate,
        "interval": interval(apart[0] - apart[1]),
        "words": int(own.lengths.sum()),
    }


ABOUT = About(
    name="layers",
    title="Importance of layers",
    what="In which layers, and which kinds of module, does an expert do its work?",
    method=(
        "Every group of an expert's modules (a part of the model, a layer, a kind of module) "
        "is switched off while the rest acts, and acts alone while the rest is off; nothing is "
        "trained again. The loss is the decoder's cross-entropy of the transcripts under "
        "teacher forcing, a mean over tokens. Shares are of what the whole expert gains over "
        "the base; they need not add up to 1, as layers make good for each other. Intervals: "
        "95 %, bootstrap over utterances, paired."
    ),
    sources=SOURCES,
    units={
        "loss": "nats a token",
        "change": "nats a token: how much worse without the group (wer: points of WER)",
        "gain": "nats a token: how much better than the base (with the group alone)",
        "share": "of the whole expert's gain",
        "wer": "percent",
    },
)


def layers(
    subject: Subject,
    utterances: Mapping[str, Sequence[Utterance]],
    languages: Mapping[str, Sequence[str]],
    batch_size: int = 16,
    with_wer: bool = False,
    draws: int = 2000,
    seed: int = 0,
) -> Analysis:
    """Measure which layers of every expert matter on its own languages.

    Args:
        subject: Backbone and experts.
        utterances: By language.
        languages: Of every expert.
        batch_size: Utterances at once.
        with_wer: Decode, too, with each layer and each part off: as many decodes of the set.
        draws: Of the bootstrap.
        seed: Of the draws.
    """
    missing: dict[str, str] = {}
    modules = list(subject.experts.layers)
    groups = groups_of(modules)
    with_words = []
    if with_wer:
        shown = [g for g in groups if g.partition(".")[0] in ("encoder", "decoder", "other")]
        with_words = [ALL, NONE, *(f"{OFF} {group}" for group in shown)]
    else:
        missing["wer"] = "not asked for (--wer true decodes the set again for every layer)"
    found = {}
    for expert in subject.experts.names:
        own = [u for code in languages.get(expert, ()) for u in utterances.get(code, ())]
        if not own:
            told = ", ".join(languages.get(expert, ())) or "no language of its own"
            missing[expert] = f"the data have no utterance of it ({told})"
            continue
        own.sort(key=lambda utt: -(utt.duration or 0.0))
        losses = measure(subject, expert, make_batches(subject, own, batch_size), with_words)
        told_of = sorted({utt.language for utt in own})
        found[expert] = {"languages": told_of, **importance(losses, list(groups), draws, seed)}
    return Analysis(
        ABOUT,
        results={
            "experts": found,
            "modules": {group: len(own) for group, own in groups.items()},
        },
        options={"batch_size": batch_size, "draws": draws, "seed": seed, "wer": with_wer},
        not_available=missing,
    )
