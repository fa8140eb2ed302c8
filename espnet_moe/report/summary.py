"""The summary tables: systems as rows, languages as columns.

In the terminal a WER each; in the report with its interval and change.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from espnet_moe.scoring.folders import MIXED
from espnet_moe.scoring.systems import BASELINE, ORACLE, PARTS, is_plain

Row = dict[str, Any]

LEGEND = (
    "WER in %, [95 % bootstrap interval over utterances], change relative to {baseline}; "
    "* = the paired bootstrap 95 % interval of the difference excludes 0; "
    "mean = unweighted over the columns before it"
)
TERMINAL_LEGEND = (
    "WER in %; * = the paired bootstrap 95 % interval of the difference to {baseline} excludes 0; "
    "mean = unweighted over the columns before it, with its change; intervals: RESULTS.md"
)


@dataclass(frozen=True)
class Table:
    """A table of strings; the first column holds names, the others values."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_text(self) -> str:
        """Return the table with aligned columns."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        drawn = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        drawn.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(drawn) + "\n"

    def to_markdown(self) -> str:
        """Return the table as ESPnet writes them: ``|name|value|`` without padding."""
        lines = [self.header, ("---",) * len(self.header), *self.rows]
        return "".join("|" + "|".join(line) + "|\n" for line in lines)


def labels(rows: Sequence[Row]) -> list[str]:
    """Name the system of each row, with its inference tag where the rows are of several."""
    several = len({row["inference_tag"] for row in rows}) > 1
    return [f"{row['system']}/{row['inference_tag']}" if several else row["system"] for row in rows]


def summary_table(results: Row) -> Table:
    """Make the table of ``RESULTS.md``: WER with interval and change by system and language.

    Args:
        results: The content of ``exp/results.json``.
    """
    rows = [row for row in results["rows"] if _is_shown(row) and row["language"] != MIXED]
    columns = list(dict.fromkeys((row["set"], row["language"]) for row in rows))
    averages = _averages(results, columns)
    lines = []
    for (system, tag), label in _systems(rows).items():
        line = [label, *(_cell(row) for row in _cells(rows, system, tag, columns))]
        if averages is not None:
            average = averages.get((system, tag))
            line.append(_mean_cell(average, BASELINE))
        lines.append(tuple(line))
    header = ("system", *_column_names(columns), *(["mean"] if averages is not None else []))
    return Table(header, tuple(lines))


def terminal_table(results: Row) -> Table:
    """Make the table to print: a row a system, short enough for a terminal.

    Args:
        results: The content of ``exp/results.json``.
    """
    shown = [row for row in results["rows"] if _is_shown(row)]
    columns = list(dict.fromkeys((row["set"], row["language"]) for row in shown))
    columns.sort(key=lambda column: column[1] == MIXED)  # stable: code-switched sets last
    plain = [column for column in columns if column[1] != MIXED]
    averages = _averages(results, plain)
    names = _column_names(plain)
    switched = columns[len(plain) :]
    header = ["system", *names]
    if averages is not None:
        header += ["mean", f"to {results['baseline']}", "to oracle"]
    header += [name.removeprefix("test_") for name, _ in switched]
    lines = []
    for (system, tag), label in _systems(shown).items():
        cells = [_short_cell(row) for row in _cells(shown, system, tag, columns)]
        line = [label, *cells[: len(plain)]]
        if averages is not None:
            average = averages.get((system, tag))
            wer = None if average is None else average["wer"]
            line.append("-" if wer is None else f"{wer:.2f}")
            line += [_change(average, kind) or "-" for kind in (BASELINE, ORACLE)]
        lines.append((*line, *cells[len(plain) :]))
    return Table(tuple(header), tuple(lines))


def _is_shown(row: Row) -> bool:
    """Whether a row has a column: the parts of code-switched sets have none."""
    return not row["set"].endswith(PARTS)


def _systems(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    return {
        (row["system"], row["inference_tag"]): label
        for row, label in zip(rows, labels(rows), strict=True)
    }


def _cells(
    rows: Sequence[Row], system: str, tag: str, columns: Sequence[tuple[str, str]]
) -> list[Row | None]:
    own = {
        (row["set"], row["language"]): row
        for row in rows
        if (row["system"], row["inference_tag"]) == (system, tag)
    }
    return [own.get(column) for column in columns]


def _averages(
    results: Row, columns: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Row] | None:
    """Return the average rows by system; ``None`` where there is but one column to average."""
    if sum(is_plain({"language": language}) for _, language in columns) < 2:
        return None
    return {(row["system"], row["inference_tag"]): row for row in results.get("averages", [])}


def _column_names(columns: Sequence[tuple[str, str]]) -> list[str]:
    """Name columns by language, or by set where a language has several."""
    if len({language for _, language in columns}) == len(columns):
        return [language for _, language in columns]
    languages_of = Counter(name for name, _ in columns)
    return [
        f"{name} ({language})" if languages_of[name] > 1 else name for name, language in columns
    ]


def _cell(row: Row | None) -> str:
    if row is None or row["wer"] is None:
        return "-"
    low, high = row["wer_ci"]
    cell = f"{row['wer']:.2f} [{low:.2f}, {high:.2f}]"
    comparison = row.get("comparison")
    if comparison is not None and comparison["wer_relative"] is not None:
        star = "*" if comparison["significant"] else ""
        cell += f" {comparison['wer_relative']:+.1f} %{star}"
    return cell


def _short_cell(row: Row | None) -> str:
    if row is None or row["wer"] is None:
        return "-"
    comparison = row.get("comparison")
    return f"{row['wer']:.2f}" + ("*" if comparison and comparison["significant"] else "")


def _mean_cell(average: Row | None, kind: str) -> str:
    if average is None or average["wer"] is None:
        return "-"
    change = _change(average, kind)
    return f"{average['wer']:.2f} {change}" if change else f"{average['wer']:.2f}"


def _change(average: Row | None, kind: str) -> str:
    """Return the change of the mean relative to a system, marked where it is sure."""
    against = average["against"].get(kind) if average is not None else None
    if against is None or against["wer_relative"] is None:
        return ""
    return f"{against['wer_relative']:+.1f} %" + ("*" if against["significant"] else "")
