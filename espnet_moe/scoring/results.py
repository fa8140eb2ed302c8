"""``exp/results.json``: scores every asked system and set, and keeps the rows of the others."""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from espnet_moe.data.files import write_text
from espnet_moe.errors import UserError
from espnet_moe.provenance import commit, versions
from espnet_moe.scoring.archive import Archive
from espnet_moe.scoring.codeswitch import add_degradation, codeswitch_row
from espnet_moe.scoring.comparisons import Bootstrap, average_rows, compare_rows
from espnet_moe.scoring.experiment import read_experts, read_routers
from espnet_moe.scoring.files import ScoringError, read_json_object, to_json
from espnet_moe.scoring.folders import References, read_decoded, read_references
from espnet_moe.scoring.routing import low_confidence_rows, routing_rows
from espnet_moe.scoring.rows import Row, ScoredSet, make_rows, score_set
from espnet_moe.scoring.targets import judge_targets

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "results.manifest.json"  # written last, with the SHA-256 of what stage 11 writes


@dataclass(frozen=True)
class ScoringOptions:
    """What to score.

    Args:
        exp: The experiment folder, which holds ``<system>/<inference_tag>/<set>/text``.
        data: The folder of the formatted data dirs, such as ``dump/raw``.
        systems: Names of system folders in ``exp``.
        test_sets: Names of data dirs in ``data``.
        inference_tag: Name of the decode folder of each system.
        codeswitch_systems: Names of the system folders that decoded ``codeswitch_sets``.
        codeswitch_sets: Names of data dirs in ``data`` with code-switched utterances, and of those
            with their parts (``<set>_parts``); each is a row of its own.
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
    codeswitch_systems: tuple[str, ...] = ()
    codeswitch_sets: tuple[str, ...] = ()
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
        if bool(self.codeswitch_systems) != bool(self.codeswitch_sets):
            problems.append("codeswitch_systems and codeswitch_sets need each other; give both")
        if both := sorted(set(self.test_sets) & set(self.codeswitch_sets)):
            problems.append(f"{', '.join(both)}: in test_sets or in codeswitch_sets, not in both")
        names = (*self.systems, *self.test_sets, *self.codeswitch_systems, *self.codeswitch_sets)
        for name in (*names, self.inference_tag, self.baseline):
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
    earlier = read_results(options.exp) if (options.exp / "results.json").is_file() else {}
    scored_sets = _score_all(options)
    rows: dict[tuple[str, str, str], list[Row]] = {}
    switching: dict[tuple[str, str, str], Row] = {}
    for row in earlier.get("rows", []):
        if _folder(options.exp, row).is_dir():
            rows.setdefault(_key(row), []).append(row)
    for row in earlier.get("codeswitch", []):
        if _key(row) in rows:
            switching[_key(row)] = row
    for scored in scored_sets:
        new = make_rows(scored, options.resamples, options.seed)
        for row in new:
            row["score_command"] = options.command
        key = _key(new[0])
        rows[key] = new
        switching.pop(key, None)
        if scored.references.segments:
            figures = codeswitch_row(scored.references, scored.decoded) or {}
            system, tag, name = key
            switching[key] = {"system": system, "inference_tag": tag, "set": name, **figures}
        scored.write()
    flat = [row for part in rows.values() for row in part]
    flat.sort(key=lambda row: row["system"] != options.baseline)  # stable: baseline first
    results = {
        "format": FORMAT,
        "command": options.command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **commit(),
        "environment": versions(),
        "baseline": options.baseline,
        "rows": flat,
        "codeswitch": list(switching.values()),
    }
    _derive(results, options)
    write_text(options.exp / "results.json", to_json(results))
    return results


def _derive(results: dict[str, Any], options: ScoringOptions) -> None:
    """Add what follows from the rows and the folders behind them, those of earlier runs too."""
    rows, archive = results["rows"], Archive(options.exp)
    draws = Bootstrap(options.resamples, options.seed)
    compare_rows(rows, archive, options.baseline, draws)
    add_degradation(results["codeswitch"], rows)
    results["averages"] = average_rows(rows, archive, options.baseline, draws)
    results["routing"] = routing_rows(rows, archive)
    results["low_confidence"] = low_confidence_rows(rows, archive, draws)
    results["experts"] = read_experts(options.exp)
    results["routers"] = read_routers(options.exp)
    results["targets"] = judge_targets(results)


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
    scored = []
    asked = (
        (options.systems, options.test_sets, False),
        (options.codeswitch_systems, options.codeswitch_sets, True),
    )
    for systems, names, pooled in asked:
        test_sets: list[References] = []
        for name in dict.fromkeys(names):
            try:
                test_sets.append(read_references(options.data / name, pooled))
            except UserError as error:
                problems.append(str(error))
        for system in dict.fromkeys(systems):
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


def _key(row: Row) -> tuple[str, str, str]:
    return row["system"], row["inference_tag"], row["set"]


def _folder(exp: Path, row: Row) -> Path:
    return exp.joinpath(*_key(row))
