"""Decode whole test sets: utterances of all sets sorted by duration, mixed in the batches."""

import json
import logging
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from espnet_moe.config import ConfigError
from espnet_moe.data.audio import SAMPLE_RATE, load_audio
from espnet_moe.data.datadir import read_datadir
from espnet_moe.data.utterance import Utterance
from espnet_moe.decoding.decoder import Decoded, Decoder
from espnet_moe.files import atomic, remove_leftovers
from espnet_moe.memory import FOR_DECODING, BatchSize, explained


@dataclass(frozen=True)
class _Item:
    """An utterance and the set it is decoded for."""

    set: str
    utterance: Utterance


@dataclass(frozen=True)
class Share:
    """A job's part of the work.

    Attributes:
        job: This job, from 1.
        num_jobs: How many jobs share the sets.
        place: Its number among all jobs that write to the same folder, from 1.
        places: How many these are: more than ``num_jobs`` where sets have bases of their own.
    """

    job: int = 1
    num_jobs: int = 1
    place: int = 1
    places: int = 1

    @classmethod
    def of(cls, job: int, num_jobs: int, place: str | None = None) -> "Share":
        """From what the command line says: ``place`` is ``N/ALL``, by default the job's.

        Raises:
            ConfigError: For a job or place that is not among its number.
        """
        if not 1 <= job <= num_jobs:
            raise ConfigError(f"--job {job} is not in 1..{num_jobs} (--num_jobs)")
        number, slash, places = (place or f"{job}/{num_jobs}").partition("/")
        if not (
            slash and number.isdigit() and places.isdigit() and 1 <= int(number) <= int(places)
        ):
            raise ConfigError(f"--place {place} is not N/ALL, such as 2/4")
        return cls(job, num_jobs, int(number), int(places))


def batches(items: Sequence[_Item], batch_size: int, share: Share) -> list[list[_Item]]:
    """The batches of one job: longest first, alike in duration, dealt out in turn."""

    def rank(item: _Item) -> tuple[float, str, str]:
        return -(item.utterance.duration or 0.0), item.utterance.utt_id, item.set

    ordered = sorted(items, key=rank)
    cut = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return cut[share.job - 1 :: share.num_jobs]


def decode_sets(
    decoder: Decoder,
    folders: Sequence[str | Path],
    output: str | Path,
    facts: Mapping[str, Any],
    share: Share = Share(),
    memberships: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Decode test sets in one pass and write what scoring reads.

    Args:
        decoder: What decodes.
        folders: Data directories; their names become the sets' names.
        output: ``exp/<system>/<inference_tag>``; see :mod:`espnet_moe.scoring.folders`.
        facts: What else the job's JSON tells (command, backbone, experts); wins over what the
            decoder says.
        share: This job's part of the work.
        memberships: Weight by expert by utterance id (oracle for experts that are no languages).

    Raises:
        UserError: For sets of one name, languages or utterances without an expert; before any
            audio is read.
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
    decoder.require(
        sorted({item.utterance.language for item in items}), has_memberships=memberships is not None
    )
    _require_memberships(items, memberships)
    own = batches(items, decoder.options.batch_size, share)
    if own:
        # The first call of a process sets up libraries: it is not timed.
        silence = [np.zeros(SAMPLE_RATE, dtype=np.float32)]
        decoder(silence, *_truth(own[0][:1], memberships))
    lines: dict[str, list[str]] = {name: [] for name in names}
    stats: dict[str, list[str]] = {name: [] for name in names}
    total = _Total()
    title = f"decode {share.place}/{share.places}"
    bar = tqdm(total=sum(map(len, own)), desc=title, disable=None, unit="utt")
    for batch in own:
        speech = [load_audio(item.utterance.audio) for item in batch]
        with explained(_size(batch, speech), FOR_DECODING, str(decoder.backbone.device)):
            found = decoder(speech, *_truth(batch, memberships))
        total.add(speech, found)
        for item, x, one in zip(batch, speech, found, strict=True):
            lines[item.set].append(f"{item.utterance.utt_id} {one.text}\n")
            stats[item.set].append(_stats(item.utterance, x, one))
        bar.update(len(batch))
    bar.close()
    for name in names:
        folder = output / name / "logdir" / f"output.{share.place}"
        remove_leftovers(folder)
        _write(folder / "text", sorted(lines[name], key=lambda s: s.split(" ", 1)[0].encode()))
        _write(folder / "stats.jsonl", stats[name])
    report = {**_decoder_facts(decoder), **facts, "num_jobs": share.places, **total.facts()}
    name = f"output.{share.place}.json"
    _write(output / "logdir" / name, [json.dumps(report, indent=2) + "\n"])
    total.log(sum(map(len, own)))


@dataclass
class _Total:
    """Seconds of a job."""

    wall: float = 0.0
    audio: float = 0.0
    encode: float = 0.0
    route: float = 0.0

    def add(self, speech: Sequence[np.ndarray], found: Sequence[Decoded]) -> None:
        """Count a batch."""
        self.wall += found[0].latency
        self.audio += sum(map(len, speech)) / SAMPLE_RATE
        self.encode += sum(one.encode_seconds for one in found)
        self.route += sum(one.route_seconds for one in found)

    def facts(self) -> dict[str, float]:
        """For the job's JSON."""
        return {
            "wall_seconds": round(self.wall, 4),
            "audio_seconds": round(self.audio, 4),
            "encode_seconds": round(self.encode, 5),
            "route_seconds": round(self.route, 5),
        }

    def log(self, count: int) -> None:
        """Say how fast it was."""
        rate = self.wall / self.audio if self.audio else 0.0
        logging.info("%d utterances, real-time factor %.4f", count, rate)
        if self.encode and self.wall:
            logging.info(
                "encoder %.1f %% of the time; routing %.2f %% of the encoder's, %.3f ms an "
                "utterance",
                100 * self.encode / self.wall,
                100 * self.route / self.encode,
                1000 * self.route / count,
            )


def _size(batch: Sequence[_Item], speech: Sequence[np.ndarray]) -> BatchSize:
    longest = max(range(len(batch)), key=lambda i: len(speech[i]))
    seconds = len(speech[longest]) / SAMPLE_RATE
    return BatchSize(len(batch), batch[longest].utterance.utt_id, seconds)


def _truth(
    batch: Sequence[_Item], memberships: Mapping[str, Mapping[str, float]] | None
) -> tuple[list[str], list[Mapping[str, float]] | None]:
    """Languages and memberships of a batch."""
    languages = [item.utterance.language for item in batch]
    if memberships is None:
        return languages, None
    return languages, [memberships[item.utterance.utt_id] for item in batch]


def _require_memberships(
    items: Sequence[_Item], memberships: Mapping[str, Mapping[str, float]] | None
) -> None:
    """Every utterance has a line in ``utt2experts``."""
    if memberships is None:
        return
    ids = [item.utterance.utt_id for item in items]
    if missing := sorted({utt_id for utt_id in ids if utt_id not in memberships}):
        few = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ConfigError(
            f"--utt2experts has no line for {len(missing)} of {len(ids)} utterances ({few}): "
            "assign experts to these sets too"
        )


def _decoder_facts(decoder: Decoder) -> dict[str, Any]:
    params, own = decoder.parameters()
    return {
        "peak_memory_mb": round(peak_memory_mb(decoder.backbone.device), 1),
        "params": params,
        "trainable_params": own,
        "device": str(decoder.backbone.device),
        "batch_size": decoder.options.batch_size,
        "beam_size": decoder.options.beam_size,
    }


def _stats(utt: Utterance, speech: np.ndarray, one: Decoded) -> str:
    found = one.hypothesis
    row = {
        "utt_id": utt.utt_id,
        "seconds_audio": round(len(speech) / SAMPLE_RATE, 4),
        "latency_ms": round(1000 * one.latency, 3),
        "score": round(found.score, 6),
        "tokens": len(found.tokens),
        "stop": found.stop,
        "language": one.language,
        "encode_ms": round(1000 * one.encode_seconds, 4),
        "route_ms": round(1000 * one.route_seconds, 4),
        **({"route": one.route} if one.route else {}),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(path: Path, lines: Iterator[str] | Sequence[str]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, in MiB: the GPU's where one is used, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
