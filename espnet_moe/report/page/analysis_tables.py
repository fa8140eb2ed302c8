"""Results of any analysis as tables, without knowing which analyses there are.

A mapping with numbers in it is a row, under a name made of the keys that lead to it; a list of
mappings is rows. Rows under one key and at one depth are one table. ``interval`` in a mapping is
that of the number right before it. A matrix is a row a name: the names are in ``names``, or in
``rows`` and ``columns``, of its mapping or of one above; ``<matrix>_interval`` (``interval`` of
``values``) is a matrix of pairs. A key that ends in ``_at_most`` or ``_at_least`` is of a bound:
its column has ``≤`` or ``≥``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from espnet_moe.report.page.tables import Cell, Column, PageTable, number, words
from espnet_moe.report.summary import Row

_ROWS_SHOWN = 24
_NO_INTERVAL = "the analysis gives none, see its method"
_SIDES = ("names", "rows", "columns")

Sides = tuple[Sequence[Any], Sequence[Any]] | None


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
        slug = f"analysis-{slug_of(name)}-{slug_of(top or 'numbers')}"
        taken = sum(table.slug.startswith(slug) for table in tables)
        tables.append(
            PageTable(
                slug=f"{slug}-{taken + 1}" if taken else slug,
                caption=_caption(top, titles),
                columns=(Column(""), *(Column(_title(t), _NO_INTERVAL) for t in titles)),
                rows=lines,
                shown=_ROWS_SHOWN,
                folded=True,
            )
        )
    return sorted(tables, key=lambda table: len(table.rows) * len(table.columns))


def _walk(
    node: Any,
    path: tuple[str, ...],
    groups: dict[tuple[str, int], _Rows],
    sides: Sides = None,
    label: str = "",
) -> None:
    """Collect rows.

    Args:
        node: A part of the results.
        path: The keys that lead to it; entries of lists by what they say of themselves.
        groups: Rows by key and depth, added to.
        sides: Names of the rows and columns of matrices in it.
        label: Of the row, in place of the last part of the path.
    """
    if isinstance(node, dict):
        sides = _sides(node) or sides
        matrices = _matrices(node, sides)
        for key, lines in matrices.items():
            for name, cells in lines.items():
                below = () if key == "values" else (key,)
                _add(groups, (*path, *below, name), cells)
        used = {*matrices, *map(_interval_of, matrices), *(_SIDES if matrices else ())}
        own, rest = _split({key: value for key, value in node.items() if key not in used})
        if own:
            _add(groups, (*path[:-1], label) if label else path, own)
        for key, value in rest.items():
            _walk(value, (*path, key), groups, sides)
    elif _is_records(node):
        for place, item in enumerate(node):
            # What names it is in its own columns; rows below it have no other name.
            _walk(item, (*path, _name(item, place)), groups, sides, str(place + 1))


def _add(groups: dict[tuple[str, int], _Rows], path: Sequence[str], cells: dict[str, Cell]) -> None:
    rows = groups.setdefault((path[0] if path else "", len(path)), _Rows())
    rows.names.append(" · ".join(path[1:]) or (path[0] if path else "value"))
    rows.cells.append(cells)


def _sides(node: Row) -> Sides:
    """Names of rows and columns, where a mapping says them."""
    if isinstance(node.get("names"), list):
        return node["names"], node["names"]
    if isinstance(node.get("rows"), list) and isinstance(node.get("columns"), list):
        return node["rows"], node["columns"]
    return None


def _matrices(node: Row, sides: Sides) -> dict[str, dict[str, dict[str, Cell]]]:
    """The matrices in a mapping, by key: rows by name, of cells by column."""
    if sides is None:
        return {}
    rows, columns = sides
    found: dict[str, dict[str, dict[str, Cell]]] = {}
    for key, values in node.items():
        if not isinstance(values, list) or len(values) != len(rows) or not values:
            continue
        if not all(isinstance(v, list) and len(v) == len(columns) for v in values):
            continue
        if not all(_is_scalar(cell) for line in values for cell in line):
            continue
        ends = node.get(_interval_of(key)) or [[None] * len(columns)] * len(rows)
        found[key] = {
            str(name): {
                str(column): _number(cell, end)
                for column, cell, end in zip(columns, line, own, strict=True)
            }
            for name, line, own in zip(rows, values, ends, strict=True)
        }
    return found


def _interval_of(key: str) -> str:
    """The key of the intervals of a matrix."""
    return "interval" if key == "values" else f"{key}_interval"


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
    # Lists alone, such as the names of systems, are no row: the tables below show them.
    if not any(cell.is_number for cell in cells.values()) and rest:
        cells = {}
    return cells, rest


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _estimate(node: Mapping[str, Any]) -> str | None:
    """The number that the interval in a mapping is of: the one right before it."""
    ends = node.get("interval")
    if not isinstance(ends, list) or [type(end) in (int, float) for end in ends] != [True, True]:
        return None
    keys = list(node)
    before = keys[: keys.index("interval")][-1:]
    return next((key for key in before if isinstance(node[key], int | float)), None)


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
    # Three significant digits of small numbers, to a millionth.
    small = min(6, 2 - math.floor(math.log10(size))) if 0 < size < 1 else 3
    decimals = 2 if size >= 10 else small
    return number(value, decimals, interval)


def _name(item: Row, place: int) -> str:
    """Name an entry of a list by what it says of itself, else by its place."""
    told = [
        _listed(value) if isinstance(value, list) else str(value)
        for value in item.values()
        if isinstance(value, str)
        or (isinstance(value, list) and value and all(isinstance(v, str) for v in value))
    ]
    first = next((f"{key} {v}" for key, v in item.items() if isinstance(v, int | float)), "")
    return " ".join(told[:4]) or first or str(place + 1)


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
    for end, sign in (("_at_most", " ≤"), ("_at_least", " ≥")):
        key = key.removesuffix(end) + sign if key.endswith(end) else key
    return key.replace("_", " ")


def slug_of(text: str) -> str:
    """Make a name of letters, digits and hyphens."""
    return re.sub(r"[^0-9A-Za-z]+", "-", text).strip("-").lower()
