"""Decode whole test sets: utterances of all sets sorted by duration, mixed in the batches."""

import json
import logging
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.config import ConfigError
from espnet_moe.data.audio import SAMPLE_RATE, load_audio
from espnet_moe.data.datadir import read_datadir
from espnet_moe.data.utterance import Utterance
from espnet_moe.decoding.search import Hypothesis, SearchOptions, search
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.files import atomic
from espnet_moe.routing.oracle import OracleRouter

SYSTEMS = ("baseline", "oracle")


@dataclass(frozen=True)
class DecodeOptions:
    """Options of a decode, the search's among them.

    Attributes:
        batch_size: Utterances decoded at once.
        beam_size, max_tokens, length_penalty, repetition_limit: See
            :class:`espnet_moe.decoding.search.SearchOptions`.
    """

    batch_size: int = 16
    beam_size: int = 1
    max_tokens: int = 0
    length_penalty: float = 1.0
    repetition_limit: int = 4

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is at least 1, not {self.batch_size}")
        self.search()

    def search(self) -> SearchOptions:
        """The search's share."""
        return SearchOptions(
            self.beam_size, self.max_tokens, self.length_penalty, self.repetition_limit
        )


@dataclass(frozen=True)
class Decoded:
    """What came of one utterance.

    Attributes:
        text: Transcript.
        hypothesis: Tokens, score, why it ended.
        latency: Seconds from the waveform in memory to the text, of the batch it was in.
    """

    text: str
    hypothesis: Hypothesis
    latency: float


class Decoder:
    """A backbone with or without experts, and how to decode with it.

    Args:
        backbone: On its device, in evaluation mode.
        experts: The experts inside it; ``None`` decodes with the backbone alone.
        options: Batch size and search.
    """

    def __init__(
        self, backbone: WhisperBackbone, experts: ExpertSet | None, options: DecodeOptions
    ) -> None:
        self.backbone, self.experts, self.options = backbone.eval(), experts, options
        self.router = OracleRouter()

    @torch.inference_mode()
    def __call__(self, speech: Sequence[np.ndarray], languages: Sequence[str]) -> list[Decoded]:
        """Decode a batch; languages may differ from row to row.

        Args:
            speech: Waveforms ``(samples,)`` at 16 kHz.
            languages: Of each; they choose the prompt and, in the oracle system, the expert.
        """
        began, device = time.perf_counter(), self.backbone.device
        lengths = torch.tensor([len(x) for x in speech], device=device)
        padded = torch.zeros(len(speech), max(map(len, speech)))
        for row, x in zip(padded, speech, strict=True):
            row[: len(x)] = torch.from_numpy(x)
        gates = self._gates(languages, device)
        # The oracle needs no look at the encoder: all of it runs with the gates in force.
        with use_gates(gates):
            lower = self.backbone.encode_lower(padded.to(device), lengths, 0)
            encoded = self.backbone.encode_upper(lower, 0)
        prompts = self.backbone.tokens.prompt(languages)
        found = search(self.backbone, encoded, prompts, self.options.search(), gates)
        texts = [self.backbone.tokens.decode(h.tokens) for h in found]
        latency = time.perf_counter() - began
        return [Decoded(t, h, latency) for t, h in zip(texts, found, strict=True)]

    def require(self, languages: Sequence[str]) -> None:
        """Check before hours of decoding that every language has a token and an expert.

        Raises:
            UserError: Naming those that have none.
        """
        self.backbone.tokens.prompt(languages)
        if self.experts is not None and (
            missing := sorted(set(languages) - set(self.experts.names))
        ):
            raise ConfigError(
                f"no expert for language(s) {', '.join(missing)}; "
                f"experts: {' '.join(self.experts.names)}"
            )

    def _gates(self, languages: Sequence[str], device: torch.device) -> Gates | None:
        if self.experts is None:
            return None
        return self.router.gates(languages, self.experts.names, device)

    def parameters(self) -> tuple[int, int]:
        """Number of parameters of backbone and experts together, and of the experts."""
        own = sum(p.numel() for p in self.experts.parameters()) if self.experts else 0
        return sum(p.numel() for p in self.backbone.parameters()), own


@dataclass(frozen=True)
class _Item:
    """An utterance and the set it is decoded for."""

    set: str
    utterance: Utterance


def batches(items: Sequence[_Item], batch_size: int, job: int, num_jobs: int) -> list[list[_Item]]:
    """The batches of one job: longest first, alike in duration, dealt out in turn.

    Raises:
        ConfigError: For a job that is not in 1..num_jobs.
    """
    if not 1 <= job <= num_jobs:
        raise ConfigError(f"--job {job} is not in 1..{num_jobs} (--num_jobs)")

    def rank(item: _Item) -> tuple[float, str, str]:
        return -(item.utterance.duration or 0.0), item.utterance.utt_id, item.set

    ordered = sorted(items, key=rank)
    cut = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return cut[job - 1 :: num_jobs]


def decode_sets(
    decoder: Decoder,
    folders: Sequence[str | Path],
    output: str | Path,
    facts: Mapping[str, Any],
    job: int = 1,
    num_jobs: int = 1,
) -> None:
    """Decode test sets in one pass and write what scoring reads.

    Args:
        decoder: What decodes.
        folders: Data directories; their names become the sets' names.
        output: ``exp/<system>/<inference_tag>``; see :mod:`espnet_moe.scoring.folders`.
        facts: What else the job's JSON tells (command, backbone, experts).
        job: This job, from 1.
        num_jobs: How many jobs share the sets.
    """
    output = Path(output)
    names = [Path(f).name for f in folders]
    if len(set(names)) < len(names):
        raise ConfigError(f"--data names sets of the same name: {', '.join(sorted(names))}")
    items = [
        _Item(name, utt)
        for name, folder in zip(names, folders, strict=True)
        for utt in read_datadir(folder)
    ]
    decoder.require(sorted({item.utterance.language for item in items}))
    share = batches(items, decoder.options.batch_size, job, num_jobs)
    if share:
        # The first call of a process sets up libraries: it is not timed.
        decoder([np.zeros(SAMPLE_RATE, dtype=np.float32)], [share[0][0].utterance.language])
    lines: dict[str, list[str]] = {name: [] for name in names}
    stats: dict[str, list[str]] = {name: [] for name in names}
    wall = audio = 0.0
    bar = tqdm(
        total=sum(map(len, share)), desc=f"decode {job}/{num_jobs}", disable=None, unit="utt"
    )
    for batch in share:
        speech = [load_audio(item.utterance.audio) for item in batch]
        found = decoder(speech, [item.utterance.language for item in batch])
        wall += found[0].latency
        audio += sum(map(len, speech)) / SAMPLE_RATE
        for item, x, one in zip(batch, speech, found, strict=True):
            lines[item.set].append(f"{item.utterance.utt_id} {one.text}\n")
            stats[item.set].append(_stats(item.utterance, x, one))
        bar.update(len(batch))
    bar.close()
    for name in names:
        folder = output / name / "logdir" / f"output.{job}"
        _write(folder / "text", sorted(lines[name], key=lambda s: s.split(" ", 1)[0].encode()))
        _write(folder / "stats.jsonl", stats[name])
    params, own = decoder.parameters()
    report = {
        **facts,
        "num_jobs": num_jobs,
        "wall_seconds": round(wall, 4),
        "audio_seconds": round(audio, 4),
        "peak_memory_mb": round(peak_memory_mb(decoder.backbone.device), 1),
        "params": params,
        "trainable_params": own,
        "device": str(decoder.backbone.device),
        "batch_size": decoder.options.batch_size,
        "beam_size": decoder.options.beam_size,
    }
    _write(output / "logdir" / f"output.{job}.json", [json.dumps(report, indent=2) + "\n"])
    rate = wall / audio if audio else 0.0
    logging.info("%d utterances, real-time factor %.4f", sum(map(len, share)), rate)


def _stats(utt: Utterance, speech: np.ndarray, one: Decoded) -> str:
    found = one.hypothesis
    row = {
        "utt_id": utt.utt_id,
        "seconds_audio": round(len(speech) / SAMPLE_RATE, 4),
        "latency_ms": round(1000 * one.latency, 3),
        "score": round(found.score, 6),
        "tokens": len(found.tokens),
        "stop": found.stop,
    }
    return json.dumps(row) + "\n"


def _write(path: Path, lines: Iterator[str] | Sequence[str]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, in MiB: the GPU's where one is used, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
