"""What a section of the page is put together from, besides tables, charts and samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Lines:
    """A list, folded where it is long."""

    items: tuple[str, ...]
    title: str = ""
    folded: bool = False
    kind: str = "lines"


@dataclass(frozen=True)
class Facts:
    """Terms and what is said of them."""

    pairs: tuple[tuple[str, str], ...]
    kind: str = "facts"


@dataclass(frozen=True)
class Heading:
    """Begins a part of a section; the page's own addresses can point to it."""

    text: str
    slug: str
    kind: str = "heading"


@dataclass(frozen=True)
class Picture:
    """A picture that is in the page itself."""

    source: str  # a data: address
    caption: str
    kind: str = "picture"


@dataclass(frozen=True)
class Commands:
    """Command lines, folded."""

    lines: tuple[str, ...]
    kind: str = "commands"


@dataclass
class Section:
    """A section of the page.

    Attributes:
        slug: Its address in the page.
        title: Its heading.
        blocks: Each with a ``kind``, which is the template that draws it.
        nothing: Said where there are no blocks.
    """

    slug: str
    title: str
    blocks: list[Any] = field(default_factory=list)
    nothing: str = "Nothing to show: see what is missing."

    def add(self, *blocks: Any) -> None:
        """Add blocks; ``None`` and empty lists are left out."""
        self.blocks += [b for b in blocks if b is not None and (b.kind != "lines" or b.items)]


def listed(items: Sequence[str]) -> str:
    """Join words: ``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"
