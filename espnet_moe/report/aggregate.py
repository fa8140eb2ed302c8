"""One table of many experiments: a row for each system of each that is finished."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_moe.config import ConfigError
from espnet_moe.errors import UserError
from espnet_moe.files import changed_since
from espnet_moe.report.summary import Row, Table
from espnet_moe.scoring.folders import ALL, MIXED
from espnet_moe.scoring.results import MANIFEST, read_results
from espnet_moe.scoring.systems import BASELINE, ORACLE, PARTS

METRICS = ("wer", "cer")


@dataclass(frozen=True)
class Run:
    """A finished experiment: its name in the table, and what its ``results.json`` holds."""

    name: str
    results: dict[str, Any]


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Read the results of experiments.

    Returns:
        Those that are finished, named by what tells them apart, and why the others are not.
    """
    found, missing = [], []
    for folder in dict.fromkeys(folders):
        if not folder.is_dir():
            missing.append(f"{folder}: no such folder")
            continue
        if not (folder / "results.json").is_file():
            missing.append(f"{folder}: not scored yet (no results.json)")
            continue
        try:
            if "results.json" in changed_since(folder / MANIFEST):
                raise UserError("results.json changed after scoring: score again (stage 11)")
            found.append((folder, read_results(folder)))
        except UserError as error:
            missing.append(f"{folder}: {error}")
    names = _short([folder for folder, _ in found])
    return [Run(n, results) for n, (_, results) in zip(names, found, strict=True)], missing


def read_published(path: Path) -> list[dict[str, Any]]:
    """Read WERs that others have published: a list of ``system``, ``source``, ``sets``, ``wer``.

    Raises:
        ConfigError: For a file that is not as that.
    """
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--published {path} cannot be read: {error}") from error
    needed = {"system", "source", "sets", "wer"}
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and row.keys() == needed and isinstance(row["wer"], dict)
        for row in rows
    ):
        raise ConfigError(f"--published {path} is a list of {', '.join(sorted(needed))}")
    return rows


def table(runs: Sequence[Run], metric: str, published: Sequence[dict[str, Any]] = ()) -> Table:
    """Make the table: a column a language (a set, where a language has several), then the mean.

    Args:
        runs: At least one.
        metric: ``wer`` or ``cer``; the mean and what follows from it are the WER's.
        published: Of others, to be shown below ours; on what sets is told in the place of the run.
    """
    rows = [(run, row) for run in runs for row in run.results["rows"]]
    rows = [(run, row) for run, row in rows if not row["set"].endswith(PARTS)]
    plain = [row for _, row in rows if row["language"] != MIXED]
    sets = {language: {r["set"] for r in plain if r["language"] == language} for language in
            dict.fromkeys(r["language"] for r in plain)}  # fmt: skip
    columns = {
        (name, language): language if len(names) == 1 else name
        for language, names in sets.items()
        for name in sorted(names)
    }
    columns |= {
        (row["set"], MIXED): row["set"].removeprefix("test_")
        for _, row in rows
        if row["language"] == MIXED
    }
    lines: dict[tuple[str, str, str], dict[tuple[str, str], Row]] = {}
    for run, row in rows:
        line = lines.setdefault((run.name, row["system"], row["inference_tag"]), {})
        line[row["set"], row["language"]] = row
    by_name = {run.name: run.results for run in runs}
    drawn = []
    for (name, system, tag), cells in lines.items():
        results = by_name[name]
        average = next(
            (a for a in results.get("averages", []) if _is_of(a, system, tag)), {"wer": None}
        )
        commit = results.get("git_commit") or ""
        drawn.append(
            (
                *(name, system, tag),
                *(_number(cells.get(column, {}).get(metric)) for column in columns),
                _number(average["wer"]),
                _change(average, BASELINE),
                _change(average, ORACLE),
                _number(_router_accuracy(results, system, tag)),
                str(next(iter(cells.values())).get("trainable_params", "")),
                commit[:9],
                str(results.get("date", ""))[:10],
            )
        )
    for theirs in published:
        cells_of = (
            theirs["wer"].get(language) if metric == "wer" and names == language else None
            for (_, language), names in columns.items()
        )
        drawn.append(
            (
                *(f"{theirs['sets']}: {theirs['source']}", str(theirs["system"]), "published"),
                *map(_number, cells_of),
                *[""] * 7,
            )
        )
    header = (
        *("run", "system", "decoding", *columns.values()),
        *("mean WER", "to baseline %", "to oracle %", "router %", "own parameters"),
        *("commit", "date"),
    )
    return Table(header, tuple(drawn))


def to_csv(found: Table) -> str:
    """Return a table as comma-separated values (RFC 4180, with line feeds)."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([found.header, *found.rows])
    return text.getvalue()


def _short(folders: Sequence[Path]) -> list[str]:
    """Name folders by as much of their ends as tells them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max((len(p) for p in parts), default=0) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _is_of(row: Row, system: str, tag: str) -> bool:
    return bool((row["system"], row["inference_tag"]) == (system, tag))


def _router_accuracy(results: Row, system: str, tag: str) -> float | None:
    """Over the utterances of the plain test sets."""
    rows = [row for row in results.get("routing", []) if _is_of(row, system, tag)]
    return next((row["accuracy"] for row in rows if row["set"] == ALL), None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _change(average: Row, kind: str) -> str:
    against = average.get("against", {}).get(kind)
    if against is None or against["wer_relative"] is None:
        return ""
    return f"{against['wer_relative']:+.1f}" + ("*" if against["significant"] else "")
