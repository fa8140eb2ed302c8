"""Multilingual LibriSpeech, flac and opus.

The folder given is, or holds,

    mls_italian[_opus]/
      metainfo.txt                              SPEAKER | GENDER | PARTITION | …  (for the genders)
      {train,dev,test}/transcripts.txt          utt<TAB>text
      {train,dev,test}/segments.txt             utt<TAB>url<TAB>start<TAB>end     (for durations)
      {train,dev,test}/audio/<speaker>/<book>/<speaker>_<book>_<number>.flac|.opus
      train/limited_supervision/9hr/handles.txt
      train/limited_supervision/1hr/{0..5}/handles.txt
"""

import logging
from collections.abc import Iterable
from pathlib import Path

from espnet_moe.data.corpora.layout import (
    USUAL_SPLITS,
    CorpusError,
    check_language,
    check_root,
    check_splits,
    drawing,
    other_layout,
    read_lines,
    read_pairs,
)
from espnet_moe.data.files import listed
from espnet_moe.data.utterance import Gender, Seconds, Utterance, safe_id

LANGUAGES = {"en": "english", "it": "italian"}
HANDLES = ("9hr", *(f"1hr/{part}" for part in range(6)))
LAYOUT = drawing(__doc__)
KNOWN_BAD = frozenset({"1595_5616_000923"})

_GENDERS: dict[str, Gender] = {"M": "m", "F": "f"}

logger = logging.getLogger(__name__)


def read_mls(
    root: str | Path,
    language: str = "it",
    splits: Iterable[str] = USUAL_SPLITS,
    handles: str | None = None,
) -> list[Utterance]:
    """Read the utterances of Multilingual LibriSpeech.

    Args:
        root: Folder as drawn above. Where it holds both, flac is taken before opus.
        language: ISO 639-1 code.
        splits: Any of ``train``, ``dev``, ``test``.
        handles: Limited supervision: keep of ``train`` what ``9hr`` or ``1hr/0`` … ``1hr/5`` lists.

    Returns:
        Utterances, in the order of the files, without the known bad one. Whether the audio exists
        is not looked at.

    Raises:
        CorpusError: When the folder is of another layout, a file is missing or damaged, or the
            handles are not there or name utterances that are not.
    """
    splits = check_splits(splits, USUAL_SPLITS, "MLS")
    folder = _find(root, check_language(language, "MLS", LANGUAGES))
    genders = _read_genders(folder / "metainfo.txt")
    utterances: list[Utterance] = []
    for split in splits:
        kept = _read_split(folder, split, language, genders)
        if split == "train" and handles is not None:
            kept = _limit(kept, folder, handles)
        utterances += kept
    return utterances


def _find(root: str | Path, name: str) -> Path:
    root = check_root(root, LAYOUT)
    for folder in (root, root / f"mls_{name}", root / f"mls_{name}_opus"):
        if any((folder / split / "transcripts.txt").is_file() for split in USUAL_SPLITS):
            if folder.name.startswith("mls_") and f"mls_{name}" not in folder.name:
                raise CorpusError(f"{folder} is not the {name} part; give mls_{name}[_opus]")
            return folder
    raise other_layout(f"no transcripts.txt of mls_{name}[_opus] in {root}", LAYOUT)


def _read_split(
    folder: Path, split: str, language: str, genders: dict[str, Gender]
) -> list[Utterance]:
    pairs = list(read_pairs(folder / split / "transcripts.txt", LAYOUT))
    wrong = [f"line {number}: '{key}'" for number, key, _ in pairs if key.count("_") != 2]
    if wrong:
        raise other_layout(
            f"{folder}/{split}/transcripts.txt: ids must be <speaker>_<book>_<number>:\n  "
            f"{listed(wrong)}\n",
            LAYOUT,
        )
    durations = _read_durations(folder / split / "segments.txt")
    audio = folder / split / "audio"
    suffix = _suffix(audio, pairs[0][1]) if pairs else "flac"
    utterances = []
    for _, key, text in pairs:
        if key in KNOWN_BAD:
            logger.warning("%s %s: %s left out, a known bad file", folder.name, split, key)
            continue
        number, book, _ = key.split("_")
        speaker = f"mls_{language}_{safe_id(number)}"
        utterances.append(
            Utterance(
                utt_id=f"{speaker}-{safe_id(key)}",
                audio=f"{audio}/{number}/{book}/{key}.{suffix}",
                text=text,
                speaker=speaker,
                language=language,
                split=split,
                gender=genders.get(number),
                duration=durations.get(key),
            )
        )
    logger.info("%s %s: MLS, %d utterances (%s)", folder, split, len(utterances), suffix)
    return utterances


def _suffix(audio: Path, key: str) -> str:
    """The audio format: what the first file has, else what the folder's name says."""
    number, book, _ = key.split("_")
    for suffix in ("flac", "opus"):
        if (audio / number / book / f"{key}.{suffix}").is_file():
            return suffix
    return "opus" if audio.parent.parent.name.endswith("_opus") else "flac"


def _read_genders(path: Path) -> dict[str, Gender]:
    if not path.is_file():
        logger.warning("%s does not exist; genders are not known", path)
        return {}
    genders = {}
    for _, line in read_lines(path, LAYOUT):
        fields = [field.strip() for field in line.split("|")]
        if len(fields) > 1 and fields[1].upper() in _GENDERS:
            genders[fields[0]] = _GENDERS[fields[1].upper()]
    return genders


def _read_durations(path: Path) -> dict[str, Seconds]:
    if not path.is_file():
        return {}
    durations, wrong = {}, []
    for number, line in read_lines(path, LAYOUT):
        fields = line.split("\t")
        try:
            durations[fields[0]] = float(fields[-1]) - float(fields[-2])
        except (ValueError, IndexError):
            wrong.append(f"{path}:{number}: '{line}'")
    if wrong:
        raise CorpusError(
            f"{path.name}: rows that are not utt<TAB>url<TAB>start<TAB>end; unpack it again:\n  "
            f"{listed(wrong)}"
        )
    return durations


def _limit(utterances: list[Utterance], folder: Path, handles: str) -> list[Utterance]:
    if handles not in HANDLES:
        raise CorpusError(f"no MLS handles '{handles}'; legal are {', '.join(HANDLES)}")
    path = folder / "train" / "limited_supervision" / handles / "handles.txt"
    wanted = {line.strip() for _, line in read_lines(path, LAYOUT)} - KNOWN_BAD
    there = {utt.utt_id.split("-", 1)[1]: utt for utt in utterances}
    if unknown := sorted(wanted - there.keys()):
        raise CorpusError(
            f"{path}: {len(unknown)} utterances are not in train/transcripts.txt:\n  "
            f"{listed(unknown)}"
        )
    return [utt for key, utt in there.items() if key in wanted]
