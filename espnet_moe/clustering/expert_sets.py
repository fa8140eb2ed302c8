"""Data directories for the training of experts, of the router, and of both together.

    <out>/utt2experts                       utt_id expert:weight …   (of all sets)
    <out>/data/{train,dev}_<expert>         an expert's share: whole speakers, about a fraction
    <out>/data/{train,dev}_joint            the rest of train (everything where the fraction is 1)
    <out>/data/{train,dev}_router           everything
    <out>/stats/<name>/speech_shape         of each of them

``train_<expert>`` says of each utterance that it belongs to this expert wholly; how much it does
is its weight in the loss (utt2weight).
"""

import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from espnet_moe.clustering.assignment import (
    AssignmentError,
    SplitOptions,
    speakers_for_experts,
)
from espnet_moe.data.datadir import (
    DataDir,
    DataDirError,
    corpora_of,
    load_datadir,
    write_datadir,
)
from espnet_moe.data.extras import join_extras
from espnet_moe.data.files import listed, write_table
from espnet_moe.data.memberships import format_memberships
from espnet_moe.data.shapes import collect_shapes
from espnet_moe.data.utterance import SAMPLE_RATE, Utterance

Table = Mapping[str, Mapping[str, float]]  # utterance id → expert → weight above 0

RESERVED = ("joint", "router")  # names of sets that no expert can have

_FAR = 0.1  # from the fraction asked for, of an expert's audio: worth a warning

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertSet:
    """A set to write.

    Attributes:
        source: Where its utterances come from.
        utterances: Of the set.
        expert: Whose it is; ``None``: of several.
    """

    source: DataDir
    utterances: Sequence[Utterance]
    expert: str | None = None


@dataclass(frozen=True)
class SetPlan:
    """The sets to write, and what they amount to.

    Attributes:
        sets: By name.
        fractions: Of each expert's training audio, by expert: what trains the expert alone.
        notes: What a reader of the log should know.
        skipped: Reason by id of utterances that training leaves out.
    """

    sets: Mapping[str, ExpertSet]
    fractions: Mapping[str, float]
    notes: Sequence[str] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)


def join_sets(paths: Sequence[str | Path]) -> DataDir:
    """Read formatted data directories as one; experts they name already are forgotten.

    Raises:
        DataDirError: When one cannot be read or is not formatted, or an id is in two of them.
    """
    parts, problems = [], []
    for path in paths:
        try:
            parts.append(replace(load_datadir(path), experts={}))
        except DataDirError as error:
            problems.append(str(error))
            continue
        if not parts[-1].utterances:
            problems.append(f"{path} holds no utterance")
        elif not parts[-1].num_samples:
            problems.append(f"{path} has no utt2num_samples; run format_audio on it first")
    counts = Counter(utt.utt_id for part in parts for utt in part.utterances)
    if double := sorted(key for key, count in counts.items() if count > 1):
        problems.append(f"in more than one of {' '.join(map(str, paths))}: {listed(double, ', ')}")
    if problems:
        raise DataDirError("\n  ".join(problems))
    extras = join_extras([(part, [utt.utt_id for utt in part.utterances]) for part in parts])
    return DataDir(
        utterances=tuple(utt for part in parts for utt in part.utterances),
        num_samples={key: value for part in parts for key, value in part.num_samples.items()},
        raw_text={key: value for part in parts for key, value in part.raw_text.items()},
        skipped={k: v for part in parts for k, v in part.skipped.items() if k not in counts},
        corpora=corpora_of(parts),
        **vars(extras),
    )


def plan_sets(
    train: DataDir,
    dev: DataDir,
    experts: Sequence[str],
    table: Table,
    dropped: Collection[str],
    options: SplitOptions,
) -> SetPlan:
    """Choose the utterances of every set; nothing is written.

    Speakers are on one side for all experts: whoever trains an expert alone is not in the joint
    training set. Fractions are of the audio of the utterances with any weight for the expert.

    Args:
        train: Training sets.
        dev: Development sets.
        experts: Names.
        table: Experts of every utterance of both.
        dropped: Ids of training utterances to leave out.
        options: Fraction and seed.

    Raises:
        AssignmentError: When an expert has no training utterance, none in development (nor has its
            main language), a name that is taken, or nothing is left for joint training.
    """
    if taken := sorted(set(experts) & set(RESERVED)):
        raise AssignmentError(f"no expert can be named {', '.join(taken)}: sets are named so")
    kept = [utt for utt in train.utterances if utt.utt_id not in dropped]
    speakers = {name: place for place, name in enumerate(dict.fromkeys(u.speaker for u in kept))}
    audio = np.zeros((len(speakers), len(experts)))
    for utt in kept:
        for column, name in enumerate(experts):
            if name in table[utt.utt_id]:
                seconds = train.num_samples[utt.utt_id] / SAMPLE_RATE
                audio[speakers[utt.speaker], column] += seconds
    if empty := [n for n, has in zip(experts, audio.sum(axis=0) > 0, strict=True) if not has]:
        raise AssignmentError(f"no training utterance for {', '.join(empty)}: see min_size")
    drawn = speakers_for_experts(audio, options.fraction, options.seed)
    alone = {name for name, place in speakers.items() if drawn[place]}
    rest = [utt for utt in kept if options.fraction >= 1 or utt.speaker not in alone]
    if not rest:
        raise AssignmentError(
            f"nothing is left for joint training: {len(speakers)} speakers are too few to part; "
            "give more, or set fraction to 1, which gives everything to both"
        )
    fractions = (audio[drawn].sum(axis=0) / audio.sum(axis=0)).tolist()
    reached = dict(zip(experts, fractions, strict=True))
    notes = _split_notes(reached, audio, options.fraction)
    sets: dict[str, ExpertSet] = {}
    for name in experts:
        own = [u for u in kept if u.speaker in alone and name in table[u.utt_id]]
        sets[f"train_{name}"] = ExpertSet(train, own, name)
        own = [utt for utt in dev.utterances if name in table[utt.utt_id]]
        sets[f"dev_{name}"] = ExpertSet(dev, own or _fallback(name, kept, dev, table, notes), name)
    sets["train_joint"], sets["dev_joint"] = ExpertSet(train, rest), ExpertSet(dev, dev.utterances)
    sets["train_router"] = ExpertSet(train, kept)
    sets["dev_router"] = ExpertSet(dev, dev.utterances)
    reasons = dict.fromkeys(dropped, "noise of the clustering")
    for note in notes:
        logger.info("%s", note)
    return SetPlan(sets, reached, notes, reasons)


def write_sets(out: str | Path, plan: SetPlan, table: Table) -> None:
    """Write data directories, statistics and utt2experts, and remove sets of an earlier assignment.

    Args:
        out: The folder, such as ``exp/assign_kmeans``.
        plan: See :func:`plan_sets`.
        table: Experts of every utterance, those of test sets too.

    Raises:
        UserError: When the disk is full, or audio lengths are missing.
    """
    out = Path(out)
    for folder in (out / "data", out / "stats"):
        for old in [*folder.glob("train_*"), *folder.glob("dev_*")]:
            if old.name not in plan.sets:
                shutil.rmtree(old)
    for name, chosen in plan.sets.items():
        source, ids = chosen.source, [utt.utt_id for utt in chosen.utterances]
        if chosen.expert is None:
            skipped = {**source.skipped, **plan.skipped} if name.startswith("train") else {}
            weights = {key: source.weights.get(key, 1.0) for key in ids}
            named = {key: format_memberships(table[key]) for key in ids}
        else:
            skipped = {}
            # A fallback's utterances are not of this expert, and weigh as they did.
            share = {key: table[key].get(chosen.expert, 1.0) for key in ids}
            weights = {key: source.weights.get(key, 1.0) * share[key] for key in ids}
            named = dict.fromkeys(ids, f"{chosen.expert}:1")
        write_datadir(
            out / "data" / name,
            chosen.utterances,
            num_samples={key: source.num_samples[key] for key in ids},
            raw_text={key: source.raw_text[key] for key in ids if key in source.raw_text},
            skipped=skipped,
            extras=replace(
                source,
                experts=named,
                weights=weights if any(weight != 1 for weight in weights.values()) else {},
            ),
            corpora=source.corpora,
        )
        collect_shapes(out / "data" / name, out / "stats" / name)
    write_table(out / "utt2experts", {key: format_memberships(row) for key, row in table.items()})


def describe(
    data: DataDir, experts: Sequence[str], table: Table, dropped: Collection[str] = ()
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Say how much data each expert has, and of which languages.

    Args:
        data: The utterances.
        experts: Names.
        table: Experts of every utterance.
        dropped: Ids not to count.

    Returns:
        By expert: ``utterances``, ``hours`` and ``speakers`` with any weight; and the share of each
        language in the sum of the weights, the largest first.
    """
    sizes, shares = {}, {}
    for name in experts:
        own = [u for u in data.utterances if name in table[u.utt_id] and u.utt_id not in dropped]
        samples = sum(data.num_samples[utt.utt_id] for utt in own)
        sizes[name] = {
            "utterances": len(own),
            "hours": round(samples / SAMPLE_RATE / 3600, 4),
            "speakers": len({utt.speaker for utt in own}),
        }
        shares[name] = _language_shares(name, own, table)
    return sizes, shares


def _language_shares(name: str, own: Sequence[Utterance], table: Table) -> dict[str, float]:
    by: dict[str, float] = defaultdict(float)
    for utt in own:
        by[utt.language] += table[utt.utt_id][name]
    total = sum(by.values()) or 1.0
    ordered = sorted(by.items(), key=lambda item: (-item[1], item[0]))
    return {language: round(weight / total, 4) for language, weight in ordered}


def _split_notes(reached: Mapping[str, float], audio: np.ndarray, fraction: float) -> list[str]:
    """What is said of the split; warnings go to the log at once."""
    if fraction >= 1:
        return ["fraction 1: everything trains the experts alone, and everything joint training"]
    told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in reached.items())
    notes = [f"audio that trains experts alone ({100 * fraction:.0f} % asked for): {told}"]
    for column, (name, share) in enumerate(reached.items()):
        count = int((audio[:, column] > 0).sum())
        if share > 1 - 1e-9:
            logger.warning(
                "expert %s has %d speaker(s), all of them needed to train it alone: the joint "
                "training set has none of its utterances",
                name,
                count,
            )
        elif abs(share - fraction) > _FAR:
            logger.warning(
                "expert %s has %d speakers: %.1f %% of its audio trains it alone instead of "
                "%.0f %%, as speakers are not parted",
                name,
                count,
                100 * share,
                100 * fraction,
            )
    return notes


def _fallback(
    name: str, kept: Sequence[Utterance], dev: DataDir, table: Table, notes: list[str]
) -> list[Utterance]:
    """Development utterances of the language that most of an expert's training data is in."""
    shares = _language_shares(name, [utt for utt in kept if name in table[utt.utt_id]], table)
    for language in shares:
        if found := [utt for utt in dev.utterances if utt.language == language]:
            logger.warning(
                "expert %s has no development utterance; takes the %d of its language %s",
                name,
                len(found),
                language,
            )
            notes.append(f"dev_{name}: the utterances of {language}, as none is of {name}")
            return found
    raise AssignmentError(
        f"no development utterance for expert {name}, nor of its languages ({' '.join(shares)}): "
        "give a --dev set of them"
    )
