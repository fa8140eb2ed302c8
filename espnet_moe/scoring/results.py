"""``exp/results.json``: scores every asked system and set, and keeps the rows of the others."""

import importlib.metadata
import logging
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.data.files import write_text
from espnet_moe.errors import UserError
from espnet_moe.scoring.error_rates import EditCounts, bootstrap_interval
from espnet_moe.scoring.files import ScoringError, read_json_object, to_json
from espnet_moe.scoring.folders import References, read_decoded, read_references
from espnet_moe.scoring.rows import ALL, Row, ScoredSet, make_rows, score_set
from espnet_moe.scoring.sclite import read_counts

log = logging.getLogger(__name__)

FORMAT = 1
_PACKAGES = ("espnet_moe", "espnet", "torch", "transformers", "jiwer", "numpy")


@dataclass(frozen=True)
class ScoringOptions:
    """What to score.

    Args:
        exp: The experiment folder, which holds ``<system>/<inference_tag>/<set>/text``.
        data: The folder of the formatted data dirs, such as ``dump/raw``.
        systems: Names of system folders in ``exp``.
        test_sets: Names of data dirs in ``data``.
        inference_tag: Name of the decode folder of each system.
        baseline: The system that the others are compared with.
        resamples: Bootstrap draws, at least 1000.
        seed: Seed of the draws.
        command: The command line that scores, for the record.
    """

    exp: Path
    data: Path
    systems: tuple[str, ...]
    test_sets: tuple[str, ...]
    inference_tag: str
    baseline: str = "baseline"
    resamples: int = 2000
    seed: int = 0
    command: str = ""

    def __post_init__(self) -> None:
        problems = []
        if not self.systems:
            problems.append("systems is empty; name at least one system folder in exp")
        if not self.test_sets:
            problems.append("test_sets is empty; name at least one data dir")
        for name in (*self.systems, *self.test_sets, self.inference_tag, self.baseline):
            if name in {"", ".", ".."} or "/" in name:
                problems.append(f"'{name}' is not the name of a folder; give it without a path")
        if self.resamples < 1000:
            problems.append(f"resamples is {self.resamples}; an interval needs at least 1000")
        if problems:
            raise ScoringError("; ".join(problems))


def score_systems(options: ScoringOptions) -> dict[str, Any]:
    """Score systems, write their score files and ``exp/results.json``.

    Everything is read and checked before anything is written. Rows of other systems, sets and
    inference tags stay in ``results.json`` as long as their decode folder exists.

    Returns:
        The content of ``results.json``.

    Raises:
        ScoringError: Naming every problem of every system and set.
    """
    earlier = read_results(options.exp) if (options.exp / "results.json").is_file() else None
    scored_sets = _score_all(options)
    rows: dict[tuple[str, str, str], list[Row]] = {}
    for row in earlier["rows"] if earlier else []:
        if _folder(options.exp, row).is_dir():
            rows.setdefault(_key(row), []).append(row)
    for scored in scored_sets:
        new = make_rows(scored, options.resamples, options.seed)
        for row in new:
            row["score_command"] = options.command
        rows[_key(new[0])] = new
        scored.write()
    flat = [row for part in rows.values() for row in part]
    flat.sort(key=lambda row: row["system"] != options.baseline)  # stable: baseline first
    _compare(flat, options)
    results = {
        "format": FORMAT,
        "command": options.command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **_git(),
        "environment": _environment(),
        "baseline": options.baseline,
        "rows": flat,
    }
    write_text(options.exp / "results.json", to_json(results))
    return results


def read_results(exp: Path) -> dict[str, Any]:
    """Read ``exp/results.json``.

    Raises:
        ScoringError: When it is missing, broken or of another format.
    """
    path = exp / "results.json"
    results = read_json_object(path)
    rows = results.get("rows")
    complete = isinstance(rows, list) and all(
        isinstance(row, dict) and {"system", "inference_tag", "set", "language"} <= row.keys()
        for row in rows
    )
    if results.get("format") != FORMAT or not complete:
        raise ScoringError(
            f"{path} is of format {results.get('format')!r} or has incomplete rows, but this "
            f"version reads format {FORMAT}; remove it and score every system again"
        )
    return results


def _score_all(options: ScoringOptions) -> list[ScoredSet]:
    """Read every set of every system; report the problems of all of them together."""
    problems: list[str] = []
    test_sets: list[References] = []
    for name in dict.fromkeys(options.test_sets):
        try:
            test_sets.append(read_references(options.data / name))
        except UserError as error:
            problems.append(str(error))
    scored = []
    for system in dict.fromkeys(options.systems):
        folder = options.exp / system / options.inference_tag
        for references in test_sets:
            try:
                decoded = read_decoded(folder, references)
            except UserError as error:
                problems.append(str(error))
                continue
            scored.append(score_set(folder / references.name, references, decoded))
            log.info("scored %s: %d utterances", scored[-1].folder, len(references.texts))
    if problems:
        raise ScoringError("\n".join(dict.fromkeys(problems)))
    return scored


def _compare(rows: list[Row], options: ScoringOptions) -> None:
    """Fill in each row's ``comparison`` with the baseline's row of the same set and language.

    Reads the ``counts.tsv`` of both, so that rows of earlier runs are compared anew when the
    baseline was.
    """
    baselines = {
        (row["inference_tag"], row["set"], row["language"]): row
        for row in rows
        if row["system"] == options.baseline
    }
    for row in rows:
        row["comparison"] = None
        baseline = baselines.get((row["inference_tag"], row["set"], row["language"]))
        if baseline is None or baseline is row:
            continue
        try:
            ids, counts = _counts(options.exp, row)
            baseline_ids, baseline_counts = _counts(options.exp, baseline)
        except UserError as error:
            log.warning("no comparison with %s: %s", options.baseline, error)
            continue
        comparable = ids == baseline_ids and row["normalizer"] == baseline["normalizer"]
        if not comparable or not np.array_equal(counts.lengths, baseline_counts.lengths):
            log.warning(
                "no comparison of %s with %s: they were scored against different references; "
                "score both again",
                _folder(options.exp, row),
                options.baseline,
            )
            continue
        row["comparison"] = _comparison(counts, baseline_counts, options)


def _comparison(counts: EditCounts, baseline: EditCounts, options: ScoringOptions) -> Row:
    low, high = bootstrap_interval(
        counts.errors - baseline.errors, counts.lengths, options.resamples, options.seed
    )
    relative = None
    if baseline.rate > 0:
        relative = round(100 * (counts.rate - baseline.rate) / baseline.rate, 2)
    return {
        "baseline": options.baseline,
        "wer_diff": round(counts.rate - baseline.rate, 2),
        "wer_diff_ci": [round(low, 2), round(high, 2)],
        "wer_relative": relative,
        # Draws of a single utterance are all the same: their interval says nothing.
        "significant": len(counts.errors) > 1 and (low > 0 or high < 0),
    }


def _counts(exp: Path, row: Row) -> tuple[list[str], EditCounts]:
    ids, languages, counts = read_counts(_folder(exp, row) / "score_wer" / "counts.tsv")
    if row["language"] == ALL:
        return ids, counts
    chosen = np.array([language == row["language"] for language in languages], dtype=np.bool_)
    return [utt_id for utt_id, keep in zip(ids, chosen, strict=True) if keep], counts.select(chosen)


def _key(row: Row) -> tuple[str, str, str]:
    return row["system"], row["inference_tag"], row["set"]


def _folder(exp: Path, row: Row) -> Path:
    return exp.joinpath(*_key(row))


def _environment() -> dict[str, str | None]:
    """Return the versions that could change a number; ``None`` for what is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _git() -> dict[str, str | None]:
    """Return the commit this code is of, and its date; ``None`` outside a git checkout."""
    command = ["git", "log", "-1", "--format=%H%n%cI"]
    try:
        output = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        output = []
    commit, date = output if len(output) == 2 else (None, None)
    return {"git_commit": commit, "git_commit_date": date}
