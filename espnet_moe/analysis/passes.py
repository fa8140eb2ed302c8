"""Passes of utterances through a backbone with experts: frames, losses and transcripts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from espnet_moe.analysis.cka import Representations
from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.protocol import IGNORE
from espnet_moe.data.audio import load_audio
from espnet_moe.data.datadir import load_datadir
from espnet_moe.data.normalize import normalize
from espnet_moe.data.utterance import Utterance
from espnet_moe.decoding.loading import load_decoder
from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.scoring.error_rates import EditCounts, count_edits

BASE = "base"  # the condition without experts
LAYERS_AT_MOST = 5  # whose frames are kept at once, beside the output


@dataclass(frozen=True)
class Subject:
    """A backbone with the experts that are analysed, ready to run.

    Attributes:
        backbone: In evaluation mode.
        experts: Inside it.
    """

    backbone: Any
    experts: ExpertSet

    @property
    def conditions(self) -> tuple[str, ...]:
        """``base`` and the experts."""
        return BASE, *self.experts.names

    def gates(self, condition: str, rows: int) -> Gates | None:
        """One expert for all rows, or none."""
        if condition == BASE:
            return None
        return self.experts.one_hot([condition] * rows, self.backbone.device)


def load_subject(backbone: str, context: str, experts: Mapping[str, str], device: str) -> Subject:
    """Load a backbone with experts, checked as for decoding.

    Raises:
        UserError: For experts of another base, tokenizer or context, or one that is called
            ``base``.
    """
    if BASE in experts:
        raise UserError(f"an expert called '{BASE}' would be taken for the base: rename it")
    if not experts:
        raise UserError("no expert given: name them with --experts NAME=FOLDER …")
    decoder = load_decoder(backbone, context, experts, None, device, "oracle")
    assert decoder.experts is not None
    return Subject(decoder.backbone, decoder.experts)


def draw_utterances(
    folders: Sequence[str | Path], count: int, max_seconds: float, seed: int = 0
) -> dict[str, list[Utterance]]:
    """Draw utterances of each language from data directories.

    Args:
        folders: Formatted data directories.
        count: Of each language, at most; 0 for all.
        max_seconds: Longer ones are left out.
        seed: Of the draw.

    Returns:
        By language, longest first.

    Raises:
        UserError: For no utterance at all, or a folder that cannot be read.
    """
    if count < 0:
        raise UserError(f"the number of utterances is 0 (all) or more, not {count}")
    found: dict[str, list[Utterance]] = {}
    for folder in folders:
        data = load_datadir(folder)
        for utt in data.utterances:
            if utt.utt_id in data.skipped or data.segments.get(utt.utt_id):
                continue  # of no one language, or not fit to be read
            if utt.text.strip() and (utt.duration or 0.0) <= max_seconds:
                found.setdefault(utt.language, []).append(utt)
    if not found:
        raise UserError(
            f"{', '.join(map(str, folders))}: no utterance of one language with a transcript and "
            f"at most {max_seconds:g} s"
        )
    generator = np.random.default_rng(seed)
    drawn = {}
    for language in sorted(found):
        own = found[language]
        if count and len(own) > count:
            own = [own[i] for i in np.sort(generator.choice(len(own), count, replace=False))]
        drawn[language] = sorted(own, key=lambda utt: (-(utt.duration or 0.0), utt.utt_id))
    return drawn


@dataclass(frozen=True)
class Batch:
    """Utterances of one language, ready for a pass.

    Attributes:
        utterances: In the order of the rows.
        speech: ``(batch, samples)``.
        lengths: ``(batch,)`` samples.
        prompt: ``(batch, prompt tokens)``, of the true language.
        tokens: Decoder input ``(batch, prompt + tokens)``.
        target: ``(batch, said + tokens + 1)``: what follows the prompt, the end token included;
            :data:`~espnet_moe.backbones.protocol.IGNORE` where there is none.
    """

    utterances: tuple[Utterance, ...]
    speech: torch.Tensor
    lengths: torch.Tensor
    prompt: torch.Tensor
    tokens: torch.Tensor
    target: torch.Tensor

    @property
    def counts(self) -> np.ndarray:
        """Tokens that the loss counts, ``(batch,)``."""
        return (self.target != IGNORE).sum(1).cpu().numpy()


def make_batches(subject: Subject, utterances: Sequence[Utterance], size: int) -> list[Batch]:
    """Load utterances in their order; each once, however many passes follow.

    Those whose transcript is longer than the decoder takes are left out, as in training.

    Raises:
        UserError: Where none is left, or a language has no token.
    """
    if size < 1:
        raise UserError(f"--batch_size is at least 1, not {size}")
    backbone = subject.backbone
    room = backbone.max_target_length - backbone.tokens.prompt([utterances[0].language]).size(1)
    kept = [utt for utt in utterances if len(backbone.tokens.encode(utt.text)) <= room]
    if not kept:
        raise UserError(f"every transcript has more than the {room} tokens that the decoder takes")
    if left_out := len(utterances) - len(kept):
        logging.warning("%d of %d transcripts are too long: left out", left_out, len(utterances))
    return [_batch(backbone, kept[i : i + size]) for i in range(0, len(kept), size)]


def _batch(backbone: Any, utterances: Sequence[Utterance]) -> Batch:
    tokens, device = backbone.tokens, backbone.device
    waves = [torch.from_numpy(load_audio(utt.audio)) for utt in utterances]
    prompt = tokens.prompt([utt.language for utt in utterances])
    texts = [torch.tensor(tokens.encode(utt.text), dtype=torch.long) for utt in utterances]
    end = tokens.end_id
    target = torch.nn.utils.rnn.pad_sequence(
        [F.pad(text, (0, 1), value=end) for text in texts], batch_first=True, padding_value=IGNORE
    )
    said = prompt[:, prompt.size(1) - tokens.target_prompt :]
    text = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=end)
    return Batch(
        tuple(utterances),
        torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).to(device),
        torch.tensor([len(x) for x in waves], device=device),
        prompt.to(device),
        torch.cat([prompt, text], dim=1).to(device),
        torch.cat([said, target], dim=1).to(device),
    )


@torch.inference_mode()
def encode(subject: Subject, batch: Batch, gates: Gates | None) -> Encoded:
    """The encoder's output under these gates."""
    with use_gates(gates):
        lower = subject.backbone.encode_lower(batch.speech, batch.lengths, 0)
        encoded: Encoded = subject.backbone.encode_upper(lower, 0)
    return encoded


@torch.inference_mode()
def token_loss(subject: Subject, batch: Batch, encoded: Encoded, gates: Gates | None) -> np.ndarray:
    """Cross-entropy of the transcripts under teacher forcing, in nats, summed: ``(batch,)``.

    The decoder's alone (a CTC branch has no part in it), without smoothing.
    """
    with use_gates(gates):
        logits = subject.backbone.decode(batch.tokens, encoded)[:, -batch.target.size(1) :]
    each = F.cross_entropy(
        logits.float().transpose(1, 2), batch.target, ignore_index=IGNORE, reduction="none"
    )
    return each.sum(1).double().cpu().numpy()


@torch.inference_mode()
def transcribe(subject: Subject, batch: Batch, encoded: Encoded, gates: Gates | None) -> EditCounts:
    """Word edits of a greedy search, an utterance a row."""
    longest = 2 * (batch.target != IGNORE).sum(1).max().item() + 10
    found = search(
        subject.backbone, encoded, batch.prompt, SearchOptions(max_tokens=int(longest)), gates
    )
    texts = [
        normalize(subject.backbone.tokens.decode(one.tokens), utt.language)
        for one, utt in zip(found, batch.utterances, strict=True)
    ]
    references = [normalize(utt.text, utt.language) for utt in batch.utterances]
    return count_edits(references, texts, "word")[0]


@torch.inference_mode()
def hidden_layers(
    subject: Subject, batch: Batch, gates: Gates | None, layers: Sequence[int]
) -> dict[str, Encoded]:
    """Encoder states after each of some numbers of layers, then the encoder's output.

    Args:
        subject: Backbone and experts.
        batch: Utterances.
        gates: In force.
        layers: Numbers of layers that have been passed, rising; 0 is what enters the first.
    """
    found = {}
    with use_gates(gates):
        state, done = subject.backbone.encode_lower(batch.speech, batch.lengths, 0), 0
        for layer in layers:
            state, done = subject.backbone.encode_layers(state, done, layer), layer
            found[str(layer)] = state
        found["output"] = subject.backbone.encode_upper(state, done)
    return found


def spread_layers(subject: Subject) -> list[int]:
    """A few layers from the first on that an expert has changed to the last."""
    last = subject.backbone.num_encoder_layers
    first = subject.experts.lowest_encoder_layer
    if first is None:
        return []
    count = min(LAYERS_AT_MOST, last - first)
    return sorted({int(layer) for layer in np.linspace(first + 1, last, count).round()})


def represent(
    subject: Subject, batches: Sequence[Batch], max_frames: int, seed: int = 0
) -> Representations:
    """The same frames of utterances under the base and every expert, padding left out.

    Args:
        subject: Backbone and experts.
        batches: Utterances.
        max_frames: Frames drawn from all of them, at most.
        seed: Of the draw.
    """
    if max_frames < 4:
        raise UserError(f"--max_frames is at least 4, not {max_frames}")
    layers = spread_layers(subject)
    names = [*map(str, layers), "output"]
    generator = np.random.default_rng(seed)
    kept: dict[str, list[list[np.ndarray]]] = {
        name: [[] for _ in subject.conditions] for name in names
    }
    owners: list[np.ndarray] = []
    total = sum(len(batch.utterances) for batch in batches)
    start = 0
    for batch in batches:
        rows, chosen = len(batch.utterances), np.zeros(0, dtype=np.int64)
        for number, condition in enumerate(subject.conditions):
            gates = subject.gates(condition, rows)
            for name, state in hidden_layers(subject, batch, gates, layers).items():
                valid = _valid(state)
                if not len(chosen):  # the same frames for every layer and condition
                    every = np.flatnonzero(valid.reshape(-1))
                    size = min(len(every), max(1, round(max_frames * rows / total)))
                    chosen = np.sort(generator.choice(every, size, replace=False))
                    owners.append(start + chosen // valid.shape[1])
                flat = state.hidden.flatten(0, 1)[torch.from_numpy(chosen).to(state.hidden.device)]
                kept[name][number].append(flat.float().cpu().numpy())
        start += rows
    frames = {
        name: np.stack([np.concatenate(own) for own in by_condition])
        for name, by_condition in kept.items()
    }
    return Representations(subject.conditions, tuple(names), frames, np.concatenate(owners))


def _valid(state: Encoded) -> np.ndarray:
    """Frames that hold speech, ``(batch, frames)``."""
    frames = torch.arange(state.hidden.size(1), device=state.hidden.device)
    return (frames < state.spoken.unsqueeze(1)).cpu().numpy()
