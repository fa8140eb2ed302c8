"""The summary table: systems as rows, languages as columns, each WER with interval and change."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

LEGEND = (
    "WER in %, [95 % bootstrap interval over utterances], change relative to {baseline}; "
    "* = the paired bootstrap 95 % interval of the difference excludes 0; "
    "mean = unweighted over the columns"
)
_POOLED = "all"  # the language of rows that pool several


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
    """Make the summary of ``results.json``.

    Args:
        results: The content of ``exp/results.json``.
    """
    rows = results["rows"]
    columns = list(dict.fromkeys((row["set"], row["language"]) for row in rows))
    names = _column_names(columns)
    cells = {
        (row["system"], row["inference_tag"], row["set"], row["language"]): row for row in rows
    }
    systems = {
        (row["system"], row["inference_tag"]): label
        for row, label in zip(rows, labels(rows), strict=True)
    }
    plain = [column for column in columns if column[1] != _POOLED]
    with_mean = len(plain) > 1
    means = {
        (system, tag): _mean([cells.get((system, tag, *column)) for column in plain])
        for system, tag in systems
    }
    lines = []
    for system, tag in systems:
        line = [systems[system, tag]]
        line += [_cell(cells.get((system, tag, *column))) for column in columns]
        if with_mean:
            is_baseline = system == results["baseline"]
            baseline = None if is_baseline else means.get((results["baseline"], tag))
            line.append(_mean_cell(means[system, tag], baseline))
        lines.append(tuple(line))
    header = ("system", *names, *(["mean"] if with_mean else []))
    return Table(header, tuple(lines))


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


def _mean(rows: Sequence[Row | None]) -> float | None:
    """Average the WER of all columns; ``None`` where a system lacks one."""
    values = [row["wer"] for row in rows if row is not None and row["wer"] is not None]
    return sum(values) / len(values) if len(values) == len(rows) else None


def _mean_cell(mean: float | None, baseline: float | None) -> str:
    if mean is None:
        return "-"
    change = ""
    if baseline:
        change = f" {100 * (mean - baseline) / baseline:+.1f} %"
    return f"{mean:.2f}{change}"
