"""Grids of experiments: every combination of the values of some axes is a run of a recipe.

    ranks:                            # a grid
      options:                        # of run.sh, the same for all its experiments
        systems: baseline oracle
      axes:                           # the first parts the rows of the report, the last its columns
        backbone: [openai/whisper-small, openai/whisper-medium]      # an option and its values
        rank:                         # or names of values, and the options that each stands for
          4: {train_args: --expert_conf rank=4 --expert_conf alpha=8}
          8: {train_args: --expert_conf rank=8 --expert_conf alpha=16}

Several axes may have ``train_args``, which are joined; any other option is set once. An experiment
has the folder ``<exp>/<grid>/<name>``, with the words for run.sh in ``options``.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_moe.config import ConfigError, read_config
from espnet_moe.data.files import write_text
from espnet_moe.errors import UserError
from espnet_moe.files import changed_since
from espnet_moe.scoring.results import MANIFEST

WORDS = "options"
DONE = "options.done"
JOINED = "train_args"  # several axes may have a part in it


@dataclass(frozen=True)
class Experiment:
    """A run of a recipe.

    Attributes:
        name: What tells it apart from others of its grid.
        values: The name of its value on each axis.
        options: Of run.sh.
        folder: Where its experts and results are.
    """

    name: str
    values: Mapping[str, str]
    options: Mapping[str, str]
    folder: Path

    def words(self) -> str:
        """The command line of run.sh, a word a line."""
        pairs = {**self.options, "expdir": str(self.folder)}
        return "".join(f"--{name}\n{value}\n" for name, value in pairs.items())

    def is_done(self, run_args: str | None = None) -> bool:
        """Whether there are whole results of these very options.

        Args:
            run_args: Further words of all experiments, which are to be the same, too; ``None``:
                whatever they were.
        """
        done = self.folder / DONE
        if not done.is_file():
            return False
        told = done.read_text(encoding="utf-8")
        if not told.startswith(self.words()) or (
            run_args is not None and told != self._told(run_args)
        ):
            return False
        try:
            return not changed_since(self.folder / MANIFEST)
        except UserError:
            return False

    def prepare(self, run_args: str = "") -> None:
        """Write the words for run.sh; what results there are is no longer of them.

        Raises:
            ConfigError: Where further words would change what tells experiments apart.
        """
        own = {f"--{name}" for name in (*self.options, "expdir")}
        if both := sorted(own & set(run_args.split())):
            raise ConfigError(
                f"--run_args has {', '.join(both)}, which the grid sets: leave it out"
            )
        (self.folder / DONE).unlink(missing_ok=True)
        write_text(self.folder / WORDS, self.words())

    def finish(self, run_args: str = "") -> None:
        """Note that the results are of these options."""
        write_text(self.folder / DONE, self._told(run_args))

    def _told(self, run_args: str) -> str:
        return f"{self.words()}run_args: {run_args}\n"


def read_grid(registry: str | Path, grid: str, exp: str | Path) -> list[Experiment]:
    """Read the experiments of a grid.

    Args:
        registry: YAML file of grids, as above.
        grid: Name of one of them.
        exp: Folder of the experiments.

    Raises:
        ConfigError: For a grid that is not there or not as above, two experiments of one name, or
            an option that two axes set.
    """
    grids = read_config(registry)
    if grid not in grids:
        raise ConfigError(f"{registry} has no grid {grid}; there are {', '.join(map(str, grids))}")
    content = grids[grid]
    where = f"{registry}: {grid}"
    if not isinstance(content, dict) or not content.keys() <= {"axes", "options"}:
        raise ConfigError(f"{where}: a grid is a mapping with axes and options")
    axes = {str(axis): _values(axis, v, where) for axis, v in (content.get("axes") or {}).items()}
    if not axes:
        raise ConfigError(f"{where} has no axes")
    common = {str(k): _text(v) for k, v in (content.get("options") or {}).items()}
    found = []
    for chosen in itertools.product(*(values.items() for values in axes.values())):
        values = dict(zip(axes, (name for name, _ in chosen), strict=True))
        options = dict(common)
        for axis, (_, own) in zip(axes, chosen, strict=True):
            if twice := sorted((own.keys() & options.keys()) - {JOINED}):
                raise ConfigError(f"{where}: axis {axis} sets {', '.join(twice)} a second time")
            joined = " ".join(part[JOINED] for part in (options, own) if JOINED in part)
            options |= own | ({JOINED: joined} if joined else {})
        name = "_".join(_slug(f"{v}" if not v.isdigit() else f"{a}{v}") for a, v in values.items())
        found.append(Experiment(name, values, options, Path(exp) / grid / name))
    names = [one.name for one in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{where}: several experiments are called {', '.join(repeated)}")
    return found


def _values(axis: object, values: object, where: str) -> dict[str, dict[str, str]]:
    """The options of each value of an axis, by the value's name."""
    if isinstance(values, list) and values:
        names = [Path(_text(v)).name or _text(v) for v in values]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"{where}: axis {axis} has several values called {', '.join(repeated)}: name them"
            )
        return {n: {str(axis): _text(v)} for n, v in zip(names, values, strict=True)}
    if isinstance(values, dict) and values and all(isinstance(v, dict) for v in values.values()):
        return {
            str(name): {str(k): _text(v) for k, v in options.items()}
            for name, options in values.items()
        }
    raise ConfigError(f"{where}: axis {axis} is a list of values, or names with their options")


def _text(value: Any) -> str:
    """As a recipe's option is written; YAML reads ``true`` and the empty value otherwise."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)
