"""Mozilla Common Voice, scripted speech, releases 11 to 27.

The folder given, or any folder up to five levels below it, is

    cv-corpus-{version}-{date}/{locale}/          locale: hi, it, pa-IN, te, en
      train.tsv dev.tsv test.tsv                  tab-separated, unquoted, with a header
      validated.tsv                               (read where training is to be from it)
      clips/common_voice_{locale}_{id}.mp3
      clip_durations.tsv                          (from version 15; read where it is there)
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from espnet_moe.data.corpora.layout import (
    USUAL_SPLITS,
    CorpusError,
    check_language,
    check_root,
    check_splits,
    drawing,
    other_layout,
    raise_wrong_fields,
    read_lines,
    transcript,
)
from espnet_moe.data.files import listed
from espnet_moe.data.normalize import normalize
from espnet_moe.data.utterance import Gender, Seconds, Utterance, safe_id

TrainFrom = Literal["train", "validated"]
LOCALES = {"en": "en", "hi": "hi", "it": "it", "pa": "pa-IN", "te": "te"}
LAYOUT = drawing(__doc__)

# Columns by the first release that has them. Files are read by column name, so that a release
# with further columns is read as well.
_V11 = "client_id path sentence up_votes down_votes age gender accents locale segment"
_V13 = "client_id path sentence up_votes down_votes age gender accents variant locale segment"
_V17 = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents "
    "variant locale segment"
)
COLUMNS = {11: tuple(_V11.split()), 13: tuple(_V13.split()), 17: tuple(_V17.split())}
_NEEDED = ("client_id", "path", "sentence")
_READ = (*_NEEDED, "gender", "locale")
# Gender words changed in release 17; all others (non-binary, undisclosed, …) are not known to us.
GENDERS: Mapping[str, Gender] = {
    "male": "m",
    "male_masculine": "m",
    "female": "f",
    "female_feminine": "f",
}

_RELEASE = re.compile(r"cv-corpus-(\d+(?:\.\d+)+(?:-delta)?-\d{4}-\d{2}-\d{2})")
_MAX_DEPTH = 5
_SPEAKER_LENGTH = 16  # of the 128 hexadecimal digits of a client_id

logger = logging.getLogger(__name__)


def read_commonvoice(
    root: str | Path,
    language: str,
    splits: Iterable[str] = USUAL_SPLITS,
    train_from: TrainFrom = "train",
    release: str | None = None,
) -> list[Utterance]:
    """Read the utterances of a Common Voice release.

    Args:
        root: Folder that holds the release, at any of the levels drawn above.
        language: ISO 639-1 code.
        splits: Any of ``train``, ``dev``, ``test``.
        train_from: The table of the training set: ``train``, or ``validated``, of which the
            speakers and sentences of dev and test are left out.
        release: Which one, where there are several: ``26.0`` or ``26.0-2026-06-12``.

    Returns:
        Utterances, in the order of the files. Whether the audio exists is not looked at.

    Raises:
        CorpusError: When the language is not there, several releases are or not the one asked for,
            or a file is missing, lacks a column, or has rows with too few or too many fields.
    """
    splits = check_splits(splits, USUAL_SPLITS, "Common Voice")
    folder = find_locale(root, language, release)
    rows = [
        (split, row)
        for split in splits
        for row in (
            _validated(folder, language)
            if split == "train" and train_from == "validated"
            else _read_clips(folder / f"{split}.tsv")
        )
    ]
    speakers = _short_names({row["client_id"] for _, row in rows})
    durations = _read_durations(folder / "clip_durations.tsv")
    utterances = []
    for split, row in rows:
        speaker = f"cv_{language}_{speakers[row['client_id']]}"
        utterances.append(
            Utterance(
                utt_id=f"{speaker}-{safe_id(row['path'].rsplit('.', 1)[0])}",
                audio=f"{folder}/clips/{row['path']}",
                text=transcript(row["sentence"]),
                speaker=speaker,
                language=language,
                split=split,
                gender=GENDERS.get(row.get("gender", "").strip().lower()),
                duration=durations.get(row["path"]),
            )
        )
    logger.info("%s: Common Voice %s, %d rows", folder, release_of(folder), len(utterances))
    return utterances


def find_locale(root: str | Path, language: str, release: str | None = None) -> Path:
    """Return the folder of a language, the one with its ``train.tsv``.

    Args:
        root: Folder that holds it.
        language: ISO 639-1 code.
        release: Which one, where there are several: ``26.0`` or ``26.0-2026-06-12``.

    Raises:
        CorpusError: When there is none (the message lists the locales or releases that are there),
            or more than one: releases must not be mixed.
    """
    locale = check_language(language, "Common Voice", LOCALES)
    root = check_root(root, LAYOUT)
    found, delta = _locale_folders(root)
    matches = [folder for folder in found if folder.name == locale]
    if not matches and found == [root]:  # the locale's own folder, under another name
        first = next(iter(_read_clips(root / "train.tsv")), {})
        matches = [root] if first.get("locale") == locale else []
    if release is not None and matches:
        there = matches
        matches = [folder for folder in there if _is_release(folder, release)]
        if not matches:
            names = sorted({release_of(folder) or f"unknown, in {folder}" for folder in there})
            raise CorpusError(
                f"no release {release} of locale {locale} in {root}; there are: {', '.join(names)}"
            )
    if len(matches) > 1:
        raise CorpusError(
            f"{root} holds locale {locale} more than once; choose with --release, or name one of "
            f"these, for releases must not be mixed:\n  {listed(map(str, matches))}"
        )
    if matches:
        return matches[0]
    if delta:
        raise CorpusError(
            f"{delta} is a delta archive: it has no train, dev and test sets; fetch the full "
            "release of the same version"
        )
    locales = ", ".join(sorted({folder.name for folder in found})) or "none"
    raise other_layout(f"no train.tsv of locale {locale} below {root} (locales: {locales})", LAYOUT)


def _is_release(folder: Path, release: str) -> bool:
    """Whether a folder's release is the one of this name: a version, or version and date."""
    name = release_of(folder) or ""
    return name == release or name.startswith(f"{release}-")


def release_of(folder: str | Path) -> str | None:
    """Return the release that a path names, such as ``26.0-2026-06-12``."""
    found = _RELEASE.findall(str(Path(folder).absolute()))
    return found[-1] if found else None


def _locale_folders(root: Path) -> tuple[list[Path], Path | None]:
    """Return the folders with a train.tsv, and a delta archive if there is one."""
    found = []
    delta = root if "-delta-" in str(root) else None
    for path, folders, files in os.walk(root, followlinks=True):
        here = Path(path)
        if "-delta-" in here.name:
            delta = here
        depth = len(here.relative_to(root).parts)
        if "train.tsv" in files:
            found.append(here)
        # Below a locale, and in folders of clips, there is nothing but hundreds of thousands
        # of files.
        if "train.tsv" in files or depth == _MAX_DEPTH:
            folders.clear()
        folders[:] = sorted(name for name in folders if name != "clips")
    return sorted(found), delta


def _read_clips(path: Path) -> list[dict[str, str]]:
    """Read a clip table; stray double quotes are text."""
    lines = read_lines(path, LAYOUT)
    header = next(lines, (1, ""))[1].split("\t")
    if missing := [name for name in _NEEDED if name not in header]:
        raise CorpusError(
            f"{path}:1: no column {', '.join(missing)} among '{' '.join(header)}'; the columns "
            f"of a release from 17 on are '{' '.join(COLUMNS[17])}'; unpack the release again"
        )
    columns = [(name, header.index(name)) for name in _READ if name in header]
    rows, wrong = [], []
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(header):
            wrong.append((number, len(fields)))
        else:
            rows.append({name: fields[column] for name, column in columns})
    raise_wrong_fields(path, wrong, len(header))
    return rows


def _validated(folder: Path, language: str) -> list[dict[str, str]]:
    """The rows of ``validated.tsv`` with no speaker and no sentence of dev or test."""
    held = [row for split in ("dev", "test") for row in _read_clips(folder / f"{split}.tsv")]
    speakers = {row["client_id"] for row in held}
    sentences = {normalize(row["sentence"], language) for row in held}
    rows = _read_clips(folder / "validated.tsv")
    others = [row for row in rows if row["client_id"] not in speakers]
    kept = [row for row in others if normalize(row["sentence"], language) not in sentences]
    logger.info(
        "%s: of %d validated clips, %d of speakers of dev and test are left out, and %d of their "
        "sentences",
        folder,
        len(rows),
        len(rows) - len(others),
        len(others) - len(kept),
    )
    return kept


def _read_durations(path: Path) -> dict[str, Seconds]:
    if not path.is_file():
        return {}
    durations, wrong = {}, []
    for number, line in read_lines(path, LAYOUT):
        clip, _, milliseconds = line.partition("\t")
        try:
            durations[clip] = float(milliseconds) / 1000
        except ValueError:
            if number > 1:  # the header
                wrong.append(f"{path}:{number}: '{milliseconds}' is no number of milliseconds")
    if wrong:
        raise CorpusError(f"{path.name} is damaged; unpack it again:\n  {listed(wrong)}")
    return durations


def _short_names(client_ids: set[str]) -> dict[str, str]:
    """Return a short unique name for each client_id: as many first digits as tell them apart."""
    digits = {
        client: client
        if client.isascii() and client.isalnum()
        else hashlib.sha256(client.encode()).hexdigest()
        for client in client_ids
    }
    length = _SPEAKER_LENGTH
    while len({name[:length] for name in digits.values()}) < len(set(digits.values())):
        length += _SPEAKER_LENGTH
    return {client: name[:length] for client, name in digits.items()}


def columns_of(version: int) -> Sequence[str]:
    """Return the columns of a release's clip tables, by its major version (11 or later)."""
    return COLUMNS[max(first for first in COLUMNS if first <= version)]
