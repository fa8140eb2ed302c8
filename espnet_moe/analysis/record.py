"""What an analysis hands back: numbers that say of themselves what they are.

``<out>/<name>.json`` holds format, command, title, what, method, sources, units, options, results
and not_available; ``<out>/<name>.npz`` arrays too large for JSON, where there are any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.data.files import write_text
from espnet_moe.files import atomic
from espnet_moe.provenance import commit
from espnet_moe.scoring.files import to_json

FORMAT = 1
_DIGITS = 6  # significant ones in the JSON


@dataclass(frozen=True)
class About:
    """What an analysis is, whatever comes out.

    Attributes:
        name: Of its files, e.g. ``similarity``.
        title: Heading for a reader.
        what: The question it answers, in a sentence or two.
        method: How the numbers are made.
        sources: Papers and tools that the method is from.
        units: Unit by name of a number in the results.
    """

    name: str
    title: str
    what: str
    method: str
    sources: Sequence[str]
    units: Mapping[str, str]


@dataclass(frozen=True)
class Analysis:
    """An analysis that is done.

    Attributes:
        about: What it is.
        results: Numbers by name; matrices as ``{"names": …, "values": …}``.
        options: What was chosen: subset sizes, seeds, thresholds.
        not_available: Reason by name of what could not be computed.
        arrays: What is too large for JSON, by name.
    """

    about: About
    results: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    not_available: Mapping[str, str] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its files."""
        return self.about.name

    def content(self, command: str = "") -> dict[str, Any]:
        """What the JSON holds; every float with six significant digits."""
        parts = ("options", "results", "not_available")
        told = {**vars(self.about), **{part: getattr(self, part) for part in parts}}
        date = datetime.now().astimezone().isoformat(timespec="seconds")
        return {"format": FORMAT, "command": command, "date": date, **commit(), **plain(told)}

    def write(self, out: Path, command: str = "") -> dict[str, Any]:
        """Write the files of the analysis, each whole or not at all; return the JSON's content."""
        content = self.content(command)
        if self.arrays:
            arrays: dict[str, Any] = dict(self.arrays)
            with atomic(out / f"{self.name}.npz") as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **arrays)
        else:
            (out / f"{self.name}.npz").unlink(missing_ok=True)
        write_text(out / f"{self.name}.json", to_json(content))
        return content


def matrix(names: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """A square matrix ``(n, n)`` with the names of its rows and columns."""
    return {"names": list(names), "values": values}


def plain(value: Any) -> Any:
    """Mappings, sequences and numpy's numbers as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return value
