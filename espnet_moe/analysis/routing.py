"""What routers decide: gates, usage by language and duration, calibration, switches in time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.analysis.decodings import DecodedSets
from espnet_moe.analysis.record import About, Analysis
from espnet_moe.data.audio import load_audio
from espnet_moe.data.datadir import load_datadir
from espnet_moe.data.extras import Segment
from espnet_moe.data.utterance import SAMPLE_RATE
from espnet_moe.errors import UserError
from espnet_moe.scoring.codeswitch import frame_errors, merged
from espnet_moe.scoring.error_rates import wilson
from espnet_moe.scoring.folders import ALL, read_references, read_stats
from espnet_moe.scoring.routing import (
    CALIBRATION_BINS,
    DURATION_BINS,
    LAST_BIN,
    Routes,
    calibrate,
    join_routes,
    read_routes,
    route_of,
)

GATE_BINS = 20
SPECTROGRAM_WINDOW, SPECTROGRAM_HOP = 0.025, 0.01  # seconds

SOURCES = (
    "Guo et al., On calibration of modern neural networks, arXiv:1706.04599 (reliability diagram)",
    "Wilson, Probable inference, the law of succession, and statistical inference, JASA 22, 1927 "
    "(intervals of shares)",
)


@dataclass(frozen=True)
class Switching:
    """Code-switched decodings to show in time.

    Attributes:
        systems: That decide within an utterance.
        sets: Code-switched sets.
        examples: Utterances of each system and set, at most.
    """

    systems: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    examples: int = 2


def describe_gates(routes: Routes) -> dict[str, Any]:
    """What a router's gates look like, for each true language and all together.

    Returns:
        ``histogram``: by expert the counts of gates in :data:`GATE_BINS` bins over 0 … 1;
        ``languages``: by true language its ``utterances``, by expert the ``mean`` gate and the
        ``largest`` share of utterances in which its gate is the largest, with intervals, and the
        mean ``entropy`` of the gates; ``durations`` and ``calibration`` likewise.
    """
    edges = np.linspace(0, 1, GATE_BINS + 1)
    languages = {
        language: _usage(routes, routes.truth == language)
        for language in sorted(set(routes.truth.tolist()))
    }
    known = ~np.isnan(routes.confidence)
    right = (routes.likeliest == routes.truth)[known]
    bins = calibrate(routes.confidence[known], right, CALIBRATION_BINS)
    counts = [round(a * n) for a, n in zip(bins["accuracy"], bins["count"], strict=True)]
    bins["interval"] = [wilson(k, n) for k, n in zip(counts, bins["count"], strict=True)]
    return {
        "utterances": len(routes.ids),
        "experts": routes.experts,
        "histogram": {
            name: np.histogram(routes.gates[:, e], edges)[0]
            for e, name in enumerate(routes.experts)
        },
        "languages": languages,
        "durations": _by_duration(routes),
        "calibration": {"utterances": int(known.sum()), **bins},
    }


def _usage(routes: Routes, chosen: np.ndarray) -> dict[str, Any]:
    gates, total = routes.gates[chosen], int(chosen.sum())
    largest = np.bincount(gates.argmax(axis=1), minlength=len(routes.experts))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(gates > 0, gates * np.log(gates), 0.0).sum(axis=1)
    right = int((routes.decided == routes.truth)[chosen].sum())
    return {
        "utterances": total,
        "mean": dict(zip(routes.experts, gates.mean(axis=0), strict=True)),
        "largest": {
            name: {"share": largest[e] / total, "interval": wilson(int(largest[e]), total)}
            for e, name in enumerate(routes.experts)
        },
        "entropy": float(entropy.mean()),
        "accuracy": {"share": right / total, "interval": wilson(right, total)},
    }


def _by_duration(routes: Routes) -> dict[str, Any]:
    """Usage by duration, in the bins of stage 11."""
    found = {}
    for name, low, high in (*DURATION_BINS, LAST_BIN):
        # As in stage 11: a bin ends before its upper end, but five seconds belong to "2-5 s".
        closed = name == DURATION_BINS[-1][0]
        above = routes.seconds > low if name == LAST_BIN[0] else routes.seconds >= low
        inside = above & (routes.seconds <= high if closed else routes.seconds < high)
        found[name] = _usage(routes, inside) if inside.any() else {"utterances": 0}
    return found


def spectrogram(speech: np.ndarray) -> np.ndarray:
    """Power in dB below the loudest, ``(frequencies, frames)``: 25 ms Hann windows every 10 ms."""
    from scipy.signal import ShortTimeFFT
    from scipy.signal.windows import hann

    window = hann(round(SPECTROGRAM_WINDOW * SAMPLE_RATE), sym=False)
    transform = ShortTimeFFT(window, round(SPECTROGRAM_HOP * SAMPLE_RATE), SAMPLE_RATE)
    power = transform.spectrogram(speech.astype(np.float64))
    decibels = 10 * np.log10(np.maximum(power / max(float(power.max()), 1e-20), 1e-8))
    return np.asarray(decibels, dtype=np.float16)


ABOUT = About(
    name="routing",
    title="Decisions of the routers",
    what="Which experts get which speech, how surely, and how rightly?",
    method=(
        "From the route that decoding saved of every utterance. Usage: mean gate, and share of "
        "utterances whose largest gate is the expert's. Calibration: utterances in 15 bins by "
        "the likeliest language's probability, before any strategy, against the share that is "
        "right. Intervals: 95 %, Wilson's. Examples in time: decided stretches of a language, "
        "as saved, beside those spoken. Of a frame-level system with hard gates (the default) and "
        "experts by language they are its gates: every frame goes to its stretch's expert. A frame "
        "error is the share of 20 ms frames of the wrong language."
    ),
    sources=SOURCES,
    units={
        "mean": "gate, 0 to 1",
        "share": "of utterances, 0 to 1",
        "entropy": "nats, mean over utterances",
        "histogram": f"utterances in {GATE_BINS} bins of the gate, 0 to 1",
        "spoken": "start and end in seconds, language",
        "frame_error": "percent",
    },
)


def routing(which: DecodedSets, switching: Switching | None = None, seed: int = 0) -> Analysis:
    """Describe the decisions of every system with a router.

    Args:
        which: Decodings of sets of one language each.
        switching: Code-switched ones, to show in time; ``None`` shows none.
        seed: Of the draw of examples.
    """
    missing: dict[str, str] = {}
    systems, sets = which.named()
    found = {}
    for system in systems:
        parts = {}
        for name in sets:
            try:
                routes = _routes(which, system, name)
            except UserError as error:
                missing[f"{system} on {name}"] = str(error)
                continue
            if routes is None:
                missing[system] = "no router decided: its gates were known"
                continue
            parts[name] = routes
        if len(parts) > 1:
            parts[ALL] = join_routes(list(parts.values()))
        if parts:
            found[system] = {name: describe_gates(routes) for name, routes in parts.items()}
    examples: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    if switching is None or not switching.systems or not switching.sets:
        missing["in_time"] = "no code-switched sets and systems were given"
    else:
        examples, arrays = _in_time(which, switching, missing, seed)
    if not found and not examples:
        raise UserError("nothing to analyse: " + "; ".join(f"{k}: {v}" for k, v in missing.items()))
    return Analysis(
        ABOUT,
        results={"systems": found, "in_time": examples},
        options={"inference_tag": which.inference_tag, "seed": seed},
        not_available=missing,
        arrays=arrays,
    )


def _routes(which: DecodedSets, system: str, name: str) -> Routes | None:
    references = read_references(which.data / name)
    stats = read_stats(which.exp / system / which.inference_tag / name / "logdir")
    if not stats:
        raise UserError("it left no stats.jsonl: decode the set first")
    ids = [utt.utt_id for utt in references.utterances]
    return read_routes(ids, [utt.language for utt in references.utterances], stats)


def _in_time(
    which: DecodedSets, switching: Switching, missing: dict[str, str], seed: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Utterances with what was decided when; the same ones of a set for every system."""
    rows: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for name in switching.sets:
        try:
            data = load_datadir(which.data / name)
        except UserError as error:
            missing[name] = str(error)
            continue
        spoken = {key: merged(parts) for key, parts in data.segments.items()}
        if not spoken:
            missing[name] = "it has no utt2segments: nobody says which language is spoken when"
            continue
        several = sorted(key for key, parts in spoken.items() if len(parts) > 1) or sorted(spoken)
        order = np.random.default_rng(seed).permutation(len(several))
        chosen = [several[i] for i in order[: switching.examples]]
        audio = {utt.utt_id: utt.audio for utt in data.utterances}
        for system in switching.systems:
            logdir = which.exp / system / which.inference_tag / name / "logdir"
            stats = read_stats(logdir)
            told = [key for key in chosen if _decided(stats.get(key, {}))]
            if not told:
                missing[f"{system} on {name}"] = "it saved no stretches in time"
            for key in told:
                decided = _decided(stats[key])
                wrong, frames = frame_errors(spoken[key], decided)
                rows.append(
                    {
                        "set": name,
                        "system": system,
                        "utt_id": key,
                        "spoken": _told(spoken[key]),
                        "decided": _told(decided),
                        "frames": frames,
                        "frame_error": 100 * wrong / frames,
                    }
                )
                if key not in arrays:
                    arrays[key] = spectrogram(load_audio(Path(audio[key])))
    return rows, arrays


def _decided(entry: Mapping[str, Any]) -> list[Segment]:
    route = route_of(dict(entry)) or {}
    segments: Sequence[Any] = route.get("segments") or ()
    return merged([Segment(float(a), float(b), str(language)) for a, b, language in segments])


def _told(segments: Sequence[Segment]) -> list[list[Any]]:
    return [[s.start, s.end, s.language] for s in segments]
