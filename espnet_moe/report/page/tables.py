"""Tables of the page: cells that know their number and its interval, written as CSV and LaTeX."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espnet_moe.scoring.error_rates import wilson

WIDEST = 16  # columns of a table in the page
FEW = 100  # utterances; below, a rate is marked
COUNTED = "counted or set, not estimated"
ONE_RUN = "the clock or memory of one run on one machine"

Value = float | str | None
Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """What stands in a place of a table.

    Attributes:
        text: To be read.
        value: To be sorted by and computed with; ``None`` for nothing.
        interval: 95 % of the value, in its unit.
        note: What follows it, such as a change.
        state: ``good`` or ``bad`` where it is a verdict.
    """

    text: str
    value: Value = None
    interval: Interval | None = None
    note: str = ""
    state: str = ""
    decimals: int = 2

    @property
    def interval_text(self) -> str:
        """The interval in brackets; empty where there is none."""
        if self.interval is None:
            return ""
        low, high = (minus(f"{end:.{self.decimals}f}") for end in self.interval)
        return f"[{low}, {high}]"

    @property
    def is_number(self) -> bool:
        """Whether it holds a number."""
        return isinstance(self.value, int | float)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its heading.
        why: Why its numbers have no intervals, where some have none.
    """

    title: str
    why: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table with a name and a caption.

    Attributes:
        slug: Name of its files, and its place in the page.
        caption: What it shows, in a sentence.
        columns: The first names the rows.
        rows: Of as many cells each.
        shown: Rows to show in the page, of at most :data:`WIDEST` columns; the files hold all.
        folded: Whether it is to be opened first.
    """

    slug: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: int = 60
    folded: bool = False
    kind: str = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.slug}: a row of {len(row)} cells, not {len(self.columns)}")
            for cell, column in zip(row, self.columns, strict=True):
                if cell.is_number and cell.interval is None and not column.why:
                    raise ValueError(f"{self.slug}: {column.title} has no interval, and no reason")

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column holds numbers."""
        return tuple(any(row[i].is_number for row in self.rows) for i in range(len(self.columns)))

    @property
    def columns_shown(self) -> tuple[Column, ...]:
        """The columns that are in the page."""
        return self.columns[:WIDEST]

    @property
    def reasons(self) -> dict[str, list[str]]:
        """Titles of the columns in the page with numbers without an interval, by the reason."""
        found: dict[str, list[str]] = {}
        for i, column in enumerate(self.columns_shown):
            if any(row[i].is_number and row[i].interval is None for row in self.rows):
                found.setdefault(column.why, []).append(column.title or "the first column")
        return found


def words(text: object) -> Cell:
    """A cell of text; of nothing where there is none."""
    return Cell("–") if text in (None, "") else Cell(str(text), str(text))


def number(
    value: float | None,
    decimals: int = 2,
    interval: Sequence[float] | None = None,
    utterances: int | None = None,
    note: str = "",
) -> Cell:
    """A cell of a number.

    Args:
        value: ``None`` where it is not known.
        decimals: To show.
        interval: 95 %, in the unit of the value.
        utterances: That it rests on, where few of them are to be marked.
        note: What follows it.
    """
    if value is None:
        return Cell("–")
    few = "†" if utterances is not None and utterances < FEW else ""
    text = f"{value:,.{decimals}f}"
    ends = None if interval is None else (float(interval[0]), float(interval[1]))
    return Cell(minus(text) + few, value, ends, note, decimals=decimals)


def share(right: int, total: int, decimals: int = 1) -> Cell:
    """A cell of a share in percent with Wilson's interval; of nothing for nothing of nothing."""
    if not total:
        return Cell("–")
    low, high = wilson(right, total)
    return number(100 * right / total, decimals, (100 * low, 100 * high), total)


def minus(text: str) -> str:
    """Set a true minus sign, which is as wide as a figure."""
    return text.replace("-", "−")


def to_csv(table: PageTable) -> str:
    """Return all rows as comma-separated values: numbers as they are, intervals in two columns."""
    wide = [any(row[i].interval for row in table.rows) for i in range(len(table.columns))]
    noted = [any(row[i].note for row in table.rows) for i in range(len(table.columns))]
    header: list[str] = []
    for i, column in enumerate(table.columns):
        title = column.title or "name"
        header += [title, *([f"{title} low", f"{title} high"] if wide[i] else [])]
        header += [f"{title} note"] if noted[i] else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        line: list[Value] = []
        for i, cell in enumerate(row):
            line.append("" if cell.value is None else cell.value)
            if wide[i]:
                line += list(cell.interval or ("", ""))
            if noted[i]:
                line.append(cell.note)
        writer.writerow(line)
    return text.getvalue()


# What LaTeX reads as a command, and signs that its usual fonts have in formulas only.
_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "→": r"$\to$",
    "†": r"\dag{}",
    "–": "--",
    "·": r"\textperiodcentered{}",
    "\n": " ",
}  # fmt: skip


def to_latex(table: PageTable) -> str:
    """Return all rows as a LaTeX table in the style of the booktabs package.

    Texts in Indic scripts need an engine that has their fonts (XeLaTeX, LuaLaTeX).
    """
    spec = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{latex(table.caption)}}}",
        f"\\label{{tab:{table.slug}}}",
        f"\\begin{{tabular}}{{{spec}}}",
        "\\toprule",
        _latex_row(latex(column.title) for column in table.columns),
        "\\midrule",
        *(_latex_row(map(_latex_cell, row)) for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Write text so that LaTeX sets it as it is."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell) -> str:
    text = latex(cell.text)
    if cell.interval is not None:
        text += f" {{\\footnotesize {latex(cell.interval_text)}}}"
    return f"{text} {latex(cell.note)}" if cell.note else text
