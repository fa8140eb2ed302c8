"""AI4Bharat Kathbath, clean and noisy.

The folder given is, or holds,

    kb_data_clean_m4a/<hindi|punjabi|telugu>/{train,valid,test_known,test}/
      transcription_n2w.txt                     <file>.m4a<TAB>text
      audio/<id>-<speaker>-<m|f>.m4a
    kb_data_noisy_m4a/<hindi|punjabi|telugu>/{test_known,test}/…
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from espnet_moe.data.corpora.layout import (
    CorpusError,
    check_language,
    check_root,
    check_splits,
    drawing,
    other_layout,
    read_pairs,
)
from espnet_moe.data.files import listed
from espnet_moe.data.utterance import Gender, Utterance, safe_id

Condition = Literal["clean", "noisy"]

LANGUAGES = {"hi": "hindi", "pa": "punjabi", "te": "telugu"}
# Headline numbers are on ``test``: the speakers of valid and test_known are in train too.
FOLDERS = {"train": "train", "dev": "valid", "test": "test", "test_known": "test_known"}
SPLITS: dict[str, tuple[str, ...]] = {
    "clean": ("train", "dev", "test", "test_known"),
    "noisy": ("test", "test_known"),
}
LAYOUT = drawing(__doc__)
# Matras without their letters (Hindi, valid).
KNOWN_BAD = frozenset({"844424931069710-229-f", "844424932918936-888-f"})

_NAME = re.compile(r"(?P<key>(?P<id>[^-\s/]+)-(?P<speaker>[^-\s/]+)-(?P<gender>[mf]))\.\w+")

logger = logging.getLogger(__name__)


def read_kathbath(
    root: str | Path,
    language: str,
    splits: Iterable[str] | None = None,
    condition: Condition = "clean",
) -> list[Utterance]:
    """Read the utterances of Kathbath.

    Args:
        root: Folder as drawn above.
        language: ISO 639-1 code.
        splits: Any of ``train``, ``dev`` (valid), ``test`` (unknown speakers) and ``test_known``;
            noisy recordings have the latter two. Default: all but ``test_known``.
        condition: ``clean`` or ``noisy`` recordings.

    Returns:
        Utterances, in the order of the files, without the known bad ones. Whether the audio exists
        is not looked at.

    Raises:
        CorpusError: When the folder is of another layout, or a transcript file is missing or has
            rows that are not as drawn above.
    """
    if condition not in SPLITS:
        raise CorpusError(f"no Kathbath condition '{condition}'; legal are clean, noisy")
    legal = SPLITS[condition]
    if splits is None:
        splits = [split for split in legal if split != "test_known"]
    splits = check_splits(splits, legal, f"Kathbath ({condition})")
    folder = _find(root, check_language(language, "Kathbath", LANGUAGES), condition)
    return [
        utterance
        for split in splits
        for utterance in _read_split(_folder_of(folder, split), split, language, condition)
    ]


def _find(root: str | Path, name: str, condition: str) -> Path:
    """Return the folder of a language."""
    root = check_root(root, LAYOUT)
    tops = [root / f"kb_data_{condition}_m4a", root / f"kb_data_{condition}"]
    # A folder that holds the languages, or is one, unless its name says the other condition.
    other = "noisy" if condition == "clean" else "clean"
    if other not in root.name and other not in root.parent.name:
        tops += [root, root.parent] if root.name == name else [root]
    for top in tops:
        if (top / name).is_dir():
            return top / name
    there = sorted({path.name for top in tops for path in _folders(top)})
    raise other_layout(
        f"no folder {name} of the {condition} recordings in {root} (folders: "
        f"{', '.join(there[:20]) or 'none'})",
        LAYOUT,
    )


def _folder_of(language: Path, split: str) -> Path:
    """The folder of a split; some archives call the test of unknown speakers ``test_unknown``."""
    usual, other = language / FOLDERS[split], language / "test_unknown"
    return other if split == "test" and not usual.exists() and other.is_dir() else usual


def _folders(path: Path) -> list[Path]:
    return [entry for entry in path.iterdir() if entry.is_dir()] if path.is_dir() else []


def _read_split(folder: Path, split: str, language: str, condition: str) -> list[Utterance]:
    path = folder / "transcription_n2w.txt"
    utterances, wrong = [], []
    # The same sentence by the same speaker is there clean and noisy: ids must differ.
    suffix = "" if condition == "clean" else f"_{condition}"
    for number, file, text in read_pairs(path, LAYOUT):
        match = _NAME.fullmatch(file)
        if match is None:
            wrong.append(f"{path}:{number}: '{file}'")
            continue
        if match["key"] in KNOWN_BAD:
            logger.warning("%s: %s left out, a known bad file", folder, file)
            continue
        speaker = f"kb_{language}_{safe_id(match['speaker'])}"
        gender: Gender = "m" if match["gender"] == "m" else "f"
        utterances.append(
            Utterance(
                utt_id=f"{speaker}-{safe_id(match['id'])}{suffix}",
                audio=f"{folder}/audio/{file}",
                text=text,
                speaker=speaker,
                language=language,
                split=split,
                gender=gender,
            )
        )
    if wrong:
        raise CorpusError(
            f"{path}: file names must be <id>-<speaker>-<m|f>.m4a:\n  {listed(wrong)}"
        )
    logger.info("%s: Kathbath %s, %d utterances", folder, condition, len(utterances))
    return utterances
