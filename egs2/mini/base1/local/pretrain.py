#!/usr/bin/env python3
"""Pre-train a tiny base of the mini recipes, shaped like Whisper or OWSM, on synthetic speech.

English, Italian and Hindi with a trace of Punjabi and Telugu; sentences and voices of the split
``base``, which no recipe split contains. Attention and CTC losses together (Whisper has no CTC: it
is a training aid there, and its layer is thrown away), and a third whose layer is thrown away:
which language is spoken, told from the encoder's lower layers second by second. Interrupted, the
next call goes on from the last checkpoint.
"""

import argparse
import io
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jiwer
import langcodes
import numpy as np
import scipy.fft
import sentencepiece
import soxr
import torch
import torch.nn.functional as F
from espnet2.asr.frontend.default import DefaultFrontend
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.features import SAMPLE_RATE
from espnet_moe.backbones.owsm import OwsmBackbone
from espnet_moe.backbones.owsm_loading import build_s2t
from espnet_moe.backbones.owsm_tokens import OwsmTokens
from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.backbones.whisper_tokens import WhisperTokens, special_tokens
from espnet_moe.data.mini_text import sentences
from espnet_moe.data.mini_voices import Synthesizer, Voice, variants, voices
from espnet_moe.decoding.search import SearchOptions, search

# Share of training utterances a language, and how many different sentences it may use.
MIX = {
    "it": (0.40, 10_000),
    "hi": (0.32, 10_000),
    "en": (0.25, 6_000),
    "pa": (0.015, 60),
    "te": (0.015, 60),
}
SHARES = {code: share for code, (share, _) in MIX.items()}
TRACE = ("pa", "te")
# Speech of which only the language is known: sentences a language, and share of the pieces. Hindi
# and Punjabi sound most alike.
UNTRANSCRIBED = 10_000
HEARD = {"it": 0.2, "hi": 0.25, "en": 0.1, "pa": 0.25, "te": 0.2}
# Half of OWSM v3.1's mel bins: its two-dimensional convolutions are most of a tiny model's cost.
OWSM_FRONTEND = {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 40}


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--shape", choices=["whisper", "owsm"], default="whisper", help="of the base"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--export_dir", type=Path, required=True, help="the finished base (fp16)")
    parser.add_argument(
        "--init_dir", type=Path, help="a finished base to go on from, a Whisper; default: nothing"
    )
    parser.add_argument(
        "--mix",
        type=parse_mix,
        default=" ".join(f"{code}={share}" for code, share in SHARES.items()),
        help="share of the training utterances a language",
    )
    parser.add_argument("--steps", type=int, default=4600, help="optimiser steps in all")
    parser.add_argument("--batch_size", type=int, default=32, help="utterances a step")
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps of linear warm-up")
    parser.add_argument(
        "--language_first",
        type=int,
        default=300,
        help="steps of that loss alone, at the beginning; with --init_dir, of the layers alone "
        "that are thrown away",
    )
    parser.add_argument("--language_layer", type=int, default=2, help="encoder layer of that loss")
    parser.add_argument("--language_weight", type=float, default=0.5, help="weight of that loss")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and dropout")
    parser.add_argument("--eval_steps", type=int, default=500, help="steps between validations")
    parser.add_argument("--num_workers", type=int, default=1, help="processes that make speech")
    return parser


def parse_mix(text: str) -> dict[str, float]:
    """Shares of all languages of ``MIX``, from ``it=0.4 hi=0.3 ...``; they are made to sum to 1."""
    try:
        given = {code: float(share) for code, share in (x.split("=") for x in text.split())}
    except ValueError:
        given = {}
    if set(given) != set(MIX) or min(given.values()) < 0 or sum(given.values()) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}': name a share for each of {', '.join(MIX)}")
    return {code: given[code] / sum(given.values()) for code in MIX}


def whisper_tokens() -> WhisperTokens:
    """Byte-level BPE whose tokens are at most three bytes: one Indic character, or a few letters.

    Longer tokens would be whole words of the small grammar, and a model of words reads no new ones.
    """
    text = [s.texts[code] for s in sentences("base", 4000) for code in MIX]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        max_token_length=3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(m) for m in state["merges"]]
    whisper = WhisperTokenizer(vocab=state["vocab"], merges=merges)
    whisper.add_special_tokens(
        {"additional_special_tokens": special_tokens(list(WHISPER_LANGUAGES))}
    )
    return WhisperTokens(whisper)


def build_whisper() -> WhisperBackbone:
    """A 3 M-parameter Whisper: 4 encoder layers, 2 decoder layers, width 160."""
    tokens = whisper_tokens()
    config = WhisperConfig(
        vocab_size=len(tokens.tokenizer),
        num_mel_bins=80,
        d_model=160,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=640,
        decoder_ffn_dim=640,
        max_target_positions=224,
        dropout=0.05,
        bos_token_id=tokens.end_id,
        eos_token_id=tokens.end_id,
        pad_token_id=tokens.end_id,
        decoder_start_token_id=tokens.end_id + 1,
        begin_suppress_tokens=None,
    )
    return WhisperBackbone(WhisperForConditionalGeneration(config), tokens)


def owsm_tokens() -> OwsmTokens:
    """500 BPE pieces of at most three characters behind OWSM's symbols, in OWSM's order."""
    languages = [f"<{langcodes.get(code).to_alpha3()}>" for code in sorted(MIX)]
    times = [f"<{i * 0.02:.2f}>" for i in range(1501)]
    symbols = ["<na>", "<nospeech>", *languages, "<asr>", "<notimestamps>", *times]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([s.texts[c] for s in sentences("base", 4000) for c in MIX]),
        model_writer=model,
        model_type="bpe",
        vocab_size=500 + len(symbols),
        max_sentencepiece_length=3,
        character_coverage=1.0,
        user_defined_symbols=symbols,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    bpe = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [bpe.id_to_piece(i) for i in range(1 + len(symbols), bpe.get_piece_size())]
    ends = ["<sos>", "<eos>", "<sop>"]
    return OwsmTokens(["<blank>", "<unk>", *symbols, *pieces, *ends], bpe)


def build_owsm(folder: Path) -> OwsmBackbone:
    """A 2.8 M-parameter OWSM v3.1: 4 E-Branchformer layers, 2 decoder layers, width 112.

    Args:
        folder: Where the statistics of the features are written.
    """
    tokens = owsm_tokens()
    width = 112
    dropout = 0.0  # the speech never repeats, and drawing the masks took a fifth of each step
    config = {
        "token_list": list(tokens.token_list),
        "frontend": "default",
        "frontend_conf": OWSM_FRONTEND,
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": str(feature_statistics(folder))},
        "encoder": "e_branchformer",
        "encoder_conf": {
            "output_size": width,
            "attention_heads": 4,
            "attention_layer_type": "selfattn",
            "pos_enc_layer_type": "abs_pos",
            "rel_pos_type": "latest",
            "cgmlp_linear_units": 4 * width,
            "cgmlp_conv_kernel": 31,
            "use_linear_after_conv": False,
            "gate_activation": "identity",
            "num_blocks": 4,
            "dropout_rate": dropout,
            "positional_dropout_rate": dropout,
            "attention_dropout_rate": 0.0,
            "input_layer": "conv2d",
            "linear_units": 4 * width,
            "use_ffn": True,
            "macaron_ffn": True,
            "merge_conv_kernel": 31,
        },
        "decoder": "transformer",
        "decoder_conf": {
            "attention_heads": 4,
            "linear_units": 4 * width,
            "num_blocks": 2,
            "dropout_rate": dropout,
            "positional_dropout_rate": dropout,
        },
        "ctc_conf": {},
        "model": "espnet",
        "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "length_normalized_loss": False},
        "preprocessor": "s2t",
        "preprocessor_conf": {
            "fs": 16000,
            "speech_length": 30,
            "speech_resolution": 0.02,
            "na_symbol": "<na>",
            "notime_symbol": "<notimestamps>",
            "first_time_symbol": "<0.00>",
            "last_time_symbol": "<30.00>",
        },
        "token_type": "bpe",
    }
    return OwsmBackbone(build_s2t(config), tokens, config=config)


def feature_statistics(folder: Path, size: int = 200) -> Path:
    """ESPnet's ``feats_stats.npz`` over base utterances of all languages."""
    target = folder / "feats_stats.npz"
    if target.exists():
        return target
    frontend = DefaultFrontend(**OWSM_FRONTEND)
    data = SpokenSentences(size, 1, 0, SHARES)
    (speech, lengths, _, _), _ = next(iter(data))
    frames, frame_lengths = frontend(speech, lengths)
    valid = torch.arange(frames.size(1)) < frame_lengths.unsqueeze(1)
    found = frames[valid].double()
    sums = {"sum": found.sum(0).numpy(), "sum_square": found.square().sum(0).numpy()}
    np.savez(target, count=np.array(len(found)), **sums)
    return target


class SpokenSentences(IterableDataset):
    """An endless stream of pairs of batches: to transcribe, and to tell the languages of.

    The first are sorted by length: ``(speech, lengths, languages, texts)``; the second are pieces
    of one to three languages joined: ``(speech, lengths, spans)`` (:func:`join`).
    """

    def __init__(self, batch_size: int, seed: int, start: int, mix: dict[str, float]) -> None:
        self.batch_size, self.seed, self.start, self.mix = batch_size, seed, start, mix
        self.heard = {c: [s.texts[c] for s in sentences("base", UNTRANSCRIBED)] for c in MIX}
        self.texts = {c: [s.texts[c] for s in sentences("base", n)] for c, (_, n) in MIX.items()}

    def __iter__(self) -> Iterator[tuple[tuple, tuple]]:
        worker = torch.utils.data.get_worker_info()
        draw = np.random.default_rng((self.seed, self.start, worker.id if worker else 0))
        speak = Synthesizer()
        words = {c: sorted({w for t in ts for w in t.split()}) for c, ts in self.texts.items()}
        codes, shares = list(self.mix), list(self.mix.values())
        while True:
            pool = []
            for code in draw.choice(codes, size=8 * self.batch_size, p=shares):
                text = self.texts[code][draw.integers(len(self.texts[code]))]
                if code not in TRACE and draw.random() < 0.25:
                    # Words in no order: what is heard must be read from the sound alone.
                    text = " ".join(draw.choice(words[code], size=draw.integers(2, 7)))
                pool.append((self.speak(speak, text, code, draw), code, text))
            pool.sort(key=lambda item: len(item[0]))
            for b in draw.permutation(8):
                joined = [self.pieces(speak, draw) for _ in range(self.batch_size // 4)]
                yield collate(pool[b * self.batch_size : (b + 1) * self.batch_size]), join(joined)

    def pieces(self, speak: Synthesizer, draw: np.random.Generator) -> list[tuple[np.ndarray, int]]:
        """One to three pieces of at most 4 s, neighbours in different languages, with labels."""
        codes = list(MIX)
        found: list[tuple[np.ndarray, int]] = []
        label = -1
        for _ in range(draw.choice([1, 2, 3], p=[0.5, 0.3, 0.2])):
            shares = np.array([HEARD[c] * (i != label) for i, c in enumerate(codes)])
            label = int(draw.choice(len(codes), p=shares / shares.sum()))
            texts = self.heard[codes[label]]
            text = texts[draw.integers(len(texts))]
            speech = self.speak(speak, text, codes[label], draw, stretch=0.16)
            size = int(draw.uniform(1.0, 4.0) * SAMPLE_RATE)
            first = draw.integers(max(0, len(speech) - size) + 1)
            piece = speech[first : first + size]
            found.append((colour(piece, draw) if draw.random() < 0.5 else piece, label))
        return found

    @staticmethod
    def speak(
        speak: Synthesizer, text: str, code: str, draw: np.random.Generator, stretch: float = 0.10
    ) -> np.ndarray:
        """One utterance: a base variant at any pitch, speed, vocal-tract length and noise."""
        variant = variants("base")[draw.integers(len(variants("base")))]
        voice = Voice("", variant, int(draw.integers(20, 80)), int(draw.integers(120, 200)), "")
        # Played faster or slower: pitch and formants move, which makes voices of one variant many.
        rate = float(np.exp(draw.uniform(-stretch, stretch)))
        speech = soxr.resample(
            speak(text, code, voice), speak.sample_rate * rate, SAMPLE_RATE, quality="MQ"
        )
        speech = np.pad(speech, tuple(draw.integers(0, SAMPLE_RATE // 4, size=2)))
        if draw.random() < 0.5:
            speech = noisy(speech, draw.uniform(8.0, 40.0), draw)
        return (speech * 10 ** draw.uniform(-1.0, 0.1)).astype(np.float32)


def colour(speech: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Another microphone, another throat: up to 9 dB more or less around three frequencies."""
    size = scipy.fft.next_fast_len(len(speech), real=True)
    spectrum = scipy.fft.rfft(speech, size)
    octaves = np.log2(np.linspace(50.0, SAMPLE_RATE / 2, len(spectrum), dtype=np.float32) / 50.0)
    decibels = sum(
        draw.uniform(-9.0, 9.0)
        * np.exp(-(((octaves - draw.uniform(0.0, 7.3)) / draw.uniform(0.3, 1.5)) ** 2))
        for _ in range(3)
    )
    found = scipy.fft.irfft(spectrum * 10 ** (decibels / 20), size)
    return found[: len(speech)].astype(np.float32)


def noisy(speech: np.ndarray, snr_db: float, draw: np.random.Generator) -> np.ndarray:
    """As ``mini_voices.add_noise``, in a fifth of its time, but not to its samples.

    Those are the mini corpus's and must stay; transforms of any length in double precision took
    half of the time that speech takes.
    """
    size = scipy.fft.next_fast_len(len(speech), real=True)
    spectrum = scipy.fft.rfft(draw.standard_normal(size, dtype=np.float32))
    spectrum /= np.maximum(np.arange(len(spectrum), dtype=np.float32), 1) ** draw.uniform(0.0, 1.0)
    noise = scipy.fft.irfft(spectrum, size)[: len(speech)]
    powers = np.mean(speech**2), np.mean(noise**2)
    return speech + noise * np.sqrt(powers[0] / (powers[1] * 10 ** (snr_db / 10) + 1e-12))


def pad(rows: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms ``(batch, samples)`` and lengths ``(batch,)``."""
    lengths = torch.tensor([len(x) for x in rows])
    speech = torch.zeros(len(rows), int(lengths.max()))
    for row, x in zip(speech, rows, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    return speech, lengths


def collate(items: list[tuple[np.ndarray, str, str]]) -> tuple:
    """Utterances to transcribe: ``(speech, lengths, languages, texts)``."""
    speech, lengths = pad([x for x, _, _ in items])
    return speech, lengths, [code for _, code, _ in items], [text for _, _, text in items]


def join(rows: list[list[tuple[np.ndarray, int]]]) -> tuple:
    """Pieces end to end: ``(speech, lengths, spans)``, spans as ``[(label, last sample), …]``."""
    speech, lengths = pad([np.concatenate([x for x, _ in row]) for row in rows])
    spans = []
    for row in rows:
        ends = np.cumsum([len(x) for x, _ in row]).tolist()
        spans.append([(label, end) for (_, label), end in zip(row, ends, strict=True)])
    return speech, lengths, spans


def spec_augment(mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two frequency and two time masks a row of ``(batch, frames, bins)`` (arXiv:1904.08779).

    What is masked becomes the row's mean.
    """
    batch, frames, bins = mel.shape
    counted = (torch.arange(frames, device=mel.device) < lengths.unsqueeze(1)).unsqueeze(2)
    mean = (mel * counted).sum((1, 2), keepdim=True) / (lengths * bins)[:, None, None]
    hidden = torch.zeros(mel.shape, dtype=torch.bool)
    for _ in range(2):
        width = torch.randint(0, 12, (batch, 1))
        first = (torch.rand(batch, 1) * (bins - width)).long()
        index = torch.arange(bins)
        hidden |= ((index >= first) & (index < first + width)).unsqueeze(1)
        width = (torch.rand(batch, 1) * 0.05 * lengths.cpu().unsqueeze(1)).long()
        first = (torch.rand(batch, 1) * (lengths.cpu().unsqueeze(1) - width)).long()
        index = torch.arange(frames)
        hidden |= ((index >= first) & (index < first + width)).unsqueeze(2)
    return torch.where(hidden.to(mel.device), mean, mel), lengths


class LanguageLoss(nn.Module):
    """Cross-entropy of the language, from means over some seconds of the lower layers' frames.

    Means over less than an utterance keep the languages of mixed speech apart.
    """

    seconds = (1.0, 3.0)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, len(MIX))

    def forward(self, encoded: Encoded, lengths: torch.Tensor, spans: list) -> torch.Tensor:
        """The mean over all half-overlapping windows, short and long, that lie in one language.

        Args:
            encoded: Frames ``(batch, frames, dim)``.
            lengths: ``(batch,)`` samples.
            spans: A list a row, ``[(label, last sample), …]``.
        """
        frames = encoded.hidden.size(1)
        label = torch.full((len(spans), frames), -1)
        for row, pieces in enumerate(spans):
            first = 0
            per_sample = int(encoded.lengths[row]) / int(lengths[row])
            for code, end in pieces:
                last = round(end * per_sample)
                label[row, first:last] = code
                first = last
        label, hidden = label.to(encoded.hidden.device), self.norm(encoded.hidden)
        found = []
        for seconds in self.seconds:
            width = min(round(seconds * frames * SAMPLE_RATE / int(lengths.max())), frames)
            of_windows = label.unfold(1, width, width // 2)
            means = hidden.unfold(1, width, width // 2).mean(-1)
            said = of_windows[..., 0]
            pure = (of_windows == of_windows[..., :1]).all(-1) & (said >= 0)
            if bool(pure.any()):
                found.append(F.cross_entropy(self.output(means[pure]).float(), said[pure]))
        return torch.stack(found).mean()


@torch.no_grad()
def start_at_unigrams(model: WhisperBackbone | OwsmBackbone, ctc_layer: nn.Linear) -> None:
    """Let the output layers start from how often a token is said, three quarters blank in CTC's.

    Else the encoder learns this first, as one large vector in all frames: an E-Branchformer, which
    normalises after every block, then forgets what it heard (its frames' spread fell from 0.5 to
    0.04 in 100 steps) and does not come back. Some hundred steps of the language loss alone keep
    the spread up, too.
    """
    counts = torch.full((ctc_layer.out_features,), 0.01)
    for sentence in sentences("base", 2000):
        for code, (share, _) in MIX.items():
            for token in model.tokens.encode(sentence.texts[code]):
                counts[token] += share
    said = counts / counts.sum()
    heard = 0.25 * said
    heard[blank_of(model, ctc_layer)] = 0.75
    ctc_layer.bias.copy_(heard.log())
    if isinstance(model, OwsmBackbone):  # Whisper's output layer has no bias
        said = 0.95 * said
        said[model.tokens.end_id] = 0.05
        model.s2t.decoder.output_layer.bias.copy_(said.log())
        # ESPnet multiplies by the root of the width what torch draws at unit size already.
        model.s2t.decoder.embed[0].weight.div_(math.sqrt(model.dim))


def blank_of(model: WhisperBackbone | OwsmBackbone, ctc_layer: nn.Linear) -> int:
    """CTC's blank: OWSM's own, or one more token than Whisper has."""
    if isinstance(model, OwsmBackbone):
        return model.tokens.blank_id
    return ctc_layer.out_features - 1


def losses(
    model: WhisperBackbone | OwsmBackbone,
    ctc_layer: nn.Linear,
    language: LanguageLoss,
    layer: int,
    batches: tuple[tuple, tuple],
    device: torch.device,
    alone: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention loss (label smoothing 0.1), CTC loss and language loss of a pair of batches.

    With ``alone`` the language loss only; the others are zero.
    """
    (speech, lengths, codes, texts), (mixed, mixed_lengths, spans) = batches
    heard = model.encode_lower(mixed.to(device), mixed_lengths.to(device), layer, spec_augment)
    which = language(heard, mixed_lengths, spans)
    if alone:
        return torch.zeros(()), torch.zeros(()), which
    lower = model.encode_lower(speech.to(device), lengths.to(device), layer, spec_augment)
    encoded = model.encode_upper(lower, layer)
    ids = [model.tokens.encode(text) for text in texts]
    end = model.tokens.end_id
    prompt = model.tokens.prompt(codes)
    longest = max(map(len, ids))
    said = model.tokens.target_prompt  # the end of the prompt is said by OWSM, given to Whisper
    target = torch.full((len(ids), said + longest + 1), -100)
    tokens = torch.full((len(ids), prompt.size(1) + longest), end)
    tokens[:, : prompt.size(1)] = prompt
    target[:, :said] = prompt[:, prompt.size(1) - said :]
    for row, text in enumerate(ids):
        target[row, said : said + len(text) + 1] = torch.tensor([*text, end])
        tokens[row, prompt.size(1) : prompt.size(1) + len(text)] = torch.tensor(text)
    logits = model.decode(tokens.to(device), encoded)[:, prompt.size(1) - said - 1 :]
    attention = F.cross_entropy(
        logits.float().flatten(0, 1),
        target.flatten().to(device),
        ignore_index=-100,
        label_smoothing=0.1,
    )
    ctc = F.ctc_loss(
        ctc_layer(encoded.hidden).float().log_softmax(-1).transpose(0, 1),
        torch.tensor([i for text in ids for i in text], device=device),
        encoded.lengths,
        torch.tensor([len(text) for text in ids], device=device),
        blank=blank_of(model, ctc_layer),
        zero_infinity=True,
    )
    return attention, ctc, which


@torch.no_grad()
def validate(
    model: WhisperBackbone | OwsmBackbone, device: torch.device, size: int = 40
) -> dict[str, float]:
    """Greedy WER a language on unseen voices and sentences (split ``dev``), in percent."""
    model.eval()
    speak, scores = Synthesizer(), {}
    for code in ("hi", "it", "pa", "te"):
        texts = [s.texts[code] for s in sentences("dev", size)]
        people = voices("dev")
        items = [
            (
                speak.at(SAMPLE_RATE, text, code, people[i % len(people)]).astype(np.float32),
                code,
                text,
            )
            for i, text in enumerate(texts)
        ]
        speech, lengths, codes, _ = collate(items)
        lower = model.encode_lower(speech.to(device), lengths.to(device), 0)
        encoded = model.encode_upper(lower, 0)
        found = search(model, encoded, model.tokens.prompt(codes), SearchOptions())
        said = [model.tokens.decode(h.tokens) for h in found]
        scores[code] = round(100 * jiwer.wer(texts, said), 1)
    model.train()
    return scores


def export_whisper(model: WhisperBackbone, folder: Path) -> None:
    """Write the base in fp16, dropout off, with a generation config that forces nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    config = WhisperConfig(**{**model.config.to_dict(), "dropout": 0.0, "dtype": "float16"})
    hf = WhisperForConditionalGeneration(config)
    hf.load_state_dict(model.hf.state_dict())
    hf.generation_config = GenerationConfig.from_model_config(config)
    hf.half().save_pretrained(folder)
    model.tokens.save_pretrained(folder)


def export_owsm(model: OwsmBackbone, folder: Path) -> None:
    """Write the base in fp16, dropout off."""
    config = model.espnet_config or {}
    for part in ("encoder_conf", "decoder_conf"):
        config[part] |= {key: 0.0 for key in config[part] if key.endswith("dropout_rate")}
    model.s2t.half()
    model.save_pretrained(folder)


def main() -> None:
    """Train, with a checkpoint at every validation, and export."""
    parser = get_parser()
    args = parser.parse_args()
    if args.init_dir and args.shape != "whisper":
        parser.error("--init_dir goes on from a Whisper: leave --shape out")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    handlers = [logging.FileHandler(args.output_dir / "train.log"), logging.StreamHandler()]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: WhisperBackbone | OwsmBackbone
    if args.shape == "whisper":
        given = args.init_dir
        model = WhisperBackbone.from_pretrained(str(given)) if given else build_whisper()
        model = model.to(device)
        ctc_layer = nn.Linear(model.dim, model.tokens.end_id + 1).to(device)
    else:
        model = build_owsm(args.output_dir).to(device)
        ctc_layer = model.s2t.ctc.ctc_lo
    start_at_unigrams(model, ctc_layer)
    language = LanguageLoss(model.dim).to(device)
    trained = nn.ModuleList([model, ctc_layer, language])
    body = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01
    )

    def rate(step: int) -> float:
        alone = step < args.language_first
        warm = (step + 1 if alone else step + 1 - args.language_first) / args.warmup
        return min(warm, max(0.0, 1 - step / args.steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint, start = args.output_dir / "checkpoint.pth", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        trained.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["step"]
    size = sum(p.numel() for p in model.parameters())
    logging.info("parameters %d, from step %d", size, start)
    logging.info("options %s", vars(args))
    data = DataLoader(
        SpokenSentences(args.batch_size, args.seed, start, args.mix),
        batch_size=None,
        num_workers=args.num_workers,
        prefetch_factor=8,
    )
    model.train()
    began, sums = time.monotonic(), np.zeros(3)
    for step, batches in enumerate(data, start=start + 1):
        first = step <= args.language_first
        for parameter in body:
            # New layers would else unsettle a finished base.
            parameter.requires_grad_(not (first and args.init_dir))
        with torch.autocast(device.type, torch.bfloat16):
            attention, ctc, which = losses(
                model,
                ctc_layer,
                language,
                args.language_layer,
                batches,
                device,
                alone=first and not args.init_dir,
            )
        optimizer.zero_grad()
        (0.5 * attention + 0.5 * ctc + args.language_weight * which).backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        sums += [attention.item(), ctc.item(), which.item()]
        if not math.isfinite(sums.sum()):
            raise SystemExit(f"step {step}: the loss is not finite")
        if step % 100 == 0:
            minutes, means = (time.monotonic() - began) / 60, (sums / 100).round(3)
            logging.info(
                "step %d attention %.3f ctc %.3f language %.3f minutes %.1f", step, *means, minutes
            )
            sums[:] = 0
        if step % args.eval_steps == 0 or step == args.steps:
            logging.info("step %d dev WER %s", step, json.dumps(validate(model, device)))
            state = {
                "model": trained.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "step": step,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        if step >= args.steps:
            break
    if isinstance(model, WhisperBackbone):
        export_whisper(model, args.export_dir)
    else:
        export_owsm(model, args.export_dir)
    logging.info("wrote %s", args.export_dir)


if __name__ == "__main__":
    main()
