"""The rows of ``exp/results.json``: one for each system, set and language.

Rates (``wer``, ``cer``, ``ser`` and their intervals) are in percent with two decimals;
``loop_rate`` is a share of 0 to 1; latencies are in milliseconds, ``seconds_audio`` in seconds.
``rtf``, ``peak_memory_mb`` and ``decode_commands`` belong to the system's whole decoding pass,
which mixes sets and languages in a batch, and are the same in each of its rows. ``references`` is
``text``, or says how many utterances had alternatives, of which the best match was taken.
``corpora`` names what the set was drawn from, each with its release where it has any.
"""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from espnet_moe.data.normalize import NORMALIZER
from espnet_moe.scoring.error_rates import (
    Alignment,
    EditCounts,
    bootstrap_interval,
    count_best_edits,
)
from espnet_moe.scoring.folders import ALL, Decoded, References
from espnet_moe.scoring.sclite import write_score_files

TEXT_ONLY = "text"  # what a row's references are where no utterance has alternatives

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoredSet:
    """A system's decoded set with its edits, ready to be written."""

    folder: Path  # exp/<system>/<inference_tag>/<set>
    references: References
    decoded: Decoded
    words: EditCounts
    characters: EditCounts
    word_alignments: list[Alignment]
    character_alignments: list[Alignment]

    def write(self) -> None:
        """Write ``score_wer/`` and ``score_cer/`` into the set's folder."""
        utterances = self.references.utterances
        write_score_files(self.folder / "score_wer", utterances, self.words, self.word_alignments)
        write_score_files(
            self.folder / "score_cer", utterances, self.characters, self.character_alignments
        )


def score_set(folder: Path, references: References, decoded: Decoded) -> ScoredSet:
    """Count the edits of a decoded set.

    Args:
        folder: ``exp/<system>/<inference_tag>/<set>``.
        references: The references.
        decoded: The hypotheses and statistics, in the order of the references.
    """
    texts = [
        (text, *others)
        for text, others in zip(references.texts, references.alternatives, strict=True)
    ]
    words, word_alignments = count_best_edits(texts, decoded.hypotheses, "word")
    characters, alignments = count_best_edits(texts, decoded.hypotheses, "character")
    return ScoredSet(folder, references, decoded, words, characters, word_alignments, alignments)


def make_rows(scored: ScoredSet, resamples: int, seed: int) -> list[Row]:
    """Make a row a language, and one that pools them where there are several.

    Of a set that is to be pooled there is that one only.

    Args:
        scored: The scored set, whose folder is ``<system>/<inference_tag>/<set>``.
        resamples: Bootstrap draws.
        seed: Seed of the draws.
    """
    languages = np.array([utt.language for utt in scored.references.utterances])
    names = sorted(set(languages.tolist()))
    parts = [(name, languages == name) for name in names]
    everything = np.ones(len(languages), dtype=np.bool_)
    if scored.references.pooled and not scored.references.segments:
        parts = [(ALL, everything)]
    elif len(names) > 1:
        parts.append((ALL, everything))
    return [_make_row(scored, name, chosen, resamples, seed) for name, chosen in parts]


def _make_row(
    scored: ScoredSet, language: str, chosen: npt.NDArray[np.bool_], resamples: int, seed: int
) -> Row:
    system, inference_tag, name = scored.folder.parts[-3:]
    words = scored.words.select(chosen)
    characters = scored.characters.select(chosen)
    return {
        "system": system,
        "set": name,
        "language": language,
        "wer": round(words.rate, 2),
        "wer_ci": _interval(words, resamples, seed),
        "cer": round(characters.rate, 2),
        "cer_ci": _interval(characters, resamples, seed),
        "utterances": len(words.errors),
        "words": int(words.lengths.sum()),
        "cor": int(words.correct.sum()),
        "sub": int(words.substitutions.sum()),
        "del": int(words.deletions.sum()),
        "ins": int(words.insertions.sum()),
        "ser": round(words.sentence_rate, 2),
        "chars": int(characters.lengths.sum()),
        "char_cor": int(characters.correct.sum()),
        "char_sub": int(characters.substitutions.sum()),
        "char_del": int(characters.deletions.sum()),
        "char_ins": int(characters.insertions.sum()),
        **_utterance_costs(scored, chosen),
        **_job_costs(scored.decoded.jobs),
        "normalizer": NORMALIZER,
        "references": _references(scored.references, chosen),
        "inference_tag": inference_tag,
        "corpora": list(scored.references.corpora),
        "skipped": list(scored.references.skipped),
    }


def _references(references: References, chosen: npt.NDArray[np.bool_]) -> str:
    several = sum(bool(references.alternatives[row]) for row in np.flatnonzero(chosen))
    if not several:
        return TEXT_ONLY
    noun = "utterance has" if several == 1 else "utterances have"
    return f"best of text and text.alt ({several} {noun} alternatives)"


def _interval(counts: EditCounts, resamples: int, seed: int) -> list[float]:
    low, high = bootstrap_interval(counts.errors, counts.lengths, resamples, seed)
    return [round(low, 2), round(high, 2)]


def _utterance_costs(scored: ScoredSet, chosen: npt.NDArray[np.bool_]) -> Row:
    """Return what the chosen utterances cost: ``None`` where decoding left no statistics."""
    rows = np.flatnonzero(chosen)
    stats = [scored.decoded.stats[row] for row in rows] if scored.decoded.stats else []
    latencies = [number(entry.get("latency_ms")) for entry in stats]
    stops = [entry.get("stop") for entry in stats]
    seconds = [number(entry.get("seconds_audio")) for entry in stats]
    if not stats or None in seconds:
        seconds = [number(scored.references.durations[row]) for row in rows]
    return {
        "latency_ms_p50": percentile(latencies, 50),
        "latency_ms_p95": percentile(latencies, 95),
        "seconds_audio": _total(seconds, 2),
        "loop_rate": round(stops.count("repetition") / len(stops), 4) if stops else None,
    }


def _job_costs(jobs: tuple[Row, ...]) -> Row:
    """Return what the whole decoding pass of a system cost, ``None`` where jobs do not tell."""
    wall = _total([number(job.get("wall_seconds")) for job in jobs])
    audio = _total([number(job.get("audio_seconds")) for job in jobs])
    peak = [number(job.get("peak_memory_mb")) for job in jobs]
    known = [value for value in peak if value is not None]
    return {
        "rtf": round(wall / audio, 4) if wall is not None and audio else None,
        "peak_memory_mb": round(max(known), 1) if known else None,
        "params": _common(jobs, "params"),
        "trainable_params": _common(jobs, "trainable_params"),
        "batch_size": _common(jobs, "batch_size"),
        "beam_size": _common(jobs, "beam_size"),
        "device": _common(jobs, "device"),
        "decode_commands": _commands(jobs),
    }


def _common(jobs: tuple[Row, ...], key: str) -> Any:
    """Return the value all jobs share; several values joined, such as ``cpu, cuda``."""
    values = [job[key] for job in jobs if job.get(key) is not None]
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        return ", ".join(str(value) for value in distinct)
    return distinct[0] if distinct else None


def _commands(jobs: tuple[Row, ...]) -> list[str]:
    """Return the distinct commands of the jobs, with ``JOB`` for the number of the job."""
    commands = []
    for job in jobs:
        command = job.get("command")
        if isinstance(command, list):
            command = shlex.join(str(word) for word in command)
        if command:
            commands.append(re.sub(r"(--job[ =])\d+(?=\s|$)", r"\1JOB", str(command)))
    return list(dict.fromkeys(commands))


def number(value: Any) -> float | None:
    """Return a finite number, and ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def _total(values: list[float | None], decimals: int | None = None) -> float | None:
    """Add up; a total of which a part is unknown is unknown."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return sum(known) if decimals is None else round(sum(known), decimals)


def percentile(values: Sequence[float | None], rank: float) -> float | None:
    """Return a percentile of the known values with two decimals; ``None`` where none is known."""
    known = [value for value in values if value is not None]
    return round(float(np.percentile(known, rank)), 2) if known else None
