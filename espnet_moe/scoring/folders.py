"""What scoring reads: references of a test set, and the decode folder of a system.

::

    dump/raw/<set>/{text,utt2lang,...}          references (a Kaldi data dir)
    dump/raw/<set>/text.alt                     references that are right too, if any
    dump/raw/<set>/utt2segments                 languages of code-switched utterances, if any
    dump/raw/<set>/skipped.tsv                  utterances left out of the set, id first
    exp/<system>/<inference_tag>/
        <set>/text                              hypotheses, "utt_id words ..."
        <set>/logdir/output.*/stats.jsonl       a JSON object an utterance
        logdir/output.*.json                    a JSON object a decode job
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_moe.data.datadir import load_datadir
from espnet_moe.data.extras import Segment
from espnet_moe.data.files import read_lines
from espnet_moe.scoring.files import ScoringError, parse_json_object, read_json_object
from espnet_moe.scoring.mixed_text import normalize_mixed
from espnet_moe.scoring.sclite import ScoredUtterance

ALL = "all"  # the language of a row that pools a set of several languages
MIXED = "mixed"  # the language of code-switched utterances

_IDS_SHOWN = 20


@dataclass(frozen=True)
class References:
    """The references to score against, normalised, in the data dir's order."""

    name: str
    path: Path
    utterances: tuple[ScoredUtterance, ...]  # of the language "mixed" where segments are known
    texts: tuple[str, ...]
    alternatives: tuple[tuple[str, ...], ...]  # other right texts of each utterance
    languages: tuple[tuple[str, ...], ...]  # of each utterance, in their order
    segments: tuple[tuple[Segment, ...], ...]  # of each; empty where the set has none
    durations: tuple[float | None, ...]  # seconds
    skipped: tuple[str, ...]  # ids left out of the set
    corpora: tuple[str, ...]  # what it was drawn from, each with its release
    pooled: bool  # one row for the whole set, whatever its languages


@dataclass(frozen=True)
class Decoded:
    """What a system made of a test set, in the test set's order."""

    hypotheses: tuple[str, ...]  # normalised
    stats: tuple[dict[str, Any], ...]  # a dict an utterance; empty where decoding left none
    jobs: tuple[dict[str, Any], ...]  # a dict a decode job; empty where decoding left none


def read_references(path: Path, pooled: bool = False) -> References:
    """Read and normalise the references of a test set.

    Args:
        path: The data dir, such as ``dump/raw/test_hi``.
        pooled: Whether the set is to be one row, whatever its languages.

    Raises:
        ScoringError: When the set is empty, or a reference is empty after normalisation and
            ``skipped.tsv`` does not list it.
        UserError: When the data dir cannot be read or a language has no normaliser.
    """
    data = load_datadir(path)
    kept = [utt for utt in data.utterances if utt.utt_id not in data.skipped]
    if not kept:
        raise ScoringError(f"{path} holds no utterance to score; run the data stages again")
    segments = [data.segments.get(utt.utt_id, ()) for utt in kept]
    bare = [utt.utt_id for utt, parts in zip(kept, segments, strict=True) if not parts]
    if data.segments and bare:
        raise ScoringError(
            f"{path}/utt2segments: {_named(bare, 'utterance')} missing; make the set again"
        )
    languages = [
        tuple(dict.fromkeys(part.language for part in parts)) or (utt.language,)
        for utt, parts in zip(kept, segments, strict=True)
    ]
    texts = [normalize_mixed(u.text, own) for u, own in zip(kept, languages, strict=True)]
    empty = [utt.utt_id for utt, text in zip(kept, texts, strict=True) if not text]
    if empty:
        raise ScoringError(
            f"{path}/text: {_named(empty, 'reference')} empty after normalisation; correct the "
            f"text, or list the ids in {path}/skipped.tsv to leave them out"
        )
    alternatives = []
    for utt, own in zip(kept, languages, strict=True):
        others = [normalize_mixed(t, own) for t in data.alternatives.get(utt.utt_id, ())]
        alternatives.append(tuple(text for text in dict.fromkeys(others) if text))
    named = [MIXED if data.segments else utt.language for utt in kept]
    return References(
        name=path.name,
        path=path,
        utterances=tuple(
            ScoredUtterance(utt.utt_id, utt.speaker, language)
            for utt, language in zip(kept, named, strict=True)
        ),
        texts=tuple(texts),
        alternatives=tuple(alternatives),
        languages=tuple(languages),
        segments=tuple(segments) if data.segments else (),
        durations=tuple(utt.duration for utt in kept),
        skipped=tuple(data.skipped),
        corpora=data.corpora,
        pooled=pooled,
    )


def read_decoded(folder: Path, references: References) -> Decoded:
    """Read the hypotheses of a system for a test set, with the decoder's statistics.

    Args:
        folder: ``exp/<system>/<inference_tag>``.
        references: The references that the hypotheses must match one to one.

    Raises:
        ScoringError: When ids are missing, extra or doubled, or a file cannot be read.
    """
    path = folder / references.name / "text"
    texts = _read_hypotheses(path)
    _check_ids(path, texts, references)
    hypotheses = [
        normalize_mixed(texts[utt.utt_id], own)
        for utt, own in zip(references.utterances, references.languages, strict=True)
    ]
    stats = read_stats(folder / references.name / "logdir")
    if stats:
        missing = [utt.utt_id for utt in references.utterances if utt.utt_id not in stats]
        if missing:
            raise ScoringError(
                f"{folder / references.name}/logdir/output.*/stats.jsonl: "
                f"{_named(missing, 'utterance')} missing; decode the set again"
            )
    return Decoded(
        hypotheses=tuple(hypotheses),
        stats=tuple(stats[utt.utt_id] for utt in references.utterances) if stats else (),
        jobs=read_jobs(folder / "logdir"),
    )


def _read_hypotheses(path: Path) -> dict[str, str]:
    """Read a Kaldi ``text`` file whose texts may be empty."""
    if not path.is_file():
        raise ScoringError(f"{path} does not exist; decode the set first (stage 10)")
    texts: dict[str, str] = {}
    doubled = []
    for _, line in read_lines(path):
        utt_id, _, text = line.replace("\t", " ", 1).partition(" ")
        if utt_id in texts:
            doubled.append(utt_id)
        texts[utt_id] = text
    if doubled:
        raise ScoringError(
            f"{path}: {_named(doubled, 'utterance')} there more than once, perhaps from an earlier "
            "run with more jobs; remove the set's logdir and decode it again (stage 10)"
        )
    return texts


def _check_ids(path: Path, texts: dict[str, str], references: References) -> None:
    wanted = {utt.utt_id for utt in references.utterances}
    missing = sorted(wanted - texts.keys())
    extra = sorted(texts.keys() - wanted - set(references.skipped))
    problems = []
    if missing:
        problems.append(f"{_named(missing, 'reference')} without a hypothesis")
    if extra:
        problems.append(f"{_named(extra, 'hypothesis', 'hypotheses')} without a reference")
    if problems:
        raise ScoringError(
            f"{path} and {references.path}/text must hold the same utterances: "
            f"{'; '.join(problems)}; decode the set again (stage 10)"
        )


def _named(ids: list[str], one: str, many: str | None = None) -> str:
    """Count ids and name the first of them: ``2 references (a, b)``."""
    noun = one if len(ids) == 1 else (many or one + "s")
    shown = ", ".join(ids[:_IDS_SHOWN])
    more = f" and {len(ids) - _IDS_SHOWN} more" if len(ids) > _IDS_SHOWN else ""
    return f"{len(ids)} {noun} ({shown}{more})"


def read_stats(logdir: Path) -> dict[str, dict[str, Any]]:
    """Read what decoding told of each utterance of a set.

    Args:
        logdir: ``exp/<system>/<inference_tag>/<set>/logdir``.

    Returns:
        An entry of ``stats.jsonl`` by utterance id; empty where there are none.

    Raises:
        ScoringError: When a line cannot be read, or an utterance is there more than once.
    """
    stats: dict[str, dict[str, Any]] = {}
    for path in _by_job(logdir.glob("output.*/stats.jsonl")):
        for number, line in read_lines(path):
            entry = parse_json_object(line, f"{path}:{number}")
            utt_id = entry.get("utt_id")
            if not isinstance(utt_id, str):
                raise ScoringError(f"{path}:{number} has no 'utt_id'; decode the set again")
            if utt_id in stats:
                raise ScoringError(
                    f"{path}:{number} repeats {utt_id}, perhaps from an earlier run with more "
                    f"jobs; remove {logdir} and decode the set again (stage 10)"
                )
            stats[utt_id] = entry
    return stats


def read_jobs(logdir: Path) -> tuple[dict[str, Any], ...]:
    """Read what the decode jobs of a system tell of themselves.

    Args:
        logdir: ``exp/<system>/<inference_tag>/logdir``.

    Raises:
        ScoringError: When a file cannot be read, or files of different runs lie side by side.
    """
    paths = _by_job(logdir.glob("output.*.json"))
    jobs = [read_json_object(path) for path in paths]
    for path, job in zip(paths, jobs, strict=True):
        expected = job.get("num_jobs", len(jobs))
        if expected != len(jobs):
            raise ScoringError(
                f"{path} is of a run of {expected} jobs, but {logdir} holds {len(jobs)}; remove "
                "the files of the other runs, or decode again (stage 10)"
            )
    return tuple(jobs)


def _by_job(paths: Iterable[Path]) -> list[Path]:
    """Sort ``.../output.10...`` after ``.../output.9...``."""

    def job(path: Path) -> tuple[int, str]:
        found = re.search(r"output\.(\d+)", str(path))
        return (int(found.group(1)) if found else 0, str(path))

    return sorted(paths, key=job)
