"""AI4Bharat Kathbath, clean and noisy, from its archives or from the hub.

The folder given is, or holds,

    kb_data_clean_m4a/<hindi|punjabi|telugu>/{train,valid,test_known,test}/
      transcription_n2w.txt                     <file>.m4a<TAB>text
      audio/<id>-<speaker>-<m|f>.m4a
    kb_data_noisy_m4a/<hindi|punjabi|telugu>/{test_known,test}/…

or the parquet files of `kathbath_hub`:

    <hindi|punjabi|telugu>/[data/]{train,valid}-<number>-of-<count>.parquet
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from espnet_moe.data.corpora.kathbath_hub import find_hub, read_hub
from espnet_moe.data.corpora.layout import (
    USUAL_SPLITS,
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

LANGUAGES = {"hi": "hindi", "pa": "punjabi", "te": "telugu"}
# Recordings and folder of each split. Headline numbers are on ``test``: the speakers of valid and
# test_known are in train too. A noisy valid may be there, but nobody reports numbers on it.
PLACES = {
    "train": ("clean", "train"),
    "dev": ("clean", "valid"),
    "test": ("clean", "test"),
    "test_known": ("clean", "test_known"),
    "test_noisy": ("noisy", "test"),
    "test_known_noisy": ("noisy", "test_known"),
}
SPLITS = tuple(PLACES)
_FOLDERS = ("train", "valid", "test", "test_unknown", "test_known")
LAYOUT = drawing(__doc__)
# Matras without their letters (Hindi, valid).
KNOWN_BAD = frozenset({"844424931069710-229-f", "844424932918936-888-f"})

_NAME = re.compile(r"(?P<key>(?P<id>[^-\s/]+)-(?P<speaker>[^-\s/]+)-(?P<gender>[mf]))\.\w+")

logger = logging.getLogger(__name__)


def read_kathbath(
    root: str | Path, language: str, splits: Iterable[str] = USUAL_SPLITS
) -> list[Utterance]:
    """Read the utterances of Kathbath.

    Args:
        root: Folder as drawn above. Where it holds both, the archives are taken before the hub's
            files.
        language: ISO 639-1 code.
        splits: Any of ``train``, ``dev`` (valid), ``test`` (unknown speakers), ``test_known``, and
            of the noisy recordings ``test_noisy`` and ``test_known_noisy``. The hub's files have
            the first three, of which ``test`` is made (``kathbath_hub``).

    Returns:
        Utterances, in the order of the files, without the known bad ones. Whether the audio exists
        is not looked at.

    Raises:
        CorpusError: When the folder is of another layout, a split is not there, or a transcript
            file is missing or has rows that are not as drawn above.
    """
    splits = check_splits(splits, SPLITS, "Kathbath")
    name = check_language(language, "Kathbath", LANGUAGES)
    root = check_root(root, LAYOUT)
    folders = {condition: _find(root, name, condition) for condition in ("clean", "noisy")}
    if not any(folders.values()) and (hub := find_hub(root, name)):
        return read_hub(hub, language, splits, KNOWN_BAD)
    utterances = []
    for split in splits:
        condition, usual = PLACES[split]
        folder = folders[condition]
        if folder is None:
            raise other_layout(
                f"no folder {name} of the {condition} recordings in {root}, for {split} (folders: "
                f"{', '.join(_folders(root)[:20]) or 'none'})",
                LAYOUT,
            )
        utterances += _read_split(_folder_of(folder, usual), split, language, condition)
    return utterances


def _find(root: Path, name: str, condition: str) -> Path | None:
    """Return the folder of a language, if there is one."""
    tops = [root]
    # The folder of the clean recordings, or a language's in it, has the noisy ones beside it.
    if condition == "noisy":
        tops += [path.parent for path in (root, root.parent) if "clean" in path.name]
    places = [top / f"kb_data_{condition}{end}" for top in tops for end in ("_m4a", "")]
    # A folder that holds the languages, or is one, unless its name says the other condition.
    other = "noisy" if condition == "clean" else "clean"
    if other not in root.name and other not in root.parent.name:
        places += [root, root.parent] if root.name == name else [root]
    for place in places:
        # Not the hub's folder of that name, which holds files.
        if any((place / name / folder).is_dir() for folder in _FOLDERS):
            return place / name
    return None


def _folder_of(language: Path, name: str) -> Path:
    """The folder of a split; some archives call the test of unknown speakers ``test_unknown``."""
    usual, other = language / name, language / "test_unknown"
    return other if name == "test" and not usual.exists() and other.is_dir() else usual


def _folders(path: Path) -> list[str]:
    """Name the folders in one, and those in its folders of recordings."""
    tops = [path, *path.glob("kb_data_*")]
    return sorted(str(f.relative_to(path)) for top in tops for f in top.iterdir() if f.is_dir())


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
