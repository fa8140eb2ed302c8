"""The section on analyses: any ``analysis/<name>.json``, without knowing which there are."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from espnet_moe.report.page.analysis_tables import analysis_tables, slug_of
from espnet_moe.report.page.blocks import Facts, Heading, Lines, Picture, Section, Text
from espnet_moe.report.page.experiment import Experiment
from espnet_moe.report.summary import Row

PICTURE_BYTES = 4_000_000  # of all pictures in the page
_SVG_BYTES = 250_000  # above, the PNG is taken


def analysis(found: Experiment) -> Section:
    """Every analysis: what it asks, how, what it found, what was not available."""
    section = Section("analysis", "Analysis")
    room = PICTURE_BYTES
    for content in found.analyses:
        name = content["name"]
        try:
            tables = analysis_tables(name, content["results"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found.lacks("analysis", name, f"its results cannot be laid out ({error})", broken=True)
            tables = []
        section.add(
            Heading(content["title"], f"analysis-{slug_of(name)}"),
            Text(content["what"]),
            Facts(tuple(_facts(content))),
        )
        stems = dict.fromkeys(
            path.with_suffix("") for path in sorted(found.exp.glob(f"analysis/{name}_*.*"))
        )
        for stem in stems:
            picture, size = _picture(stem, room)
            if picture is None:
                why = f"too large for the page, or of another kind: {stem}.png"
                found.lacks("analysis (in part)", stem.name, why)
            else:
                section.add(picture)
                room -= size
        section.add(*tables)
        section.add(
            Lines(
                tuple(f"{k}: {v}" for k, v in (content.get("not_available") or {}).items()),
                "Not available",
            ),
            Lines(tuple(content.get("sources") or ()), "Sources", folded=True),
        )
    return section


def _facts(content: Row) -> Iterator[tuple[str, str]]:
    yield "Method", content["method"]
    if units := content.get("units"):
        yield "Units", "; ".join(f"{name}: {unit}" for name, unit in units.items())
    if options := content.get("options"):
        yield "Chosen", "; ".join(f"{name} {_short(value)}" for name, value in options.items())
    if content.get("command"):
        yield "Command", content["command"]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return str(value)


def _picture(stem: Path, room: int) -> tuple[Picture | None, int]:
    """Read a picture: as SVG, which is sharp at any size, or as PNG where that is smaller."""
    vector, points = stem.with_suffix(".svg"), stem.with_suffix(".png")
    for path, kind, limit in (
        (vector, "svg+xml", _SVG_BYTES),
        (points, "png", room),
        (vector, "svg+xml", room),
    ):
        if path.is_file() and path.stat().st_size <= min(limit, room):
            content = base64.b64encode(path.read_bytes()).decode("ascii")
            caption = stem.name.partition("_")[2].replace("_", " ")
            return Picture(f"data:image/{kind};base64,{content}", caption), len(content)
    return None, 0
