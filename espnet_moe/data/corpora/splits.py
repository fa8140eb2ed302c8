"""Splits that a corpus does not come with, made of whole speakers."""

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.utterance import Utterance

SHARE = 0.05  # of the utterances of train, in each split that is made
MAX_UTTERANCES = 2000  # more would tell no more and take long to decode

logger = logging.getLogger(__name__)


def hold_out(
    utterances: Iterable[Utterance], splits: Sequence[str], corpus: str, seed: int = 0
) -> list[Utterance]:
    """Move speakers out of ``train`` into splits of their own.

    The speakers stand in an order that their names alone give. ``dev`` takes them from its
    beginning, ``test`` from its end, until the split has a twentieth of the utterances of train (at
    most 2000, give or take a speaker). When a corpus grows, no speaker that was held out comes back
    into train, and none changes between dev and test.

    Args:
        utterances: Of ``train``, and of any other splits.
        splits: Which to make: ``dev``, ``test`` or both.
        corpus: Its name, for messages.
        seed: Another one gives other speakers.

    Returns:
        All utterances in their order, those held out with their new split.

    Raises:
        CorpusError: When train has too few speakers, or a split to make is there already.
    """
    utterances = list(utterances)
    if there := {utt.split for utt in utterances} & set(splits):
        raise CorpusError(f"{corpus} has {', '.join(sorted(there))}: there is none to make")
    counts = Counter(utt.speaker for utt in utterances if utt.split == "train")
    if len(counts) <= len(splits):
        raise CorpusError(
            f"train of {corpus} has {len(counts)} speakers: too few to make {' and '.join(splits)} "
            f"of speakers of their own, which takes at least {len(splits) + 1}; was all unpacked?"
        )
    order = deque(sorted(counts, key=lambda speaker: _place(speaker, seed)))
    wanted = min(SHARE * counts.total(), MAX_UTTERANCES)
    held: dict[str, str] = {}
    for number, split in enumerate(splits):
        needed = len(splits) - number  # a speaker for each split to come, and one for train
        take = order.pop if split == "test" else order.popleft
        chosen: list[str] = []
        while not chosen or (
            sum(counts[speaker] for speaker in chosen) < wanted and len(order) > needed
        ):
            chosen.append(take())
        held |= dict.fromkeys(chosen, split)
        logger.info(
            "%s: %s is made of %d of the %d speakers of train, %d of its %d utterances",
            corpus,
            split,
            len(chosen),
            len(counts),
            sum(counts[speaker] for speaker in chosen),
            counts.total(),
        )
    return [
        replace(utt, split=held[utt.speaker])
        if utt.split == "train" and utt.speaker in held
        else utt
        for utt in utterances
    ]


def leave_out(
    utterances: Iterable[Utterance], split: str, other: str, corpus: str
) -> list[Utterance]:
    """Leave out of one split what speakers of another one say.

    Raises:
        CorpusError: When nothing is left of it.
    """
    utterances = list(utterances)
    speakers = {utt.speaker for utt in utterances if utt.split == other}
    kept = [utt for utt in utterances if utt.split != split or utt.speaker not in speakers]
    lost = len(utterances) - len(kept)
    count = sum(utt.split == split for utt in utterances)
    if lost:
        logger.info(
            "%s: %d of %d utterances of %s are left out: their speakers are in %s",
            corpus,
            lost,
            count,
            split,
            other,
        )
    if lost == count > 0:
        raise CorpusError(f"all speakers of {split} of {corpus} are in {other}: nothing is left")
    return kept


def in_splits(utterances: Sequence[Utterance], splits: Sequence[str]) -> list[Utterance]:
    """Return the utterances of some splits, split by split."""
    return [utt for split in splits for utt in utterances if utt.split == split]


def _place(speaker: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {speaker}".encode()).hexdigest()
