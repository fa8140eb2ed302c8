"""Puts the page together and writes it: ``index.html``, ``tables/*.csv``, ``tables/*.tex``."""

import base64
import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from espnet_moe.data.files import write_text
from espnet_moe.report.page.analyses import analysis
from espnet_moe.report.page.blocks import Commands, Section, Text
from espnet_moe.report.page.experiment import Experiment, Missing, read_experiment
from espnet_moe.report.page.routing_sections import codeswitch, routing
from espnet_moe.report.page.samples import samples
from espnet_moe.report.page.scripts import marked
from espnet_moe.report.page.sections import (
    baselines,
    cost,
    data,
    experts,
    provenance,
    summary,
    targets,
)
from espnet_moe.report.page.significance import significance
from espnet_moe.report.page.tables import (
    Cell,
    Column,
    PageTable,
    minus,
    share,
    to_csv,
    to_latex,
    words,
)
from espnet_moe.scoring.folders import ALL

log = logging.getLogger(__name__)

COLOURS = 8  # of experts and languages, in style.css


def write_report(
    exp: Path,
    data_root: Path,
    out: Path,
    analyses: Sequence[str] = (),
    required: Sequence[str] = (),
    seed: int = 0,
) -> list[Missing]:
    """Write the page of an experiment.

    Args:
        exp: The experiment folder.
        data_root: The folder of the formatted data dirs, such as ``dump/raw``.
        out: The folder to write to.
        analyses: Those that were asked for; all that are there are shown.
        required: Parts of the page that were asked for.
        seed: Of the choice of utterances to listen to.

    Returns:
        What is missing of all that was asked for.

    Raises:
        UserError: Where there is no such experiment, or it cannot be written.
    """
    found = read_experiment(exp, data_root, analyses)
    sections = make_sections(found, seed)
    lacking = found.lacking(required)
    sections.append(_missing(found, lacking))
    tables = [b for section in sections for b in section.blocks if isinstance(b, PageTable)]
    written = set()
    for table in tables:
        for suffix, write in (("csv", to_csv), ("tex", to_latex)):
            path = out / "tables" / f"{table.slug}.{suffix}"
            write_text(path, write(table))
            written.add(path)
    # A table of an earlier run that this one does not have would be taken for one of its own.
    for path in (out / "tables").glob("*.*"):
        if path.suffix in (".csv", ".tex") and path not in written:
            path.unlink()
    write_text(out / "index.html", render(found, sections, lacking))
    return lacking


def make_sections(found: Experiment, seed: int) -> list[Section]:
    """Make all sections; what cannot be shown is added to what is missing."""
    makers: tuple[tuple[str, str, Callable[[Experiment], Section]], ...] = (
        ("summary", "Word error rates", summary),
        ("data", "Data", data),
        ("baselines", "Baselines", baselines),
        ("experts", "Experts", experts),
        ("routing", "Routing", routing),
        ("codeswitch", "Code-switching", codeswitch),
        ("samples", "Listen", lambda each: samples(each, seed)),
        ("analysis", "Analysis", analysis),
        ("significance", "Significance", significance),
        ("cost", "Cost", cost),
        ("targets", "Targets", targets),
    )
    sections = []
    for slug, title, make in makers:
        try:
            sections.append(make(found))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # Results of another version: the rest of the page is worth having.
            log.exception("no section %s", slug)
            why = (
                f"its results are of another layout ({type(error).__name__}: {error}); score again"
            )
            found.lacks(slug, title, why, broken=True)
            sections.append(Section(slug, title))
    sections.append(_making(found))
    return sections


def _making(found: Experiment) -> Section:
    section = Section("making", "How it was made")
    section.add(*provenance(found))
    commands = [command for row in found.rows for command in row.get("decode_commands") or []]
    commands += [row["score_command"] for row in found.rows if row.get("score_command")]
    if commands:
        section.add(Commands(tuple(dict.fromkeys(commands))))
    return section


def _missing(found: Experiment, lacking: Sequence[Missing]) -> Section:
    section = Section("missing", "What failed or is missing", nothing="Nothing.")
    parts = (
        ("missing-asked", "Asked for, or there but not to be read.", lacking),
        (
            "missing-else",
            "Not part of this experiment, or not available.",
            [line for line in found.missing if line not in lacking],
        ),
    )
    for slug, caption, lines in parts:
        if lines:
            rows = tuple((words(m.part), words(m.what), words(m.why)) for m in lines)
            columns = (Column("part"), Column("what"), Column("why"))
            section.add(PageTable(slug, caption, columns, rows, shown=200))
    if not lacking:
        section.blocks.insert(0, Text("Everything that was asked for is there."))
    return section


def render(found: Experiment, sections: Sequence[Section], lacking: Sequence[Missing]) -> str:
    """Return the page."""
    loader = PackageLoader("espnet_moe", "report/templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = _coloured(found)
    environment.filters["marked"] = marked
    environment.filters["colour"] = lambda name: (
        f"e{names.index(name) % COLOURS}" if name in names else "e"
    )
    style, script = (loader.get_source(environment, n)[0] for n in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return environment.get_template("index.html.j2").render(
        name=found.exp.resolve().name,
        results=found.results,
        headline=_headline(found),
        sections=sections,
        lacking=lacking,
        style=Markup(style),
        script=Markup(script),
        # Nothing is fetched, and no script runs but the page's own, whatever a transcript holds.
        policy=(
            "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; "
            f"script-src 'sha256-{digest}'"
        ),
    )


def _coloured(found: Experiment) -> list[str]:
    """Experts and languages, in the order of their colours."""
    names = [name for entry in found.results.get("experts") or [] for name in entry["experts"]]
    spoken = [name for facts in found.sets.values() for name in facts.languages]
    return list(dict.fromkeys([*names, *sorted(spoken)]))


def _headline(found: Experiment) -> list[tuple[Cell, str]]:
    """The few numbers to begin with."""
    told: list[tuple[Cell, str]] = []
    try:
        results: dict[str, Any] = found.results
        averages = [a for a in results.get("averages") or [] if a["wer"] is not None]
        base = next((a for a in averages if a["system"] == results["baseline"]), None)
        if base is not None:
            told.append((Cell(f"{base['wer']:.2f} %"), f"mean WER of {base['system']}"))
        others = [a for a in averages if a is not base]
        if others:
            best = min(others, key=lambda a: a["wer"])
            told.append((Cell(f"{best['wer']:.2f} %"), f"lowest mean WER: {best['system']}"))
        routed = [r for r in results.get("routing") or [] if r["set"] == ALL]
        if routed:
            row = routed[0]
            cell = share(round(row["accuracy"] / 100 * row["utterances"]), row["utterances"])
            told.append((Cell(f"{cell.text} %", note=minus(cell.interval_text)),
                         f"router accuracy, {row['system']}"))  # fmt: skip
        if judged := results.get("targets"):
            met = sum(row["met"] is True for row in judged)
            told.append((Cell(f"{met} of {len(judged)}"), "targets met"))
    except (KeyError, TypeError, ValueError) as error:
        log.warning("no headline: %s", error)
    return told
