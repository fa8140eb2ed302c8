"""What a grid of experiments has come to: WER by its last axis, parameters, a picture."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_moe.data.files import read_lines
from espnet_moe.errors import UserError
from espnet_moe.files import atomic
from espnet_moe.grid import Experiment
from espnet_moe.report.summary import Row, Table
from espnet_moe.scoring.folders import MIXED, read_jobs
from espnet_moe.scoring.results import read_results
from espnet_moe.scoring.systems import BASELINE, ORACLE, PARTS
from espnet_moe.tracking import backbone_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A finished experiment: its place in the grid, and what its ``results.json`` holds."""

    experiment: Experiment
    results: dict[str, Any]


def read_finished(experiments: Sequence[Experiment]) -> list[Finished]:
    """Read the results of those that are finished."""
    return [Finished(one, read_results(one.folder)) for one in experiments if one.is_done()]


def wer_table(finished: Sequence[Finished], systems: Sequence[str]) -> Table:
    """WER with its interval: a column each value of the last axis, and the baseline.

    A row is of a test set, a system, and the values of the other axes. The baseline is told where
    it is the same for the whole row.

    Args:
        finished: At least one.
        systems: Whose WER.
    """
    axes = list(finished[0].experiment.values)
    columns = list(dict.fromkeys(one.experiment.values[axes[-1]] for one in finished))
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    baselines: dict[tuple[str, ...], set[str]] = {}
    for one in finished:
        values = one.experiment.values
        for row in _plain(one.results):
            place = (*(values[axis] for axis in axes[:-1]), row["set"])
            if row["system"] == BASELINE:
                baselines.setdefault(place, set()).add(_cell(row))
            if row["system"] in systems:
                found = cells.setdefault((*place, row["system"]), {})
                found[values[axes[-1]]] = _cell(row)
    several = len(systems) > 1
    header = (
        *(*axes[:-1], "set", *(["system"] if several else []), BASELINE),
        *(f"{axes[-1]} {name}" for name in columns),
    )
    lines = []
    for key, found in cells.items():
        of_baseline = baselines.get(key[:-1], set())
        alike = next(iter(of_baseline)) if len(of_baseline) == 1 else "-"
        shown = key if several else key[:-1]
        lines.append((*shown, alike, *(found.get(name, "-") for name in columns)))
    return Table(header, tuple(lines))


def domain_table(finished: Sequence[Finished], systems: Sequence[str]) -> Table | None:
    """WER on the corpora that training has a share of, against that on those it has none of.

    Shares are those of ``mix``, and sets are named ``<corpus>_<language>_<split>``.

    Args:
        finished: At least one.
        systems: Whose WER.

    Returns:
        A row an experiment, language and system; ``None`` where no training leaves a corpus out.
    """
    axes = list(finished[0].experiment.values)
    lines = []
    for one in finished:
        pairs = [entry.split(":") for entry in one.experiment.options.get("mix", "").split()]
        shares = {corpus: float(share) for corpus, share in pairs}
        sides: dict[tuple[str, str], dict[bool, list[str]]] = {}
        for row in _plain(one.results):
            share = shares.get(row["set"].removesuffix(f"_{row['language']}_test"))
            if row["system"] in systems and share is not None:
                side = sides.setdefault((row["language"], row["system"]), {True: [], False: []})
                side[share > 0].append(f"{row['set'].split('_')[0]} {_cell(row)}")
        values = [one.experiment.values[axis] for axis in axes]
        lines += [
            (*values, *names, ", ".join(side[True]), ", ".join(side[False]))
            for names, side in sides.items()
            if side[True] and side[False]
        ]
    if not lines:
        return None
    return Table((*axes, "language", "system", "in-domain", "cross-domain"), tuple(lines))


def parameter_table(finished: Sequence[Finished], systems: Sequence[str]) -> Table:
    """The parameters of each experiment's experts, and its mean WER over its sets."""
    axes = list(finished[0].experiment.values)
    lines = []
    for one in finished:
        for system in systems:
            rows = [row for row in _plain(one.results) if row["system"] == system]
            if not rows:
                continue
            mean = sum(row["wer"] for row in rows) / len(rows)
            own = max(row.get("trainable_params") or 0 for row in rows)
            values = (one.experiment.values[axis] for axis in axes)
            counts = str(own), str(rows[0].get("params", "-"))
            lines.append((*values, system, *counts, f"{mean:.2f}"))
    return Table((*axes, "system", "own parameters", "parameters in all", "mean WER"), tuple(lines))


CURVES = ("language", "start", "hours", "wer", "low", "high")


def learning_curves(finished: Sequence[Finished]) -> dict[str, list[tuple[str, ...]]]:
    """Read how a language's WER falls with its data, of a grid with the axis ``start``.

    The WER is the oracle's: it is experts that are transferred, not the decisions of a router.

    Args:
        finished: Each of one language, which ``langs`` names, with an expert by language; the log
            tells of others, which are left out. Hours are those of the training set.

    Returns:
        By the name of the backbone (:func:`espnet_moe.tracking.backbone_name`) rows of
        :data:`CURVES`, with the bootstrap interval; nothing for a grid without that axis.
    """
    curves: dict[str, list[tuple[str, ...]]] = {}
    for one in finished:
        if "start" not in one.experiment.values:
            continue
        try:
            backbone, line = _point(one)
        except UserError as error:
            log.warning("%s is in no learning curve: %s", one.experiment.name, error)
            continue
        curves.setdefault(backbone, []).append(line)
    return curves


def _point(one: Finished) -> tuple[str, tuple[str, ...]]:
    """A training's backbone, and its row of a learning curve.

    Raises:
        UserError: For an experiment that has no place in one.
    """
    experiment = one.experiment
    langs = experiment.options.get("langs", "").split()
    if len(langs) != 1:
        named = f"names {' '.join(langs)}" if langs else "is not told"
        raise UserError(f"a curve is of one language, and langs of its grid {named}")
    name = f"test_{langs[0]}"
    rows = [r for r in _plain(one.results) if (r["system"], r["set"]) == (ORACLE, name)]
    if len(rows) != 1:
        raise UserError(
            f"a curve is of the system {ORACLE} with experts by language, and it has "
            f"{len(rows)} results of that on {name}"
        )
    data = experiment.folder / "assign_language" / "data" / f"train_{langs[0]}" / "utt2dur"
    try:
        hours = sum(float(line.split()[1]) for _, line in read_lines(data)) / 3600
    except (IndexError, ValueError):
        raise UserError(f"{data} is damaged") from None
    # As decoded with: a grid may leave the choice to run.sh.
    jobs = read_jobs(experiment.folder / ORACLE / rows[0]["inference_tag"] / "logdir")
    backbones = {backbone_name(job["backbone"]) for job in jobs if job.get("backbone")}
    if len(backbones) != 1:
        raise UserError("its decoding does not tell with which base it was")
    numbers = (hours, rows[0]["wer"], *rows[0]["wer_ci"])
    told = (langs[0], experiment.values["start"], *(f"{number:.4f}" for number in numbers))
    return backbones.pop(), told


def draw(finished: Sequence[Finished], systems: Sequence[str], path: Path) -> bool:
    """Draw the WER of every row of the table over the last axis, with its intervals.

    Returns:
        Whether there is a picture: not without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        log.warning("no picture: matplotlib is not installed (it comes with espnet_moe[train])")
        return False
    axes = list(finished[0].experiment.values)
    columns = list(dict.fromkeys(one.experiment.values[axes[-1]] for one in finished))
    lines: dict[str, dict[str, Row]] = {}
    for one in finished:
        values = one.experiment.values
        for row in _plain(one.results):
            if row["system"] in systems:
                parts = [*(values[axis] for axis in axes[:-1]), row["set"]]
                label = " ".join(parts + ([row["system"]] if len(systems) > 1 else []))
                lines.setdefault(label, {})[values[axes[-1]]] = row
    figure = Figure(layout="constrained", figsize=(9, 4.5))
    FigureCanvasAgg(figure)
    plot = figure.subplots()
    for number, (label, found) in enumerate(lines.items()):
        there = [name for name in columns if name in found]
        # Beside one another, so that intervals do not hide each other.
        places = [columns.index(name) + 0.03 * (number - len(lines) / 2) for name in there]
        wers = [found[name]["wer"] for name in there]
        low = [found[name]["wer"] - found[name]["wer_ci"][0] for name in there]
        high = [found[name]["wer_ci"][1] - found[name]["wer"] for name in there]
        plot.errorbar(places, wers, yerr=[low, high], marker="o", capsize=2, label=label)
    plot.set_xticks(range(len(columns)), columns)
    plot.set_xlabel(axes[-1])
    plot.set_ylabel(f"WER of {', '.join(systems)} in %")
    plot.set_ylim(bottom=0)
    figure.legend(fontsize="small", loc="outside right upper")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return True


def _plain(results: dict[str, Any]) -> list[Row]:
    """Rows of sets that are neither code-switched nor parts of such, with a WER."""
    return [
        row
        for row in results["rows"]
        if row["wer"] is not None and row["language"] != MIXED and not row["set"].endswith(PARTS)
    ]


def _cell(row: Row) -> str:
    low, high = row["wer_ci"]
    return f"{row['wer']:.2f} [{low:.2f}, {high:.2f}]"
