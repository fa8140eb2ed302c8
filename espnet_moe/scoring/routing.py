"""How well the routers decide: accuracy, confusion, calibration, expert usage, cost.

Read from what decoding told of each utterance (``stats.jsonl``): ``language``, the language decided
for; ``route`` with probabilities of ``languages`` and ``experts`` and the ``gates``; ``route_ms``.
Systems without a router have no ``route``, or one of gates alone. The probabilities are those of
the router, before any strategy: ``accuracy`` is of the decision, the calibration error of the
likeliest language.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from espnet_moe.errors import UserError
from espnet_moe.scoring.archive import Archive
from espnet_moe.scoring.comparisons import Bootstrap, paired_difference
from espnet_moe.scoring.error_rates import EditCounts, join_counts, percent
from espnet_moe.scoring.folders import ALL, MIXED
from espnet_moe.scoring.rows import Row, number, percentile
from espnet_moe.scoring.systems import group_of, is_plain, kind_of, sibling

log = logging.getLogger(__name__)

DURATION_BINS = (("< 1 s", 0.0, 1.0), ("1-2 s", 1.0, 2.0), ("2-5 s", 2.0, 5.0))
LAST_BIN = ("> 5 s", 5.0, float("inf"))
CALIBRATION_BINS = 15
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Routes:
    """What was decided for utterances; every array is ``(utterances,)`` or has a row for each.

    Attributes:
        ids: Of the utterances.
        truth: Their languages.
        decided: The languages decided for.
        likeliest: The language of the highest probability; "" where the router told none.
        confidence: That probability; NaN where the router told none.
        sureness: The highest probability of an expert: what strategies look at.
        seconds: Durations; NaN where not known.
        route_ms: Milliseconds that routing took; NaN where not known.
        experts: Names.
        gates: ``(utterances, experts)``.
    """

    ids: tuple[str, ...]
    truth: npt.NDArray[np.str_]
    decided: npt.NDArray[np.str_]
    likeliest: npt.NDArray[np.str_]
    confidence: Floats
    sureness: Floats
    seconds: Floats
    route_ms: Floats
    experts: tuple[str, ...]
    gates: Floats


def read_routes(
    ids: Sequence[str], languages: Sequence[str], stats: dict[str, dict[str, Any]]
) -> Routes | None:
    """Gather what decoding told of utterances.

    Args:
        ids: Of the utterances.
        languages: The true ones.
        stats: An entry of ``stats.jsonl`` by utterance id.

    Returns:
        The decisions; ``None`` where the system has no router.
    """
    entries = [stats.get(utt_id, {}) for utt_id in ids]
    routes = [route_of(entry) for entry in entries]
    told = [route for route in routes if route is not None]
    if not told or len(told) < len(routes):
        return None
    likeliest = [_top(route.get("languages")) for route in told]
    gates = [route.get("gates") or {} for route in told]
    experts = tuple(dict.fromkeys(name for weights in gates for name in weights))
    return Routes(
        ids=tuple(ids),
        truth=np.array(languages, dtype=np.str_),
        decided=np.array([str(entry.get("language", "")) for entry in entries], dtype=np.str_),
        likeliest=np.array([name for name, _ in likeliest], dtype=np.str_),
        confidence=np.array([value for _, value in likeliest]),
        sureness=np.array(
            [_top(route.get("experts") or route.get("languages"))[1] for route in told]
        ),
        seconds=_column(entries, "seconds_audio"),
        route_ms=_column(entries, "route_ms"),
        experts=experts,
        gates=np.array([[float(own.get(name, 0.0)) for name in experts] for own in gates]),
    )


def route_of(entry: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a router told of an utterance; the oracle, which has none, tells gates alone."""
    route = entry.get("route")
    if isinstance(route, dict) and (route.get("languages") or route.get("experts")):
        return route
    return None


def join_routes(parts: Sequence[Routes]) -> Routes:
    """Join the utterances of several sets; an expert that a set never saw has the gate 0 there."""
    experts = tuple(dict.fromkeys(name for part in parts for name in part.experts))
    gates = []
    for part in parts:
        own = np.zeros((len(part.ids), len(experts)))
        own[:, [experts.index(name) for name in part.experts]] = part.gates
        gates.append(own)
    names = ("truth", "decided", "likeliest", "confidence", "sureness", "seconds", "route_ms")
    return Routes(
        ids=tuple(utt_id for part in parts for utt_id in part.ids),
        experts=experts,
        gates=np.concatenate(gates),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names},
    )


def routing_rows(rows: Sequence[Row], archive: Archive) -> list[Row]:
    """Describe the decisions of every system with a router, set by set and over all languages.

    Args:
        rows: The rows of ``results.json``.
        archive: Their decode folders.

    Returns:
        Rows by system, inference tag and set; the set ``all`` pools the sets of one language.
        Code-switched sets have no row: see ``espnet_moe.scoring.codeswitch``.
    """
    found = []
    for system, tag in dict.fromkeys((row["system"], row["inference_tag"]) for row in rows):
        own = [row for row in rows if (row["system"], row["inference_tag"]) == (system, tag)]
        parts: dict[str, Routes] = {}
        for name in dict.fromkeys(row["set"] for row in own if row["language"] != MIXED):
            routes = _routes_of(archive, system, tag, name)
            if routes is not None:
                parts[name] = routes
        plain = [
            parts[n] for n in dict.fromkeys(r["set"] for r in own if is_plain(r)) if n in parts
        ]
        if len(plain) > 1:
            parts[ALL] = join_routes(plain)
        if not parts:
            continue
        share = encoder_share(archive.jobs(system, tag))
        for name, routes in parts.items():
            place = {"system": system, "inference_tag": tag, "set": name}
            found.append({**place, **describe(routes), "encoder_share": share})
    return found


def describe(routes: Routes) -> Row:
    """Return the metrics of decisions.

    Shares and rates are in percent, except the calibration error and probabilities (0 to 1);
    ``usage`` is the share of utterances by the largest gate, ``gates`` the mean gate, and
    ``usage_entropy`` that of ``usage`` in nats (at most ln of the number of experts).
    """
    right = routes.decided == routes.truth
    languages = sorted(set(routes.truth.tolist()))
    decided = sorted(set(routes.decided.tolist()) | set(languages))
    counts = [
        [int(((routes.truth == true) & (routes.decided == other)).sum()) for other in decided]
        for true in languages
    ]
    usage = np.zeros(len(routes.experts))
    if routes.experts:
        usage = np.bincount(routes.gates.argmax(axis=1), minlength=len(routes.experts)) / len(right)
    means = routes.gates.mean(axis=0)
    positive = usage[usage > 0]
    known = ~np.isnan(routes.confidence)
    calibration = calibrate(
        routes.confidence[known], (routes.likeliest == routes.truth)[known], CALIBRATION_BINS
    )
    return {
        "utterances": len(right),
        "accuracy": round(percent(int(right.sum()), len(right)), 2),
        "accuracy_by_duration": _by_duration(routes.seconds, right),
        "confusion": {"languages": languages, "decided": decided, "counts": counts},
        "ece": calibration.pop("ece"),
        "calibration": calibration,
        "usage": dict(zip(routes.experts, usage.round(4).tolist(), strict=True)),
        "gates": dict(zip(routes.experts, means.round(4).tolist(), strict=True)),
        "usage_entropy": round(float(abs(-(positive * np.log(positive)).sum())), 4),
        "route_ms_p50": percentile(_known(routes.route_ms), 50),
        "route_ms_p95": percentile(_known(routes.route_ms), 95),
    }


def calibrate(confidence: Floats, right: npt.NDArray[np.bool_], bins: int) -> Row:
    """Return the expected calibration error and the bins it is made of.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017 (arXiv:1706.04599): bins
    of equal width, each closed above; the gap of accuracy and confidence, weighted by utterances.

    Args:
        confidence: Highest probability of each utterance, ``(utterances,)``.
        right: Whether the likeliest language is the true one, ``(utterances,)``.
        bins: How many.

    Returns:
        ``ece`` (``None`` without utterances), and by bin ``count``, ``confidence``, ``accuracy``.
    """
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, weights=w, minlength=bins) for w in (confidence, right)]
    present = np.maximum(count, 1)
    ece = float(np.abs(sums[0] - sums[1]).sum() / len(right)) if len(right) else None
    return {
        "ece": None if ece is None else round(ece, 4),
        "count": count.tolist(),
        "confidence": (sums[0] / present).round(4).tolist(),
        "accuracy": (sums[1] / present).round(4).tolist(),
    }


def encoder_share(jobs: Sequence[dict[str, Any]]) -> float | None:
    """Return the time of routing in percent of the encoder's; ``None`` where jobs do not tell."""
    pairs = [(number(j.get("route_seconds")), number(j.get("encode_seconds"))) for j in jobs]
    if not pairs or any(route is None or encode is None for route, encode in pairs):
        return None
    encode = sum(encode or 0.0 for _, encode in pairs)
    return round(100 * sum(route or 0.0 for route, _ in pairs) / encode, 2) if encode else None


def low_confidence_rows(rows: Sequence[Row], archive: Archive, draws: Bootstrap) -> list[Row]:
    """Compare soft with hard on the quarter of the utterances that the router is least sure of.

    The utterances are those of all sets of one language, in the order of their highest expert
    probability in the soft system, equal ones by id; the quarter is rounded down.

    Returns:
        A row for each soft system with a hard one beside it: both WERs, and soft less hard.
    """
    found = []
    systems = dict.fromkeys((row["system"], row["inference_tag"]) for row in rows)
    for soft, tag in systems:
        example = {"system": soft, "inference_tag": tag}
        hard = sibling(example, "hard")
        if kind_of(soft) != "soft" or (hard, tag) not in systems:
            continue
        sure: list[tuple[float, str, int]] = []
        edits: list[tuple[EditCounts, EditCounts]] = []
        sizes = 0
        for name in dict.fromkeys(
            r["set"]
            for r in rows
            if (r["system"], r["inference_tag"]) == (soft, tag) and is_plain(r)
        ):
            routes = _routes_of(archive, soft, tag, name)
            pair = _both(archive, soft, hard, tag, name)
            if routes is None or pair is None or np.isnan(routes.sureness).any():
                break
            sure += [
                (float(p), i, sizes + n)
                for n, (p, i) in enumerate(zip(routes.sureness, routes.ids, strict=True))
            ]
            edits.append(pair)
            sizes += len(routes.ids)
        else:
            quarter = sorted(sure)[: sizes // 4]
            if not quarter:
                continue
            picks = np.array(sorted(place for *_, place in quarter), dtype=np.int64)
            both = [join_counts([pair[side] for pair in edits]).select(picks) for side in (0, 1)]
            found.append(
                {
                    "inference_tag": tag,
                    "experts": group_of(example).experts,
                    "soft": soft,
                    "hard": hard,
                    "utterances": len(quarter),
                    "below": quarter[-1][0],
                    "wer_soft": round(both[0].rate, 2),
                    "wer_hard": round(both[1].rate, 2),
                    "difference": paired_difference(both[0], both[1], draws),
                }
            )
    return found


def _routes_of(archive: Archive, system: str, tag: str, name: str) -> Routes | None:
    try:
        ids, languages, _ = archive.all_counts(system, tag, name)
        return read_routes(ids, languages, archive.stats(system, tag, name))
    except UserError as error:
        log.warning("no routing of %s for %s: %s", system, name, error)
        return None


def _both(
    archive: Archive, soft: str, hard: str, tag: str, name: str
) -> tuple[EditCounts, EditCounts] | None:
    try:
        ids, _, counts = archive.all_counts(soft, tag, name)
        hard_ids, _, hard_counts = archive.all_counts(hard, tag, name)
    except UserError as error:
        log.warning("no comparison of %s with %s: %s", soft, hard, error)
        return None
    return (counts, hard_counts) if ids == hard_ids else None


def _by_duration(seconds: Floats, right: npt.NDArray[np.bool_]) -> dict[str, Row]:
    table = {}
    for name, low, high in (*DURATION_BINS, LAST_BIN):
        # The last bin is open, as its name says: five seconds belong to the one before.
        inside = (seconds >= low) & (seconds < high)
        if name == DURATION_BINS[-1][0]:
            inside |= seconds == high
        elif name == LAST_BIN[0]:
            inside &= seconds > low
        count = int(inside.sum())
        accuracy = round(percent(int(right[inside].sum()), count), 2) if count else None
        table[name] = {"utterances": count, "accuracy": accuracy}
    return table


def _top(probabilities: Any) -> tuple[str, float]:
    if not isinstance(probabilities, dict) or not probabilities:
        return "", float("nan")
    name = max(probabilities, key=lambda each: probabilities[each])
    return str(name), float(probabilities[name])


def _column(entries: Sequence[dict[str, Any]], key: str) -> Floats:
    values = [number(entry.get(key)) for entry in entries]
    return np.array([float("nan") if value is None else value for value in values])


def _known(values: Floats) -> list[float | None]:
    return [float(value) for value in values if not np.isnan(value)]
