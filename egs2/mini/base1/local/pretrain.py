#!/usr/bin/env python3
"""Pre-train the Whisper-shaped base of the mini recipes, from synthetic speech made on the way.

English, Italian and Hindi with a trace of Punjabi and Telugu; sentences and voices of the split
``base``, which no recipe split contains. Attention and CTC losses together: CTC is a training aid
and its layer is thrown away. Interrupted, the next call goes on from the last checkpoint.
"""

import argparse
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jiwer
import numpy as np
import soxr
import torch
import torch.nn.functional as F
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

from espnet_moe.backbones.features import SAMPLE_RATE
from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.backbones.whisper_tokens import WhisperTokens, special_tokens
from espnet_moe.data.mini_text import sentences
from espnet_moe.data.mini_voices import Synthesizer, Voice, add_noise, variants, voices
from espnet_moe.decoding.search import SearchOptions, search

# Share of training utterances a language, and how many different sentences it may use.
MIX = {
    "it": (0.47, 10_000),
    "hi": (0.37, 10_000),
    "en": (0.10, 6_000),
    "pa": (0.03, 60),
    "te": (0.03, 60),
}
TRACE = ("pa", "te")


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="checkpoints and log")
    parser.add_argument("--export_dir", type=Path, required=True, help="the finished base (fp16)")
    parser.add_argument("--steps", type=int, default=4600, help="optimiser steps in all")
    parser.add_argument("--batch_size", type=int, default=32, help="utterances a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=500, help="steps of linear warm-up")
    parser.add_argument("--seed", type=int, default=0, help="of data, weights and dropout")
    parser.add_argument("--eval_steps", type=int, default=500, help="steps between validations")
    parser.add_argument("--num_workers", type=int, default=1, help="processes that make speech")
    return parser


def train_tokenizer() -> WhisperTokenizer:
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
    return whisper


def build_model(tokenizer: WhisperTokenizer) -> WhisperBackbone:
    """A 3 M-parameter Whisper: 4 encoder layers, 2 decoder layers, width 160."""
    tokens = WhisperTokens(tokenizer)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
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


class SpokenSentences(IterableDataset):
    """An endless stream of length-sorted batches ``(speech, lengths, languages, texts)``."""

    def __init__(self, batch_size: int, seed: int, start: int) -> None:
        self.batch_size, self.seed, self.start = batch_size, seed, start
        self.texts = {
            code: [s.texts[code] for s in sentences("base", size)]
            for code, (_, size) in MIX.items()
        }

    def __iter__(self) -> Iterator[tuple]:
        worker = torch.utils.data.get_worker_info()
        draw = np.random.default_rng((self.seed, self.start, worker.id if worker else 0))
        speak = Synthesizer()
        words = {c: sorted({w for t in ts for w in t.split()}) for c, ts in self.texts.items()}
        codes, shares = list(MIX), [share for share, _ in MIX.values()]
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
                yield collate(pool[b * self.batch_size : (b + 1) * self.batch_size])

    @staticmethod
    def speak(speak: Synthesizer, text: str, code: str, draw: np.random.Generator) -> np.ndarray:
        """One utterance: a base variant at any pitch, speed, vocal-tract length and noise."""
        variant = variants("base")[draw.integers(len(variants("base")))]
        voice = Voice("", variant, int(draw.integers(20, 80)), int(draw.integers(120, 200)), "")
        # Played faster or slower: pitch and formants move, which makes voices of one variant many.
        stretch = float(np.exp(draw.uniform(-0.10, 0.10)))
        speech = soxr.resample(
            speak(text, code, voice), speak.sample_rate * stretch, SAMPLE_RATE, quality="MQ"
        )
        speech = np.pad(speech, tuple(draw.integers(0, SAMPLE_RATE // 4, size=2)))
        if draw.random() < 0.5:
            speech = add_noise(speech, draw.uniform(8.0, 40.0), draw)
        return (speech * 10 ** draw.uniform(-1.0, 0.1)).astype(np.float32)


def collate(items: list[tuple[np.ndarray, str, str]]) -> tuple:
    """Pad waveforms: ``(batch, samples)``, lengths ``(batch,)``, languages, texts."""
    lengths = torch.tensor([len(x) for x, _, _ in items])
    speech = torch.zeros(len(items), int(lengths.max()))
    for row, (x, _, _) in zip(speech, items, strict=True):
        row[: len(x)] = torch.from_numpy(x)
    return speech, lengths, [code for _, code, _ in items], [text for _, _, text in items]


def spec_augment(mel: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Two frequency masks and two time masks a row (Park et al., arXiv:1904.08779)."""
    batch, bins, frames = mel.shape
    mel = mel.clone()
    for _ in range(2):
        width = torch.randint(0, 12, (batch, 1))
        first = (torch.rand(batch, 1) * (bins - width)).long()
        index = torch.arange(bins)
        hidden = (index >= first) & (index < first + width)
        mel.masked_fill_(hidden.unsqueeze(2).to(mel.device), 0.0)
        width = (torch.rand(batch, 1) * 0.05 * lengths.cpu().unsqueeze(1)).long()
        first = (torch.rand(batch, 1) * (lengths.cpu().unsqueeze(1) - width)).long()
        index = torch.arange(frames)
        hidden = (index >= first) & (index < first + width)
        mel.masked_fill_(hidden.unsqueeze(1).to(mel.device), 0.0)
    return mel


def losses(
    model: WhisperBackbone, ctc_layer: nn.Linear, batch: tuple, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention loss (label smoothing 0.1) and CTC loss of a batch."""
    speech, lengths, codes, texts = batch
    mel, mel_lengths = model.log_mel(speech.to(device), lengths.to(device))
    if model.training:
        mel = spec_augment(mel, mel_lengths)
    depth = model.num_encoder_layers
    encoded = model.encode_upper(model.encode_features(mel, mel_lengths, depth), depth)
    ids = [model.tokens.encode(text) for text in texts]
    end = model.tokens.end_id
    prompt = model.tokens.prompt(codes)
    longest = max(map(len, ids))
    target = torch.full((len(ids), longest + 1), -100)
    tokens = torch.full((len(ids), prompt.size(1) + longest), end)
    tokens[:, : prompt.size(1)] = prompt
    for row, text in enumerate(ids):
        target[row, : len(text) + 1] = torch.tensor([*text, end])
        tokens[row, prompt.size(1) : prompt.size(1) + len(text)] = torch.tensor(text)
    logits = model.decode(tokens.to(device), encoded)[:, prompt.size(1) - 1 :]
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
        blank=ctc_layer.out_features - 1,
        zero_infinity=True,
    )
    return attention, ctc


@torch.no_grad()
def validate(model: WhisperBackbone, device: torch.device, size: int = 40) -> dict[str, float]:
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


def export(model: WhisperBackbone, folder: Path) -> None:
    """Write the base in fp16, dropout off, with a generation config that forces nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    config = WhisperConfig(**{**model.config.to_dict(), "dropout": 0.0, "dtype": "float16"})
    hf = WhisperForConditionalGeneration(config)
    hf.load_state_dict(model.hf.state_dict())
    hf.generation_config = GenerationConfig.from_model_config(config)
    hf.half().save_pretrained(folder)
    model.tokens.save_pretrained(folder)


def main() -> None:
    """Train, with a checkpoint at every validation, and export."""
    args = get_parser().parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    handlers = [logging.FileHandler(args.output_dir / "train.log"), logging.StreamHandler()]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(train_tokenizer()).to(device)
    ctc_layer = nn.Linear(model.config.d_model, model.tokens.end_id + 1).to(device)
    both = nn.ModuleList([model, ctc_layer])
    optimizer = torch.optim.AdamW(
        both.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01
    )

    def rate(step: int) -> float:
        return min((step + 1) / args.warmup, max(0.0, 1 - step / args.steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint, start = args.output_dir / "checkpoint.pth", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        both.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["step"]
    size = sum(p.numel() for p in model.parameters())
    logging.info("parameters %d, vocabulary %d, from step %d", size, model.config.vocab_size, start)
    logging.info("options %s", vars(args))
    data = DataLoader(
        SpokenSentences(args.batch_size, args.seed, start),
        batch_size=None,
        num_workers=args.num_workers,
        prefetch_factor=8,
    )
    model.train()
    began, sums = time.monotonic(), np.zeros(2)
    for step, batch in enumerate(data, start=start + 1):
        with torch.autocast(device.type, torch.bfloat16):
            attention, ctc = losses(model, ctc_layer, batch, device)
        optimizer.zero_grad()
        (0.5 * attention + 0.5 * ctc).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        sums += [attention.item(), ctc.item()]
        if not math.isfinite(sums.sum()):
            raise SystemExit(f"step {step}: the loss is not finite")
        if step % 100 == 0:
            minutes, (att, blank) = (time.monotonic() - began) / 60, sums / 100
            logging.info("step %d attention %.3f ctc %.3f minutes %.1f", step, att, blank, minutes)
            sums[:] = 0
        if step % args.eval_steps == 0 or step == args.steps:
            logging.info("step %d dev WER %s", step, json.dumps(validate(model, device)))
            state = {
                "model": both.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "step": step,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        if step >= args.steps:
            break
    export(model, args.export_dir)
    logging.info("wrote %s", args.export_dir)


if __name__ == "__main__":
    main()
