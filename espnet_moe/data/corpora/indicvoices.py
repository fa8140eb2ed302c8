"""AI4Bharat IndicVoices: spontaneous and read speech, in long recordings.

The folder given is, or holds,

    <Hindi|Punjabi|Telugu>/v1/{train,valid}/
      <name>.wav
      <name>.json          speaker_id, gender, and the lists verbatim and normalized of
                           {start, end, text, speaker_id}

Each segment is an utterance with its normalized text. Where a file names the speaker of the
recording, that of a segment is a number, and 1 is somebody else, whom the publisher's own script
(AI4Bharat/IndicVoices, TGZ/create_indicvoices.py) leaves out. There is no test set: ``test`` is
valid, whose speakers leave train, and ``dev`` is made of speakers of train.
"""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from espnet_moe.data.corpora.checks import MAX_DURATION
from espnet_moe.data.corpora.layout import (
    USUAL_SPLITS,
    CorpusError,
    check_language,
    check_root,
    check_splits,
    counted,
    drawing,
    gender_of,
    name_of,
    other_layout,
    transcript,
)
from espnet_moe.data.corpora.splits import hold_out, in_splits, leave_out
from espnet_moe.data.files import listed
from espnet_moe.data.normalize import normalize
from espnet_moe.data.sources import AudioSource
from espnet_moe.data.utterance import Seconds, Utterance, safe_id

LANGUAGES = {"hi": "Hindi", "pa": "Punjabi", "te": "Telugu"}
FOLDERS = {"train": "train", "test": "valid"}
LAYOUT = drawing(__doc__)
MIN_DURATION: Seconds = 0.05

_TAG = re.compile(r"\[[^\]]*\]")  # [noise], [laughter], …
_SOMEBODY_ELSE = "1"

logger = logging.getLogger(__name__)


def read_indicvoices(
    root: str | Path, language: str, splits: Iterable[str] = USUAL_SPLITS
) -> list[Utterance]:
    """Read the utterances of IndicVoices.

    Segments of more than 30 s or less than 0.05 s, without text, or of another speaker than the
    recording's are left out; the log counts them.

    Args:
        root: Folder as drawn above.
        language: ISO 639-1 code.
        splits: Any of ``train``, ``dev``, ``test``.

    Returns:
        Utterances, in the order of the files' names. Whether the audio exists is not looked at.

    Raises:
        CorpusError: When the folder is of another layout, or files are not as drawn above.
    """
    splits = check_splits(splits, USUAL_SPLITS, "IndicVoices")
    folder = _find(root, check_language(language, "IndicVoices", LANGUAGES))
    utterances = []
    for split, name in FOLDERS.items():
        utterances += _read_split(folder / name, language, split)
    # Whatever is asked for: the splits of two calls must not share speakers either.
    utterances = leave_out(utterances, "train", "test", f"IndicVoices ({language})")
    utterances = hold_out(utterances, ["dev"], f"IndicVoices ({language})")
    return in_splits(utterances, splits)


def _find(root: str | Path, name: str) -> Path:
    """Return the folder with train and valid."""
    root = check_root(root, LAYOUT)
    below = [path for path in _folders(root) if path.name.lower() == name.lower()]
    tops = [path for path in (root, root.parent) if path.name.lower() == name.lower()] or below
    versions = [path for top in tops for path in (top, *_folders(top)) if (path / "train").is_dir()]
    if root in versions:
        versions = [root]
    if len(versions) > 1:
        raise CorpusError(
            f"{root} holds {name} more than once; name one of these, for they may be of several "
            f"releases:\n  {listed(map(str, versions))}"
        )
    if not versions:
        there = ", ".join(path.name for path in _folders(root)[:20]) or "none"
        raise other_layout(f"no {name}/v1/train in {root} (folders: {there})", LAYOUT)
    return versions[0]


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir())


def _read_split(folder: Path, language: str, split: str) -> list[Utterance]:
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        raise other_layout(f"{folder} does not exist", LAYOUT) from None
    keys = sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))
    sounds = {name.removesuffix(".wav") for name in names if name.endswith(".wav")}
    if not keys:
        raise other_layout(f"no <name>.json in {folder}", LAYOUT)
    if untold := sorted(sounds - set(keys)):
        logger.warning("%s: %d .wav have no .json (%s, …)", folder, len(untold), untold[0])
    utterances: list[Utterance] = []
    lost: Counter[str] = Counter()
    wrong = []
    for key in keys:
        path = folder / f"{key}.json"
        try:
            utterances += _read_recording(path, language, split, lost)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            wrong.append(f"{path}: {type(error).__name__}: {error}")
    if wrong:
        raise CorpusError(
            f"{len(wrong)} files are not as expected; unpack them again, or remove them:\n  "
            f"{listed(wrong)}\nexpected is:\n{LAYOUT}"
        )
    logger.info(
        "%s: IndicVoices, %d utterances of %d recordings; left out: %s",
        folder,
        len(utterances),
        len(keys),
        counted(lost),
    )
    return utterances


def _read_recording(
    path: Path, language: str, split: str, lost: Counter[str]
) -> Iterator[Utterance]:
    """Yield the utterances of a recording, counting the segments that are left out."""
    recording: dict[str, Any] = json.loads(path.read_text("utf-8"))
    for number, segment in enumerate(recording["normalized"], start=1):
        start, end = max(0.0, float(segment["start"])), float(segment["end"])
        text = transcript(_TAG.sub(" ", segment["text"]))
        name = _speaker(recording, segment, path.stem)
        duration = round(end - start, 6)
        if reason := _problem(duration, text, language, name):
            lost[reason] += 1
            continue
        speaker = f"iv_{language}_{safe_id(name)}"
        yield Utterance(
            utt_id=f"{speaker}-{safe_id(path.stem)}_{number:04d}",
            audio=str(AudioSource(str(path.with_suffix(".wav")), start, end)),
            text=text,
            speaker=speaker,
            language=language,
            split=split,
            gender=gender_of(recording.get("gender")),
            duration=duration,
        )


def _speaker(recording: dict[str, Any], segment: dict[str, Any], file: str) -> str:
    """The name of who speaks in a segment; empty for somebody unknown."""
    number = name_of(segment.get("speaker_id"))
    if name := name_of(recording.get("speaker_id")):
        return "" if number == _SOMEBODY_ELSE else name
    # Numbers are of a file, names of the corpus.
    return f"{file}_{number}" if number in ("0", _SOMEBODY_ELSE) else number


def _problem(duration: Seconds, text: str, language: str, speaker: str) -> str:
    """Why a segment is left out; empty where it is not."""
    if not speaker:
        return "of another speaker than the recording's"
    if duration > MAX_DURATION:
        return f"longer than {MAX_DURATION:g} s"
    if duration < MIN_DURATION:
        return f"shorter than {MIN_DURATION:g} s"
    if not normalize(text, language):
        return "without text"
    return ""
