"""What a mixture is to reach, and whether it does: results against fixed limits."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from espnet_moe.scoring.folders import ALL
from espnet_moe.scoring.rows import Row
from espnet_moe.scoring.systems import ORACLE, Group, group_of, is_plain, kind_of

SEGMENTING = ("frame", "segment")  # systems that decide more than once an utterance
ROUTED = ("hard", "soft", "threshold", "topk", "hierarchical", "joint", *SEGMENTING)
_TESTS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "≤": operator.le,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Value:
    """What was measured: ``None`` where that is no number, such as a switch never detected."""

    value: float | None
    detail: str = ""


@dataclass(frozen=True)
class Findings:
    """The results of the systems of a group."""

    rows: list[Row]
    averages: dict[str, Row]  # by kind of system
    routing: list[Row]
    low_confidence: list[Row]
    codeswitch: list[Row]

    def pooled_routing(self) -> dict[str, Row]:
        """Return the routing over all sets of one language, by kind of system."""
        plain = {(row["system"], row["set"]) for row in self.rows if is_plain(row)}
        found: dict[str, Row] = {}
        for row in self.routing:
            if row["set"] == ALL or (row["system"], row["set"]) in plain:
                found[kind_of(row["system"])] = row  # the pooled row comes last
        return found


@dataclass(frozen=True)
class Target:
    """A limit, and how its value is found.

    Attributes:
        name: Of what is measured.
        test: ``<``, ``≤`` or ``>``.
        limit: In the unit.
        unit: After numbers.
        measure: The values, one for each system that it is asked of; none where not measured.
    """

    name: str
    test: str
    limit: float
    unit: str
    measure: Callable[[Findings], list[Value]]

    def judge(self, found: Findings, group: Group) -> list[Row]:
        """Return ``name``, ``target``, ``value``, ``met`` (``None``: not measured), ``detail``."""
        entry = {"name": self.name, "target": f"{self.test} {self.limit:g} {self.unit}".strip()}
        entry |= group._asdict()
        values = self.measure(found)
        if not values:
            return [{**entry, "value": None, "unit": self.unit, "met": None, "detail": ""}]
        return [
            {
                **entry,
                "value": None if each.value is None else round(each.value, 2),
                "unit": self.unit,
                "met": each.value is not None and _TESTS[self.test](each.value, self.limit),
                "detail": each.detail,
            }
            for each in values
        ]


def _accuracy(found: Findings) -> list[Value]:
    by_kind = found.pooled_routing()
    for kind in ("hard", "soft"):
        if kind in by_kind:
            row = by_kind[kind]
            detail = f"{row['system']}, {row['utterances']} utterances"
            return [Value(row["accuracy"], detail)]
    return []


def _against_oracle(kind: str) -> Callable[[Findings], list[Value]]:
    def measure(found: Findings) -> list[Value]:
        own, oracle = found.averages.get(kind), found.averages.get(ORACLE)
        if own is None or oracle is None or None in (own["wer"], oracle["wer"]):
            return []
        difference = own["against"].get(ORACLE)
        if difference is None or difference["wer_relative"] is None:
            return []
        detail = f"{own['wer']:.2f} against {oracle['wer']:.2f} %"
        return [Value(difference["wer_relative"], detail)]

    return measure


def _joint(found: Findings) -> list[Value]:
    wers = {kind: found.averages[kind]["wer"] for kind in found.averages}
    best = [wers[kind] for kind in ("hard", "soft") if wers.get(kind) is not None]
    if len(best) < 2 or wers.get("joint") is None:
        return []
    detail = f"{wers['joint']:.2f} against {min(best):.2f} %"
    return [Value(wers["joint"] - min(best), detail)]


def _least_sure(found: Findings) -> list[Value]:
    values = []
    for row in found.low_confidence:
        wers = f"{row['wer_soft']:.2f} against {row['wer_hard']:.2f} %"
        detail = f"{wers}, {row['utterances']} utterances"
        values.append(Value(row["wer_soft"] - row["wer_hard"], detail))
    return values


def _inter(found: Findings) -> list[Row]:
    """Return the results of the systems that follow a switch on sets switched between sentences."""
    return [
        row
        for row in found.codeswitch
        if row["set"].endswith("_inter") and kind_of(row["system"]) in SEGMENTING
    ]


def _degradation(found: Findings) -> list[Value]:
    values = []
    for row in _inter(found):
        parts = [row["parts"][which] for which in ("same", "oracle") if which in row["parts"]]
        if not parts or parts[0]["relative"] is None:
            continue
        shown = ", ".join(f"{each['relative']:+.1f} % to {each['system']}" for each in parts)
        detail = f"{row['system']} {row['wer']:.2f} %; {shown} on the parts"
        values.append(Value(parts[0]["relative"], detail))
    return values


def _latency(found: Findings) -> list[Value]:
    values = []
    for row in _inter(found):
        if "switches" not in row:
            continue
        detail = f"{row['system']}, {row['missed']} of {row['switches']} switches missed"
        values.append(Value(row["latency_p50_all"], detail))
    return values


def _worst(key: str) -> Callable[[Findings], list[Value]]:
    def measure(found: Findings) -> list[Value]:
        known = [row for row in found.pooled_routing().values() if row[key] is not None]
        if not known:
            return []
        worst = max(known, key=lambda row: row[key])
        return [Value(worst[key], f"{worst['system']}, the slowest")]

    return measure


TARGETS = (
    Target("router accuracy", ">", 95, "%", _accuracy),
    Target("hard: average WER relative to oracle", "≤", 5, "%", _against_oracle("hard")),
    Target("soft: average WER relative to oracle", "≤", 5, "%", _against_oracle("soft")),
    Target("joint: average WER less the best of hard and soft", "≤", 0, "points", _joint),
    Target("least sure quarter: WER of soft less that of hard", "≤", 0, "points", _least_sure),
    Target("switched between sentences: WER relative to the parts", "≤", 15, "%", _degradation),
    Target("switch detection latency, median", "<", 0.5, "s", _latency),
    Target("routing an utterance, median", "<", 10, "ms", _worst("route_ms_p50")),
    Target("routing in the encoder's time", "<", 2, "%", _worst("encoder_share")),
)


def judge_targets(results: dict[str, Any]) -> list[Row]:
    """Hold the results against the targets, for each group of systems that has a router.

    Args:
        results: ``rows``, ``averages``, ``routing``, ``low_confidence`` and ``codeswitch`` of
            ``results.json``.

    Returns:
        For each target ``name``, ``target``, ``experts`` and ``inference_tag`` (the group),
        ``value``, ``unit``, ``met`` (``None``: not measured) and ``detail``.
    """
    routed = [row for row in results["rows"] if kind_of(row["system"]) in ROUTED]
    judged = []
    for group in dict.fromkeys(group_of(row) for row in routed):
        found = Findings(
            rows=_of(results["rows"], group),
            averages={kind_of(row["system"]): row for row in _of(results["averages"], group)},
            routing=_of(results["routing"], group),
            low_confidence=[
                row
                for row in results["low_confidence"]
                if (row["experts"], row["inference_tag"]) == group
            ],
            codeswitch=_of(results["codeswitch"], group),
        )
        judged += [row for target in TARGETS for row in target.judge(found, group)]
    return judged


def _of(rows: Sequence[Row], group: Group) -> list[Row]:
    return [row for row in rows if group_of(row) == group]
