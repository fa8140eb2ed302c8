"""What a training reads of its data directories: labels and weights, and balanced batches."""

import argparse
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.backbones.loading import BackboneOptions, load_tokens, max_target_length
from espnet_moe.config import ConfigError, build_options
from espnet_moe.data.extras import read_extras
from espnet_moe.data.files import listed, read_lines
from espnet_moe.data.memberships import read_utt2experts
from espnet_moe.errors import UserError
from espnet_moe.files import atomic

# What a data directory gives to a batch: file, name in the batch, ESPnet's reader.
DATA = (("wav.scp", "speech", "sound"), ("text", "text", "text"), ("utt2lang", "language", "text"))
BALANCES = ("languages", "experts", "none")
# Batches of one number of utterances, which balancing can make.
BALANCED_TYPES = ("sorted", "unsorted")


@dataclass(frozen=True)
class Labels:
    """What is known of the utterances of a set, by their ids.

    Attributes:
        languages: ISO 639-1 codes.
        memberships: ``(experts,)`` how much an utterance belongs to each expert. Empty where
            nothing tells.
        weights: How much an utterance counts; empty where all count the same.
        alternatives: Transcripts that are right too.
        ctc: What a CTC branch is to hear, where it is not the text.
    """

    languages: Mapping[str, str] = field(default_factory=dict)
    memberships: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    alternatives: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ctc: Mapping[str, str] = field(default_factory=dict)

    def classes(self, balance: str, experts: Sequence[str]) -> dict[str, str]:
        """The class of each utterance that batches are balanced by: its language or main expert."""
        if balance == "languages":
            return dict(self.languages)
        return {
            utt: experts[int(np.argmax(row))] for utt, row in self.memberships.items() if any(row)
        }


def read_labels(folder: str | Path, experts: Sequence[str] = ()) -> Labels:
    """Read ``utt2lang``, and ``utt2experts``, ``utt2weight``, ``text.alt``, ``text.ctc`` if there.

    Args:
        folder: A data directory.
        experts: Names that ``utt2experts`` may use. Without that file, languages are the experts
            where every language has the name of one. None given: memberships are not read.

    Raises:
        ConfigError: For unknown experts or utterances and for weights that are no numbers, all
            named at once.
    """
    folder = Path(folder)
    languages = _languages(folder)
    problems: list[str] = []
    extras = read_extras(folder, languages, problems)
    memberships: dict[str, tuple[float, ...]] = {}
    if experts and extras.experts:
        try:
            table = read_utt2experts(folder / "utt2experts", experts, languages)
        except UserError as error:
            problems.append(str(error))
            table = {}
        memberships = {utt: tuple(row.get(e, 0.0) for e in experts) for utt, row in table.items()}
    elif experts and set(languages.values()) <= set(experts):
        one_hot = {code: tuple(float(code == e) for e in experts) for code in experts}
        memberships = {utt: one_hot[code] for utt, code in languages.items()}
    if problems:
        raise ConfigError(f"{folder}:\n  {listed(problems)}")
    return Labels(languages, memberships, extras.weights, extras.alternatives, extras.ctc)


def _languages(folder: Path) -> dict[str, str]:
    rows = (line.split() for _, line in read_lines(folder / "utt2lang"))
    return {row[0]: row[1] for row in rows if len(row) > 1}


# -- ESPnet's options -----------------------------------------------------------------------------


def fill_data(args: argparse.Namespace, split: str) -> list[str]:
    """Set ESPnet's data path and shape file options of a split; tell what is wrong."""
    folder, stats = getattr(args, f"{split}_dir"), getattr(args, f"{split}_stats")
    problems = []
    files: dict[str, tuple[Any, Sequence[str]]] = {
        f"--{split}_dir": (folder, [name for name, _, _ in DATA]),
        f"--{split}_stats": (stats, ["speech_shape"]),
    }
    for option, (path, names) in files.items():
        if path is None:
            problems.append(f"{option} is missing")
        elif missing := [n for n in names if not (Path(path) / n).is_file()]:
            problems.append(f"{option} {path} has no {', '.join(missing)}")
    if not problems:
        data = [(str(Path(folder) / file), name, kind) for file, name, kind in DATA]
        setattr(args, f"{split}_data_path_and_name_and_type", data)
        setattr(args, f"{split}_shape_file", [str(Path(stats) / "speech_shape")])
    return problems


def text_room(path: str) -> int:
    """Longest transcript, in tokens, that the decoder of a backbone takes after the prompt."""
    tokens = load_tokens(path)
    return max_target_length(path) - tokens.prompt(tokens.languages[:1]).size(1)


def leave_out_long(args: argparse.Namespace, split: str) -> None:
    """Leave utterances out whose transcript has more tokens than the decoder takes; log them.

    ESPnet reads the utterances that the shape file names: a shorter one is written beside the
    checkpoints where any is left out.
    """
    path = build_options(BackboneOptions, args.backbone_conf, "backbone_conf").path
    tokens, shapes = load_tokens(path), Path(getattr(args, f"{split}_stats")) / "speech_shape"
    room = text_room(path)
    with open(Path(getattr(args, f"{split}_dir")) / "text", encoding="utf-8") as lines:
        texts = (line.rstrip("\n").partition(" ") for line in lines)
        long = {utt for utt, _, text in texts if len(tokens.encode(text)) > room}
    if not long:
        return
    with open(shapes, encoding="utf-8") as lines:
        kept = [line for line in lines if line.split(maxsplit=1)[0] not in long]
    if not kept:
        raise ConfigError(f"every transcript in {split} has more than {room} tokens")
    shorter = Path(args.output_dir) / f"{split}_speech_shape"
    with atomic(shorter) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
    setattr(args, f"{split}_shape_file", [str(shorter)])
    logging.warning(
        "%d utterances of %s are left out: more than %d tokens, e.g. %s",
        len(long),
        split,
        room,
        ", ".join(sorted(long)[:5]),
    )


def read_lengths(shape_file: str | Path) -> dict[str, int]:
    """Samples by utterance id, from a shape file."""
    rows = (line.split() for _, line in read_lines(Path(shape_file)))
    return {row[0]: int(row[1].split(",")[0]) for row in rows}


# -- balanced batches -----------------------------------------------------------------------------


def balanced_batches(
    lengths: Mapping[str, int], classes: Mapping[str, str], batch_size: int, seed: int
) -> list[list[str]]:
    """Batches in which all classes are equally frequent.

    Every utterance of the largest class comes once; those of smaller ones are repeated. Utterances
    of a batch are of similar length.

    Args:
        lengths: By utterance id, in any unit.
        classes: By utterance id; utterances without a class are left out.
        batch_size: Utterances; as in ESPnet's sorted batches, some have a few more.
        seed: Of the draws.

    Returns:
        Ids, batch by batch, short utterances first.

    Raises:
        ConfigError: Where no utterance has a class.
    """
    draw = np.random.default_rng(seed)
    groups: dict[str, list[str]] = defaultdict(list)
    for utt in lengths:
        if utt in classes:
            groups[classes[utt]].append(utt)
    if not groups:
        raise ConfigError("no utterance has a class to balance by: use --balance none")
    most = max(map(len, groups.values()))
    columns = []
    for name in sorted(groups):
        keys = groups[name]
        times, rest = divmod(most, len(keys))
        drawn = keys * times + [keys[i] for i in draw.permutation(len(keys))[:rest]]
        # Not quite by length: other utterances meet in each pass over the data.
        jitter = draw.uniform(0.9, 1.1, len(drawn))
        order = np.argsort([lengths[k] * j for k, j in zip(drawn, jitter, strict=True)])
        columns.append([drawn[i] for i in order])
    keys = [key for row in zip(*columns, strict=True) for key in row]
    count = max(len(keys) // batch_size, 1)
    edges = [i * len(keys) // count for i in range(count + 1)]
    batches = [keys[a:b] for a, b in itertools.pairwise(edges)]
    return [[batch[i] for i in draw.permutation(len(batch))] for batch in batches]


def log_balance(classes: Mapping[str, str], balance: str) -> None:
    """Say how many utterances each class has, and how often its utterances come."""
    counts = Counter(classes.values())
    most = max(counts.values(), default=0)
    for name, count in sorted(counts.items()):
        logging.info(
            "balanced %s: %s has %d utterances, each %.2f times", balance, name, count, most / count
        )
