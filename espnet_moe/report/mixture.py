"""The sections of ``RESULTS.md`` on experts, routers, code-switching and targets."""

from collections.abc import Sequence

from espnet_moe.report.summary import Row, Table, labels

_ROUTING_NOTE = (
    "Accuracy is of the language decided for, in brackets the utterances; ECE is the expected "
    "calibration error of the likeliest language's probability (15 bins, 0 to 1); usage entropy is "
    "of the experts by largest gate, in nats. Routing milliseconds are of an utterance in its "
    "batch; the share of the encoder's time is of the whole decoding pass. `all` pools the sets of "
    "one language."
)
_SWITCH_NOTE = (
    "Frame error: 20 ms frames of the wrong language in %. A switch is detected by a change to the "
    "right language between the middle of the segment before and the next switch; the latency of "
    "an early change is 0, its offset negative; latency and offset are of the detected switches. "
    "False: changes that detect no switch. Parts: change of the WER relative to that (in brackets) "
    "of the same utterances decoded singly. A system without frame error has no router."
)


def targets_section(results: Row) -> str:
    """Return what was to be reached, and whether it was."""
    targets = results.get("targets") or []
    if not targets:
        return ""
    groups = {(row["experts"], row["inference_tag"]) for row in targets}
    header = (*(["experts"] if len(groups) > 1 else []), "target", "limit", "value", "met", "")
    lines = []
    for row in targets:
        group = [f"{row['experts'] or 'default'}/{row['inference_tag']}"] if len(groups) > 1 else []
        lines.append(
            (*group, row["name"], row["target"], target_value(row), _met(row), row["detail"])
        )
    counts = [sum(row["met"] is state for row in targets) for state in (True, False, None)]
    note = f"{counts[0]} met, {counts[1]} missed, {counts[2]} not measured."
    return f"## Targets\n{note}\n\n{Table(header, tuple(lines)).to_markdown()}"


def target_lines(results: Row) -> str:
    """Return the targets for the terminal, a line each."""
    lines = []
    for row in results.get("targets") or []:
        group = f" [{row['experts']}]" if row["experts"] else ""
        state = _met(row).strip("*")
        value = "" if row["met"] is None else f": {target_value(row)}"
        detail = f" ({row['detail']})" if row["detail"] else ""
        lines.append(f"{state:<12}  {row['name']} {row['target']}{group}{value}{detail}\n")
    return "".join(lines)


def target_value(row: Row) -> str:
    """Return the value of a target with its unit."""
    if row["met"] is None:
        return "-"
    if row["value"] is None:
        return "never"
    return f"{row['value']:.2f} {row['unit']}"


def _met(row: Row) -> str:
    return {True: "met", False: "**missed**", None: "not measured"}[row["met"]]


def experts_section(results: Row) -> str:
    """Return how many experts there are and whence, and what became of the routers."""
    lines = [_experts(entry) for entry in results.get("experts") or []]
    routers = results.get("routers") or []
    if not lines and not routers:
        return ""
    for router in routers:
        where = f" at layer {router['layer']}" if router["layer"] is not None else ""
        text = f"- router `{router['name']}`: {router['network']}{where}"
        if router["temperature"] is not None:
            text += f", temperature {router['temperature']:.3g}"
        lines.append(text + "\n")
    for text in collapse_lines(results):
        lines.append(f"- **{text}**\n")
    return "## Experts and routers\n" + "".join(lines)


def collapse_lines(results: Row) -> list[str]:
    """Name the routers that hardly ever choose some of their experts."""
    return [
        f"collapsed: {router['name']} hardly ever chooses {', '.join(router['collapsed'])}"
        for router in results.get("routers") or []
        if router["collapsed"]
    ]


def _experts(entry: Row) -> str:
    sizes = ", ".join(
        f"{name} ({_size(entry['sizes'][name])})" if name in entry["sizes"] else name
        for name in entry["experts"]
    )
    noun = "expert" if entry["count"] == 1 else "experts"
    text = f"- {entry['count']} {noun} by {entry['experts_by']}: {sizes}\n"
    if entry["nmi"] is not None and entry["purity"] is not None:
        clusters = f" of {entry['clusters']} clusters" if entry["clusters"] is not None else ""
        text += f"  - NMI {entry['nmi']:.3f}, purity {entry['purity']:.3f}{clusters}"
        text += " against languages\n"
        for name, shares in entry["language_shares"].items():
            shown = ", ".join(
                f"{language} {100 * share:.1f} %" for language, share in shares.items()
            )
            text += f"  - {name}: {shown}\n"
    return text + "".join(f"  - {note}\n" for note in entry["notes"])


def _size(size: object) -> str:
    """Return the size of an expert's data, a number or a mapping of numbers, in words."""
    if isinstance(size, dict):
        return ", ".join(f"{_size(value)} {name}" for name, value in size.items())
    return f"{size:,}" if isinstance(size, int) else str(size)


def routing_section(results: Row) -> str:
    """Return the tables of decisions: accuracy and cost, durations, usage, confusion."""
    rows = results.get("routing") or []
    if not rows:
        return ""
    names = [f"{label}|{row['set']}" for label, row in zip(labels(rows), rows, strict=True)]
    bins = list(rows[0]["accuracy_by_duration"])
    header = ("system", "set", "Snt", "accuracy", *bins, "ECE", "usage entropy", "p50 ms", "p95 ms")
    lines = []
    for name, row in zip(names, rows, strict=True):
        by_duration = [
            f"{_number(row['accuracy_by_duration'][each]['accuracy'])} "
            f"({row['accuracy_by_duration'][each]['utterances']})"
            for each in bins
        ]
        keys = ("ece", "usage_entropy", "route_ms_p50", "route_ms_p95", "encoder_share")
        values = [_number(row[key], 4 if key in keys[:2] else 2) for key in keys]
        lines.append(
            (
                *name.split("|"),
                str(row["utterances"]),
                _number(row["accuracy"]),
                *by_duration,
                *values,
            )
        )
    table = Table((*header, "% of encoder"), tuple(lines))
    parts = [f"## Routing\n{_ROUTING_NOTE}\n\n{table.to_markdown()}"]
    # What follows is of all sets together; of each where there is only one.
    whole = _pooled(rows)
    parts.append(_usage(whole))
    parts += [_confusion(row, label) for row, label in zip(whole, labels(whole), strict=True)]
    parts.append(_least_sure(results.get("low_confidence") or []))
    return "\n".join(part for part in parts if part)


def _pooled(rows: Sequence[Row]) -> list[Row]:
    chosen: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["system"], row["inference_tag"])
        if key not in chosen or row["set"] == "all":
            chosen[key] = row
    return list(chosen.values())


def _usage(rows: Sequence[Row]) -> str:
    lines = []
    for row, label in zip(rows, labels(rows), strict=True):
        shares = ", ".join(f"{name} {100 * share:.1f}" for name, share in row["usage"].items())
        means = ", ".join(f"{name} {gate:.3f}" for name, gate in row["gates"].items())
        lines.append((label, shares, means))
    table = Table(("system", "utterances by largest gate, %", "mean gate"), tuple(lines))
    return f"### Expert usage\n\n{table.to_markdown()}"


def _confusion(row: Row, label: str) -> str:
    confusion = row["confusion"]
    lines = [
        (name, *map(str, counts))
        for name, counts in zip(confusion["languages"], confusion["counts"], strict=True)
    ]
    decided = [name or "none" for name in confusion["decided"]]
    table = Table(("spoken \\ decided", *decided), tuple(lines))
    return f"### Confusion: {label}, {row['set']}\n\n{table.to_markdown()}"


def _least_sure(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        low, high = row["difference"]["wer_diff_ci"]
        star = "*" if row["difference"]["significant"] else ""
        lines.append(
            (
                f"{row['soft']} / {row['hard']}",
                str(row["utterances"]),
                f"{row['below']:.4f}",
                f"{row['wer_soft']:.2f}",
                f"{row['wer_hard']:.2f}",
                f"{row['difference']['wer_diff']:+.2f} [{low:.2f}, {high:.2f}]{star}",
            )
        )
    if not lines:
        return ""
    header = ("systems", "Snt", "max p up to", "WER soft", "WER hard", "difference")
    return f"### The least sure quarter\n\n{Table(header, tuple(lines)).to_markdown()}"


def codeswitch_section(results: Row) -> str:
    """Return the table of code-switched sets."""
    rows = results.get("codeswitch") or []
    if not rows:
        return ""
    scores = {(r["system"], r["inference_tag"], r["set"]): r for r in results["rows"]}
    lines = []
    for row, label in zip(rows, labels(rows), strict=True):
        score = scores.get((row["system"], row["inference_tag"], row["set"]), {})
        parts = [_part(row["parts"].get(which)) for which in ("same", "oracle")]
        latency = [_number(row.get(key)) for key in ("latency_p50", "latency_p95", "offset_p50")]
        switches = [
            "-" if row.get(key) is None else str(row[key])
            for key in ("switches", "missed", "false_switches")
        ]
        rates = [_number(each) for each in (row["wer"], score.get("cer"), row.get("frame_error"))]
        lines.append((label, row["set"], *rates, *switches, *latency, *parts))
    header = (
        *("system", "set", "WER", "CER", "frame error", "switches", "missed", "false"),
        *("latency p50 s", "p95 s", "offset p50 s", "to own parts", "to oracle's parts"),
    )
    return f"## Code-switching\n{_SWITCH_NOTE}\n\n{Table(header, tuple(lines)).to_markdown()}"


def _part(part: Row | None) -> str:
    if part is None:
        return "-"
    change = "" if part["relative"] is None else f"{part['relative']:+.1f} % "
    return f"{change}({part['wer']:.2f})"


def _number(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
