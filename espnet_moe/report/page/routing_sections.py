"""The sections on routers and on code-switched sets."""

from collections.abc import Sequence

from espnet_moe.report.page.blocks import Heading, Section, Text
from espnet_moe.report.page.charts import Confusions, Reliability, confusion, diagram
from espnet_moe.report.page.experiment import Experiment
from espnet_moe.report.page.tables import (
    COUNTED,
    ONE_RUN,
    Cell,
    Column,
    PageTable,
    minus,
    number,
    share,
    words,
)
from espnet_moe.report.summary import Row, labels
from espnet_moe.scoring.folders import ALL, MIXED

_TOTALS = "results.json keeps totals over all frames, which are not independent of each other"
_TIMES = "a percentile of the switches detected; results.json keeps no more of them"


def routing(found: Experiment) -> Section:
    """What routers decide, how rightly, how surely, at what cost."""
    section = Section("routing", "Routing")
    rows = found.results.get("routing") or []
    counts = [entry["count"] for entry in found.results.get("experts") or []]
    if not rows:
        one = bool(counts) and max(counts) < 2
        why = "there is one expert: nothing to choose from" if one else "no system with a router"
        found.lacks("routing", "routing", why)
        return section
    # Of all sets together, where there are several.
    pooled: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["system"], row["inference_tag"])
        if key not in pooled or row["set"] == ALL:
            pooled[key] = row
    whole = _different(list(pooled.values()))
    section.add(_routers(found))
    section.add(
        Text(
            "Accuracy is the share of utterances for which the language decided is the one spoken. "
            "Its intervals are Wilson's. 'all' pools the sets of one language."
        ),
        _decisions(rows),
        Heading("What is taken for what", "routing-confusion"),
        Confusions(
            "Rows: spoken; columns: decided; shade: share of the row. Systems that decide alike "
            "are shown once.",
            tuple(confusion(name, row["confusion"]) for name, row in whole),
        ),
    )
    sure = [(name, row) for name, row in whole if row["ece"] is not None]
    if sure:
        section.add(
            Heading("Calibration", "routing-calibration"),
            Reliability(
                "Across: the likeliest language's probability; up: the share of utterances for "
                "which it is right, with Wilson's 95 % intervals; a dot's area goes with its "
                "utterances; a calibrated router is on the diagonal.",
                tuple(diagram(name, row["calibration"]) for name, row in sure),
            ),
        )
    section.add(
        Heading("By duration", "routing-duration"),
        _durations([row for _, row in whole], [name for name, _ in whole]),
        Heading("Which experts are used", "routing-usage"),
        _usage(list(pooled.values())),
        _least_sure(found),
    )
    return section


def _different(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Systems that differ in what they decide; one of each kind, under all their names."""
    groups: list[tuple[list[str], Row]] = []
    for name, row in zip(labels(rows), rows, strict=True):
        for names, other in groups:
            if all(row[key] == other[key] for key in ("set", "confusion", "calibration")):
                names.append(name)
                break
        else:
            groups.append(([name], row))
    return [(_of_set(", ".join(names), row), row) for names, row in groups]


def _of_set(name: str, row: Row) -> str:
    """Name a system with the set that its row is of, where that is not all of them."""
    return name if row["set"] == ALL else f"{name} ({row['set']})"


def _routers(found: Experiment) -> PageTable | None:
    routers = found.results.get("routers") or []
    lines = []
    for router in routers:
        metrics = router["metrics"]
        language = metrics.get("language") or {}
        right = sum(
            counts.get(name, 0) for name, counts in (language.get("confusion") or {}).items()
        )
        lines.append(
            (
                words(router["name"]),
                words(router["network"]),
                number(router["layer"], 0),
                number(router["temperature"], 3),
                number(language.get("utterances"), 0),
                share(right, int(language.get("utterances") or 0)),
                number(language.get("accuracy_before"), 2),
                number(language.get("ece"), 4),
                number(language.get("ece_before"), 4),
                number(metrics.get("loss"), 4),
                words(", ".join(router["collapsed"])),
            )
        )
    columns = (
        *(Column("router"), Column("network")),
        *(Column(title, COUNTED) for title in ("layer", "temperature", "dev utterances")),
        Column("dev accuracy %"),
        Column("before calibration", "router.json keeps none"),
        *(Column(t, "router.json keeps none") for t in ("dev ECE", "before calibration")),
        Column("dev loss", "the trainer keeps the epoch's mean alone"),
        Column("hardly ever chosen"),
    )
    if not lines:
        return None
    caption = "Routers, and how they do on the development sets, by which they are calibrated."
    return PageTable("routers", caption, columns, tuple(lines))


def _decisions(rows: Sequence[Row]) -> PageTable:
    lines = []
    for name, row in zip(labels(rows), rows, strict=True):
        right = round(row["accuracy"] / 100 * row["utterances"])
        lines.append(
            (
                words(name),
                words(row["set"]),
                number(row["utterances"], 0),
                share(right, row["utterances"], 2),
                number(row["ece"], 4),
                number(row["usage_entropy"], 4),
                number(row["route_ms_p50"]),
                number(row["route_ms_p95"]),
                number(row["encoder_share"]),
            )
        )
    columns = (
        *(Column("system"), Column("set"), Column("utterances", COUNTED), Column("accuracy %")),
        Column("ECE", "see the bins it is made of, with intervals, under Calibration"),
        Column("usage entropy, nats", "a summary of the usage below"),
        *(
            Column(title, ONE_RUN)
            for title in ("routing p50 ms", "routing p95 ms", "% of the encoder's time")
        ),
    )
    caption = (
        "Decisions: accuracy, expected calibration error (ECE, 15 bins, 0 to 1), and time of an "
        "utterance in its batch."
    )
    return PageTable("routing", caption, columns, tuple(lines), shown=80)


def _durations(rows: Sequence[Row], names: Sequence[str]) -> PageTable:
    bins = list(rows[0]["accuracy_by_duration"])
    lines = []
    for name, row in zip(names, rows, strict=True):
        cells = []
        for each in bins:
            own = row["accuracy_by_duration"][each]
            count = own["utterances"]
            cells += [
                number(count, 0),
                share(round((own["accuracy"] or 0) / 100 * count), count),
            ]
        lines.append((words(name), *cells))
    columns = [Column("system")]
    for each in bins:
        columns += [Column(f"{each}: utterances", COUNTED), Column(f"{each}: accuracy %")]
    caption = (
        "Accuracy by the duration of the utterance; all sets of one language, if none is named."
    )
    return PageTable("routing-duration-table", caption, tuple(columns), tuple(lines))


def _usage(rows: Sequence[Row]) -> PageTable:
    names = list(dict.fromkeys(name for row in rows for name in row["usage"]))
    lines = []
    for label, row in zip(labels(rows), rows, strict=True):
        total = row["utterances"]
        shares = (
            share(round(row["usage"][n] * total), total) if n in row["usage"] else Cell("–")
            for n in names
        )
        means = (number(row["gates"].get(name), 3) for name in names)
        lines.append((words(_of_set(label, row)), *shares, *means))
    columns = (
        Column("system"),
        *(Column(f"{name}: largest %") for name in names),
        *(Column(f"{name}: mean gate", "results.json keeps the mean alone") for name in names),
    )
    caption = "Share of utterances in which an expert has the largest gate, and its mean gate."
    return PageTable("routing-usage-table", caption, columns, tuple(lines))


def _least_sure(found: Experiment) -> PageTable | None:
    lines = []
    for row in found.results.get("low_confidence") or []:
        own = row["difference"]
        lines.append(
            (
                words(f"{row['soft']} less {row['hard']}"),
                number(row["utterances"], 0),
                number(row["below"], 4),
                number(row["wer_soft"]),
                number(row["wer_hard"]),
                number(own["wer_diff"], 2, own["wer_diff_ci"], row["utterances"]),
            )
        )
    if not lines:
        return None
    paired = "the interval of the difference is the one that tells"
    columns = (
        Column("systems"),
        *(Column(title, COUNTED) for title in ("utterances", "probability up to")),
        *(Column(title, paired) for title in ("WER soft %", "WER hard %")),
        Column("difference, points"),
    )
    caption = "The quarter of the utterances of which the router is least sure."
    return PageTable("least-sure", caption, columns, tuple(lines))


def codeswitch(found: Experiment) -> Section:
    """Utterances in which languages meet."""
    section = Section("codeswitch", "Code-switching")
    rows = found.results.get("codeswitch") or []
    if not rows:
        found.lacks("codeswitch", "code-switching", "no code-switched set is scored")
        return section
    scores = {
        (r["system"], r["inference_tag"], r["set"]): r for r in found.rows if r["language"] == MIXED
    }
    lines = []
    for row, name in zip(rows, labels(rows), strict=True):
        score = scores.get((row["system"], row["inference_tag"], row["set"]), {})
        count = score.get("utterances")
        switches, missed = row.get("switches"), row.get("missed")
        lines.append(
            (
                words(name),
                words(row["set"]),
                number(count, 0),
                number(row["wer"], 2, score.get("wer_ci"), count),
                number(score.get("cer"), 2, score.get("cer_ci"), count),
                number(row.get("frame_error"), 1),
                number(switches, 0),
                Cell("–") if switches is None or missed is None else share(missed, switches),
                number(row.get("false_switches"), 0),
                *(number(row.get(key)) for key in ("latency_p50", "latency_p95", "offset_p50")),
                *(_to_parts(row, which) for which in ("same", "oracle")),
            )
        )
    no_interval = "results.json compares rates of two sets; both rates have intervals of their own"
    columns = (
        *(Column("system"), Column("set"), Column("utterances", COUNTED)),
        *(Column(title) for title in ("WER %", "CER %")),
        Column("wrong frames %", _TOTALS),
        *(Column("switches", COUNTED), Column("missed %"), Column("false", COUNTED)),
        *(Column(t, _TIMES) for t in ("latency p50 s", "latency p95 s", "offset p50 s")),
        *(Column(t, no_interval) for t in ("to own parts %", "to the oracle's parts %")),
    )
    section.add(
        Text(
            "Frames are of 20 ms. A switch is detected by a change to the right language between "
            "the middle of the segment before and the next switch; an early one has the latency 0 "
            "and a negative offset. Parts are the same utterances decoded one by one: the last two "
            "columns are the change of the WER relative to theirs. A system without wrong frames "
            "has no router."
        ),
        PageTable("codeswitch", "Code-switched sets.", columns, tuple(lines)),
    )
    return section


def _to_parts(row: Row, which: str) -> Cell:
    part = row["parts"].get(which)
    if part is None or part["relative"] is None:
        return Cell("–")
    return Cell(minus(f"{part['relative']:+.1f}"), part["relative"], note=f"({part['wer']:.2f})")
