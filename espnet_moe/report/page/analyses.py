"""The section on analyses: any ``analysis/<name>.json``, without knowing which there are.

A mapping with numbers in it is a row, under a name made of the keys that lead to it; a list of
mappings is rows; a matrix is a row a name. Rows under one key and at one depth are one table.
``interval`` in a mapping is that of the one number beside it that no other key explains.
"""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espnet_moe.report.page.blocks import Facts, Heading, Lines, Picture, Section, Text
from espnet_moe.report.page.experiment import Experiment
from espnet_moe.report.page.tables import Cell, Column, PageTable, number, words
from espnet_moe.report.summary import Row

PICTURE_BYTES = 4_000_000  # of all pictures in the page
_SVG_BYTES = 250_000  # above, the PNG is taken
_ROWS_SHOWN = 24
_COLUMNS = 16  # that a table may have to be in the page
_NO_INTERVAL = "the analysis gives none, see its method"
# Numbers that an interval beside them may be of; the first that is there.
_ESTIMATES = (
    *("difference", "change", "gain", "share", "rate", "mean", "accuracy", "estimate", "value"),
)


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
            Heading(content["title"], f"analysis-{_slug(name)}"),
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


@dataclass
class _Rows:
    """Rows of a table to be: cells by column, in the order met."""

    names: list[str] = field(default_factory=list)
    cells: list[dict[str, Cell]] = field(default_factory=list)


def analysis_tables(name: str, results: Row) -> list[PageTable]:
    """Lay out the results of an analysis as tables, the smallest first.

    Args:
        name: Of the analysis; begins the tables' slugs.
        results: The value of ``results`` in its JSON.
    """
    groups: dict[tuple[str, int], _Rows] = {}
    _walk(results, (), groups)
    tables: list[PageTable] = []
    for (top, _), rows in groups.items():
        titles = list(dict.fromkeys(title for line in rows.cells for title in line))
        lines = tuple(
            (words(label), *(line.get(title, Cell("–")) for title in titles))
            for label, line in zip(rows.names, rows.cells, strict=True)
        )
        slug = f"analysis-{_slug(name)}-{_slug(top or 'numbers')}"
        taken = sum(table.slug.startswith(slug) for table in tables)
        tables.append(
            PageTable(
                slug=f"{slug}-{taken + 1}" if taken else slug,
                caption=_caption(top, titles),
                columns=(Column(""), *(Column(_title(t), _NO_INTERVAL) for t in titles)),
                rows=lines,
                shown=_ROWS_SHOWN if len(titles) < _COLUMNS else 0,
                folded=True,
            )
        )
    return sorted(tables, key=lambda table: len(table.rows) * len(table.columns))


def _walk(node: Any, path: tuple[str, ...], groups: dict[tuple[str, int], _Rows]) -> None:
    if isinstance(node, dict) and isinstance(node.get("values"), list) and _is_matrix(node):
        _add_matrix(node, path, groups)
    elif isinstance(node, dict):
        own, rest = _split(node)
        if own:
            _add(groups, path, own)
        for key, value in rest.items():
            _walk(value, (*path, key), groups)
    elif _is_records(node):
        for place, item in enumerate(node):
            _walk(item, (*path, _name(item, place)), groups)


def _add(groups: dict[tuple[str, int], _Rows], path: Sequence[str], cells: dict[str, Cell]) -> None:
    rows = groups.setdefault((path[0] if path else "", len(path)), _Rows())
    rows.names.append(" · ".join(path[1:]) or (path[0] if path else "value"))
    rows.cells.append(cells)


def _is_matrix(node: Row) -> bool:
    return bool(node["values"]) and all(isinstance(line, list) for line in node["values"])


def _add_matrix(node: Row, path: tuple[str, ...], groups: dict[tuple[str, int], _Rows]) -> None:
    rows = node.get("names") or node.get("rows") or range(len(node["values"]))
    columns = node.get("names") or node.get("columns") or range(len(node["values"][0]))
    for name, line in zip(rows, node["values"], strict=True):
        cells = {str(c): _number(value) for c, value in zip(columns, line, strict=True)}
        _add(groups, (*path, str(name)), cells)


def _split(node: Row) -> tuple[dict[str, Cell], dict[str, Any]]:
    """Part a mapping into cells of a row and what is deeper."""
    cells: dict[str, Cell] = {}
    rest: dict[str, Any] = {}
    estimate = _estimate(node)
    for key, value in node.items():
        if key == "interval" and estimate is not None:
            continue
        if key == estimate:
            cells[key] = _number(value, node["interval"])
        elif isinstance(value, dict) and cells and _is_shallow(value):
            cells.update(_flat(key, value))
        elif isinstance(value, dict) or _is_records(value):
            rest[key] = value
        elif isinstance(value, list):
            cells[key] = words(_listed(value))
        else:
            cells[key] = _number(value)
    # Lists alone, such as the names of systems, are no row: the tables show them.
    if not any(cell.is_number for cell in cells.values()) and rest:
        cells = {}
    return cells, rest


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _estimate(node: Mapping[str, Any]) -> str | None:
    """The number that the interval in a mapping is of."""
    ends = node.get("interval")
    if not isinstance(ends, list) or len(ends) != 2 or None in ends:
        return None
    known = [key for key in _ESTIMATES if isinstance(node.get(key), int | float)]
    others = [k for k, v in node.items() if k != "interval" and isinstance(v, int | float)]
    return known[0] if known else others[0] if len(others) == 1 else None


def _is_shallow(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is of values and estimates, or an estimate itself."""
    return bool(value) and (
        _is_estimate(value)
        or all(_is_estimate(v) if isinstance(v, dict) else _is_scalar(v) for v in value.values())
    )


def _is_estimate(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is of a number, its interval, and at most more numbers about it."""
    others = (item for key, item in value.items() if key != "interval")
    return "interval" in value and all(map(_is_scalar, others))


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _flat(name: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Cell]]:
    """The cells of a shallow mapping: an estimate has its name, what is beside it has its own."""
    estimate = _estimate(value)
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(f"{name}.{key}", item)
        elif key == estimate:
            yield name, _number(item, value["interval"])
        elif key != "interval":
            yield f"{name}.{key}", _number(item)


def _number(value: Any, interval: Sequence[float] | None = None) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return words(value)
    if isinstance(value, int):
        return number(value, 0, interval)
    size = abs(value)
    decimals = 2 if size >= 10 else 3 if size >= 0.01 or value == 0 else 6
    return number(value, decimals, interval)


def _name(item: Row, place: int) -> str:
    """Name an entry of a list by what it says of itself, else by its place."""
    told = [
        _listed(value) if isinstance(value, list) else str(value)
        for value in item.values()
        if isinstance(value, str)
        or (isinstance(value, list) and value and all(isinstance(v, str) for v in value))
    ]
    return " ".join(told[:4]) or str(place + 1)


def _listed(values: Sequence[Any]) -> str:
    if len(values) > 8:
        return f"{len(values)} values"
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _caption(top: str, titles: Sequence[str]) -> str:
    """Name a table by the key that leads to it, and by what is in it."""
    shown = [_title(title) for title in titles[:5]]
    more = ", …" if len(titles) > len(shown) else ""
    return f"{(_title(top) or 'numbers').capitalize()}: {', '.join(shown)}{more}"


def _title(key: str) -> str:
    return key.replace("_", " ")


def _slug(text: str) -> str:
    return re.sub(r"[^0-9A-Za-z]+", "-", text).strip("-").lower()
