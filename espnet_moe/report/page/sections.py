"""The sections on sets, systems, experts, cost and targets."""

from collections.abc import Sequence

from espnet_moe.report.mixture import collapse_lines, target_value
from espnet_moe.report.page.blocks import Facts, Heading, Lines, Section, Text, listed
from espnet_moe.report.page.charts import dot_plot
from espnet_moe.report.page.experiment import Experiment, ExpertFacts
from espnet_moe.report.page.tables import (
    COUNTED,
    FEW,
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
from espnet_moe.scoring.systems import BASELINE, ORACLE, PARTS, is_plain, kind_of

_MEAN_WHY = "a mean of sets: the interval of its difference to others is under Significance"
_DEV_WHY = "of the development set; the trainer keeps the epoch's rate alone"


def summary(found: Experiment) -> Section:
    """The systems' word error rates, drawn and as a table."""
    section = Section("summary", "Word error rates")
    rows = [row for row in found.rows if is_plain(row) and row["wer"] is not None]
    if not rows:
        found.lacks("results", "word error rates", "no set of one language is scored")
        return section
    baseline = found.results["baseline"]
    section.add(
        Text(
            "Word error rate (WER) in % of the reference's words, with its 95 % bootstrap interval "
            "over utterances; the sign after it is the change relative to "
            f"{baseline}, and * says that the paired interval of the difference excludes 0. "
            f"† marks, here and below, rates from fewer than {FEW} utterances or switches."
        ),
        dot_plot(rows, baseline, f"Dots: WER, %. Lines: 95 % intervals. Broken line: {baseline}."),
        _rates(found, rows),
    )
    return section


def _rates(found: Experiment, rows: Sequence[Row]) -> PageTable:
    columns = list(dict.fromkeys((row["set"], row["language"]) for row in rows))
    averages = {(a["system"], a["inference_tag"]): a for a in found.results.get("averages", [])}
    table: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    names: dict[tuple[str, str], str] = {}
    for row, name in zip(rows, labels(rows), strict=True):
        key = (row["system"], row["inference_tag"])
        names[key] = name
        table.setdefault(key, {})[row["set"], row["language"]] = row
    lines = []
    for key, cells in table.items():
        line = [words(names[key]), *(_rate(cells.get(column)) for column in columns)]
        if len(columns) > 1:
            line.append(_mean(averages.get(key)))
        lines.append(tuple(line))
    header = [Column("system"), *(Column(f"{name} ({lang})") for name, lang in columns)]
    if len(columns) > 1:
        header.append(Column("mean", _MEAN_WHY))
    return PageTable(
        slug="wer",
        caption="Word error rates in %, by system and set.",
        columns=tuple(header),
        rows=tuple(lines),
    )


def _rate(row: Row | None, unit: str = "wer") -> Cell:
    if row is None or row[unit] is None:
        return Cell("–")
    compared = row.get("comparison") if unit == "wer" else None
    return number(row[unit], 2, row[f"{unit}_ci"], row["utterances"], _change(compared))


def _mean(average: Row | None) -> Cell:
    if average is None or average["wer"] is None:
        return Cell("–")
    return number(average["wer"], note=_change(average["against"].get(BASELINE)))


def _change(compared: Row | None) -> str:
    if compared is None or compared["wer_relative"] is None:
        return ""
    star = "*" if compared["significant"] else ""
    return minus(f"{compared['wer_relative']:+.1f} %{star}")


def data(found: Experiment) -> Section:
    """What was trained and tested on."""
    section = Section("data", "Data")
    if not found.sets:
        return section
    normalizers = listed(list(dict.fromkeys(row["normalizer"] for row in found.rows)))
    corpora_of = {row["set"]: row.get("corpora") or [] for row in found.rows}
    lines = [
        (
            words(own.name),
            words(" ".join(own.languages)),
            words(", ".join(own.corpora or corpora_of.get(own.name, []))),
            number(own.utterances, 0),
            number(None if own.seconds is None else own.seconds / 3600),
            number(own.speakers, 0),
            number(own.skipped, 0),
        )
        for own in found.sets.values()
    ]
    header = ("utterances", "hours", "speakers", "left out")
    columns = (
        *(Column("set"), Column("languages"), Column("drawn from")),
        *(Column(title, COUNTED) for title in header),
    )
    table = PageTable("data", "Data directories.", columns, tuple(lines))
    if normalizers:
        section.add(Text(f"Texts are compared after the normaliser {normalizers}."))
    section.add(table)
    if not any(own.corpora for own in found.sets.values()):
        found.lacks(
            "data (in part)", "names of corpora", "the data directories have no file 'corpus'"
        )
    skipped = {row["set"]: row["skipped"] for row in found.rows if row.get("skipped")}
    section.add(
        Lines(
            tuple(f"{name}: {', '.join(ids)} ({len(ids)})" for name, ids in skipped.items()),
            "Left out of the test sets",
        )
    )
    return section


def baselines(found: Experiment) -> Section:
    """What the experts are compared with: the base alone, and bases trained as a whole."""
    section = Section("baselines", "Baselines")
    baseline = found.results.get("baseline", BASELINE)
    rows = [
        row
        for row in found.rows
        if row["system"] == baseline or kind_of(row["system"]) in (BASELINE, "finetune")
    ]
    if not rows:
        found.lacks("baselines", baseline, "no system without experts is scored")
        return section
    section.add(
        Text(
            f"{baseline} is the base as it came; finetune systems are the base, or a part of it, "
            "trained as a whole."
        ),
        errors_table("baselines", "Errors of the baselines, words and characters.", rows),
    )
    return section


def errors_table(slug: str, caption: str, rows: Sequence[Row], folded: bool = False) -> PageTable:
    """Rates of words, characters and sentences, and words by kind of error."""
    lines = []
    for name, row in zip(labels(rows), rows, strict=True):
        size = row["words"]
        kinds = (number(100 * row[k] / size, 1) for k in ("sub", "del", "ins"))
        lines.append(
            (
                words(name),
                words(row["set"]),
                words(row["language"]),
                number(row["utterances"], 0),
                number(row["words"], 0),
                _rate(row),
                _rate(row, "cer"),
                share(round(row["ser"] / 100 * row["utterances"]), row["utterances"]),
                *kinds,
            )
        )
    kinds_why = "the parts of the WER, whose interval is given"
    columns = (
        *(Column(title) for title in ("system", "set", "language")),
        *(Column(title, COUNTED) for title in ("utterances", "words")),
        *(Column(title) for title in ("WER %", "CER %")),
        Column("sentences with errors %"),
        *(Column(title, kinds_why) for title in ("substituted %", "deleted %", "inserted %")),
    )
    return PageTable(slug, caption, columns, tuple(lines), folded=folded)


def experts(found: Experiment) -> Section:
    """The experts: their size, their data, what training said, what they gain."""
    section = Section("experts", "Experts")
    for entry in found.results.get("experts") or []:
        noun = "expert" if entry["count"] == 1 else "experts"
        section.add(Text(f"{entry['count']} {noun}, assigned by {entry['experts_by']}."))
        section.add(Lines(tuple(entry["notes"]), "Notes of the assignment"))
    if found.experts:
        sizes = {
            name: size
            for entry in found.results.get("experts") or []
            for name, size in entry["sizes"].items()
        }
        section.add(_experts_table(found.experts, sizes))
    oracle = [row for row in found.rows if kind_of(row["system"]) == ORACLE and is_plain(row)]
    if oracle:
        section.add(
            Heading("What the right expert gains", "experts-oracle"),
            Text("oracle gives every utterance the expert of its true language."),
            errors_table("oracle", "Errors with the true language's expert.", oracle),
        )
    elif found.rows:
        found.lacks(
            "experts (in part)", "oracle", "no oracle system is scored: what is lost by routing"
        )
    return section


def _experts_table(experts_found: Sequence[ExpertFacts], sizes: Row) -> PageTable:
    lines = []
    for own in experts_found:
        manifest, name = own.manifest, str(own.manifest.get("name", own.folder))
        options = manifest.get("options") or {}
        metrics = manifest.get("metrics") or {}
        size = sizes.get(name)
        size = size if isinstance(size, dict) else {"utterances": size}
        lines.append(
            (
                words(name),
                words(own.folder),
                words(manifest.get("phase")),
                words(manifest.get("kind")),
                number(options.get("rank"), 0),
                words(options.get("where")),
                number(own.parameters, 0),
                number(size.get("utterances"), 0),
                number(size.get("hours")),
                number(metrics.get("epoch"), 0),
                number(metrics.get("loss"), 4),
                number(metrics.get("acc")),
                number(metrics.get("wer")),
            )
        )
    columns = (
        *(Column(title) for title in ("expert", "folder", "phase", "kind")),
        Column("rank", COUNTED),
        Column("where"),
        *(Column(title, COUNTED) for title in ("parameters", "utterances", "hours", "epoch")),
        *(Column(title, _DEV_WHY) for title in ("dev loss", "dev accuracy %", "dev WER %")),
    )
    caption = "Experts and what training ended with; utterances and hours are those assigned."
    return PageTable("experts", caption, columns, tuple(lines))


def cost(found: Experiment) -> Section:
    """Parameters, memory and time."""
    section = Section("cost", "Cost")
    rows = [row for row in found.rows if not row["set"].endswith(PARTS)]
    if not rows:
        return section
    by_system: dict[str, Row] = {}
    for row, name in zip(rows, labels(rows), strict=True):
        by_system.setdefault(name, row)
    systems = []
    for name, row in by_system.items():
        total, own = row["params"], row["trainable_params"]
        known = isinstance(total, int) and isinstance(own, int) and total > 0
        systems.append(
            (
                words(name),
                *(words(row[key]) for key in ("device", "batch_size", "beam_size")),
                number(total if isinstance(total, int) else None, 0),
                number(own if isinstance(own, int) else None, 0),
                number(100 * own / total if known else None),
                *(number(row[key], d) for key, d in (("peak_memory_mb", 0), ("rtf", 4))),
            )
        )
    columns = (
        *(Column(title) for title in ("system", "device", "batch", "beam")),
        *(Column(title, COUNTED) for title in ("parameters", "of them its own", "its own %")),
        *(Column(title, ONE_RUN) for title in ("peak MB", "real-time factor")),
    )
    section.add(
        Text(
            "The real-time factor is decoding seconds of all jobs for a second of audio, over the "
            "whole decoding pass; latency is an utterance's in its batch."
        ),
        PageTable("cost", "What a system costs.", columns, tuple(systems)),
        _latency(rows),
    )
    silent = [name for name, row in by_system.items() if row["latency_ms_p50"] is None]
    if silent:
        why = "their decode folders have no stats.jsonl"
        found.lacks("cost (in part)", f"time and memory of {listed(silent)}", why)
    return section


def _latency(rows: Sequence[Row]) -> PageTable:
    lines = []
    for row, name in zip(rows, labels(rows), strict=True):
        loops, count = row["loop_rate"], row["utterances"]
        lines.append(
            (
                words(name),
                words(f"{row['set']} ({row['language']})"),
                number(count, 0),
                number(row["seconds_audio"], 0),
                number(row["latency_ms_p50"], 1),
                number(row["latency_ms_p95"], 1),
                Cell("–") if loops is None else share(round(loops * count), count, 2),
            )
        )
    columns = (
        *(Column("system"), Column("set")),
        *(Column(title, COUNTED) for title in ("utterances", "audio s")),
        *(Column(title, ONE_RUN) for title in ("latency p50 ms", "latency p95 ms")),
        Column("stopped in a loop %"),
    )
    return PageTable("latency", "Latency by set.", columns, tuple(lines), folded=True)


def targets(found: Experiment) -> Section:
    """What was to be reached, and whether it was."""
    section = Section("targets", "Targets")
    judged = found.results.get("targets") or []
    if not judged:
        found.lacks("targets", "targets", "they are asked of systems with a router: none is scored")
        return section
    states = {True: ("met", "good"), False: ("missed", "bad"), None: ("not measured", "")}
    counts = {state: sum(row["met"] is state for row in judged) for state in states}
    section.add(
        Text(f"{counts[True]} met, {counts[False]} missed, {counts[None]} not measured."),
        PageTable(
            slug="targets",
            caption="Targets, judged by the value measured, not by its interval.",
            columns=(
                *(Column(title) for title in ("target", "limit", "value", "verdict", "of what")),
                Column("experts"),
            ),
            rows=tuple(
                (
                    words(row["name"]),
                    words(row["target"]),
                    words(None if row["met"] is None else minus(target_value(row))),
                    Cell(*(states[row["met"]][0],) * 2, state=states[row["met"]][1]),
                    words(row["detail"]),
                    words(f"{row['experts'] or 'default'}/{row['inference_tag']}"),
                )
                for row in judged
            ),
        ),
    )
    for row in judged:
        if row["met"] is None:
            found.lacks("targets (in part)", f"{row['name']} {row['target']}", "not measured")
    return section


def provenance(found: Experiment) -> list[Facts | Lines]:
    """Where the numbers come from: commit, date, versions."""
    results = found.results
    if not results:
        return []
    pairs = [("scored", results.get("date")), ("commit", results.get("git_commit"))]
    pairs += [(name, version) for name, version in (results.get("environment") or {}).items()]
    return [
        Facts(tuple((name, str(value)) for name, value in pairs if value)),
        Lines(tuple(collapse_lines(results))),
    ]
