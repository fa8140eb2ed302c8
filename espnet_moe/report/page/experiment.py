"""All that the page is made of, read from an experiment folder; what is not there is a line."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from espnet_moe.data.datadir import DataDir, load_datadir
from espnet_moe.errors import UserError
from espnet_moe.files import changed_since
from espnet_moe.report.summary import Row
from espnet_moe.scoring.files import read_json_object
from espnet_moe.scoring.results import MANIFEST, read_results

log = logging.getLogger(__name__)

# What can be asked for by name: sections that an experiment may do without.
PARTS = (
    *("data", "baselines", "experts", "routing", "codeswitch", "samples"),
    *("analysis", "significance", "cost", "targets"),
)
ANALYSIS_KEYS = ("name", "title", "what", "method", "results")


@dataclass(frozen=True)
class Missing:
    """Something that the page cannot show.

    Attributes:
        part: The section it belongs to, one of :data:`PARTS`, or ``results``; followed by
            ``(in part)`` where the section can do without.
        what: A name for it.
        why: The reason, and the remedy where there is one.
        broken: Whether the experiment has it and it cannot be read; else it was never made.
    """

    part: str
    what: str
    why: str
    broken: bool = False


@dataclass(frozen=True)
class SetFacts:
    """What is in a data directory."""

    name: str
    languages: tuple[str, ...]
    utterances: int
    seconds: float | None
    speakers: int
    corpora: tuple[str, ...]
    skipped: int


@dataclass(frozen=True)
class ExpertFacts:
    """A trained expert: its folder in the experiment, its ``expert.json``, its size."""

    folder: str
    manifest: Row
    parameters: int | None


@dataclass
class Experiment:
    """What was found.

    Attributes:
        exp: The experiment folder.
        data: The folder of the formatted data dirs.
        results: The content of ``results.json``; empty where there is none.
        sets: By name the data dirs of languages, and those that results are of.
        experts: Trained ones, of the phases that trained any.
        analyses: Contents of ``analysis/*.json``.
        missing: What was not.
    """

    exp: Path
    data: Path
    results: Row = field(default_factory=dict)
    sets: dict[str, SetFacts] = field(default_factory=dict)
    experts: list[ExpertFacts] = field(default_factory=list)
    analyses: list[Row] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """The rows of ``results.json``."""
        return list(self.results.get("rows") or [])

    def lacks(self, part: str, what: str, why: object, broken: bool = False) -> None:
        """Note that something is missing, once."""
        line = Missing(part, what, str(why), broken)
        if line not in self.missing:
            self.missing.append(line)

    def lacking(self, parts: Sequence[str]) -> list[Missing]:
        """What is missing of what was asked for: all that is broken, and of these parts all."""
        return [line for line in self.missing if line.broken or line.part in parts]


def read_experiment(exp: Path, data: Path, analyses: Sequence[str] = ()) -> Experiment:
    """Read an experiment folder.

    Args:
        exp: The experiment folder.
        data: The folder of the formatted data dirs, such as ``dump/raw``.
        analyses: Names of those that were asked for.

    Raises:
        UserError: Where there is no such experiment folder.
    """
    if not exp.is_dir():
        raise UserError(f"--exp {exp}: no such folder; name the folder of an experiment")
    found = Experiment(exp, data)
    _read_results(found)
    _read_sets(found)
    _read_experts(found)
    _read_analyses(found, analyses)
    return found


def _read_results(found: Experiment) -> None:
    try:
        found.results = read_results(found.exp)
    except UserError as error:
        found.lacks("results", "results.json", error, broken=True)
        return
    try:
        if "results.json" in changed_since(found.exp / MANIFEST):
            why = "it changed after scoring: what is told here may not be what was measured"
            found.lacks("results", "results.json", why, broken=True)
    except UserError as error:
        found.lacks("results", MANIFEST, error, broken=True)


def _read_sets(found: Experiment) -> None:
    """Sets of languages (``train_hi``; not what they were put together from), and scored ones."""
    scored = list(dict.fromkeys(row["set"] for row in found.rows))
    combined = [
        path.name
        for split in ("train", "dev", "test")
        for path in sorted(found.data.glob(f"{split}_*"))
        if path.is_dir()
    ]
    if not found.data.is_dir():
        why = f"there is no folder {found.data} (--data): sets, samples and their audio are unknown"
        found.lacks("data", str(found.data), why, broken=True)
        return
    for name in dict.fromkeys([*combined, *scored]):
        try:
            found.sets[name] = _facts(name, load_datadir(found.data / name))
        except UserError as error:
            found.lacks("data", name, error, broken=True)


def _facts(name: str, data: DataDir) -> SetFacts:
    durations = [utt.duration for utt in data.utterances if utt.duration is not None]
    spoken = {part.language for parts in data.segments.values() for part in parts}
    return SetFacts(
        name=name,
        languages=tuple(sorted(spoken | {utt.language for utt in data.utterances})),
        utterances=len(data.utterances),
        seconds=sum(durations) if len(durations) == len(data.utterances) else None,
        speakers=len({utt.speaker for utt in data.utterances}),
        corpora=data.corpora,
        skipped=len(data.skipped),
    )


def _read_experts(found: Experiment) -> None:
    for path in sorted(found.exp.glob("*/expert*/expert.json")):
        if path.parent.parent.suffix == ".old":
            continue
        place = str(path.parent.relative_to(found.exp))
        try:
            manifest = read_json_object(path)
        except UserError as error:
            found.lacks("experts", place, error, broken=True)
            continue
        found.experts.append(ExpertFacts(place, manifest, _parameters(path.parent)))
    if not found.experts:
        found.lacks("experts", "experts", f"no {found.exp}/*/expert*/expert.json: none was trained")


def _parameters(folder: Path) -> int | None:
    """Count the numbers in an expert's file, from its header alone."""
    try:
        with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
            return sum(prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        log.warning("parameters of %s not counted: %s", folder, error)
        return None


def _read_analyses(found: Experiment, asked: Sequence[str]) -> None:
    folder = found.exp / "analysis"
    for path in sorted(folder.glob("*.json")):
        try:
            content = read_json_object(path)
        except UserError as error:
            found.lacks("analysis", path.stem, error, broken=True)
            continue
        if lacking := [key for key in ANALYSIS_KEYS if key not in content]:
            why = f"{path} has no {', '.join(lacking)}: it is no analysis, or of another version"
            found.lacks("analysis", path.stem, why, broken=True)
            continue
        found.analyses.append(content)
        for what, why in (content.get("not_available") or {}).items():
            found.lacks("analysis (in part)", f"{path.stem}: {what}", why)
    if not found.analyses:
        found.lacks("analysis", "analyses", f"none in {folder}: run bin.analyze")
    known = {content["name"] for content in found.analyses} | {m.what for m in found.missing}
    for name in asked:
        if name not in known:
            why = f"there is no {folder / name}.json: {_last_words(found.exp, name)}"
            found.lacks("analysis", name, why, broken=True)


def _last_words(exp: Path, name: str) -> str:
    """Why an analysis has not come out, as far as the recipe's log tells."""
    path = exp / "log" / f"analyze_{name}.log"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"run bin.analyze {name}"
    told = [line for line in lines if "error" in line.lower()]
    return f"{told[-1].strip()} ({path})" if told else f"see {path}"
