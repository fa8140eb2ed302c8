"""AI4Bharat Kathbath as the hub has it: parquet files with the audio in their rows.

    [<config>/]<hindi|punjabi|telugu>/{train,valid}-<number>-of-<count>.parquet
      columns fname text audio_filepath{bytes,path} duration gender speaker_id

There may be a folder ``data`` above or below the language's. There is no test set, and the speakers
of valid are in train: ``dev`` is valid, ``test`` is made of speakers of train, which leave train
and dev.
"""

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

from espnet_moe.data.corpora.layout import (
    USUAL_SPLITS,
    CorpusError,
    check_splits,
    drawing,
    gender_of,
    name_of,
    other_layout,
    transcript,
)
from espnet_moe.data.corpora.splits import hold_out, in_splits, leave_out
from espnet_moe.data.files import listed
from espnet_moe.data.parquet import ParquetError, audio_column, damaged
from espnet_moe.data.sources import AudioSource
from espnet_moe.data.utterance import Utterance, safe_id

LAYOUT = drawing(__doc__)
FILES = {"train": "train", "dev": "valid"}
COLUMNS = ("fname", "text", "speaker_id")
FURTHER = ("duration", "gender")  # read where they are there

_SHARD = re.compile(r"\w+-(?P<number>\d+)-of-(?P<count>\d+)\.parquet")

logger = logging.getLogger(__name__)


def find_hub(root: Path, name: str) -> Path | None:
    """Return the folder of a language's parquet files, if there is one."""
    above = [root.parent] if root.name == name else [root, *sorted(root.glob("*/"))]
    for top in above:
        for place in (top / name, top / name / "data"):
            if any(place.glob("*.parquet")):
                return place
    return None


def read_hub(
    folder: Path, language: str, splits: Iterable[str], known_bad: Collection[str] = ()
) -> list[Utterance]:
    """Read the utterances of a language.

    Args:
        folder: With its parquet files.
        language: ISO 639-1 code.
        splits: Any of ``train``, ``dev``, ``test``.
        known_bad: Names of files to leave out, without their endings.

    Raises:
        CorpusError: When a file is missing, damaged or lacks a column, a row has no name or
            speaker, or a split is not there.
    """
    splits = check_splits(splits, USUAL_SPLITS, "Kathbath as the hub has it (parquet files)")
    utterances: list[Utterance] = []
    for split, name in FILES.items():
        for path in _shards(folder, name):
            utterances += _read_shard(path, language, split, known_bad)
    logger.info("%s: Kathbath of the hub, %d utterances", folder, len(utterances))
    # Whatever is asked for: test speakers must not be in train today because test is read tomorrow.
    utterances = hold_out(utterances, ["test"], f"Kathbath ({language})")
    utterances = leave_out(utterances, "dev", "test", f"Kathbath ({language})")
    return in_splits(utterances, splits)


def _shards(folder: Path, name: str) -> list[Path]:
    """The files of a split, all of them."""
    paths = sorted(folder.glob(f"{name}-*.parquet"))
    if not paths:
        raise other_layout(f"no {name}-*.parquet in {folder}", LAYOUT)
    numbers = [match for path in paths if (match := _SHARD.fullmatch(path.name))]
    counts = {int(match["count"]) for match in numbers}
    there = {int(match["number"]) for match in numbers}
    if len(counts) > 1 or any(there != set(range(count)) for count in counts):
        raise other_layout(
            f"{folder} has {len(there)} of the {' or '.join(map(str, sorted(counts)))} files "
            f"{name}-<number>-of-<count>.parquet; fetch the others",
            LAYOUT,
        )
    return paths


def _read_shard(
    path: Path, language: str, split: str, known_bad: Collection[str]
) -> Iterator[Utterance]:
    wrong = []
    for number, row in enumerate(_rows(path)):
        stem, reader = PurePath(name_of(row["fname"])).stem, name_of(row["speaker_id"])
        if not stem or not reader:
            wrong.append(f"row {number}: fname '{row['fname']}', speaker_id '{row['speaker_id']}'")
            continue
        if stem in known_bad:
            logger.warning("%s: %s left out, a known bad file", path, stem)
            continue
        speaker = f"kb_{language}_{safe_id(reader)}"
        # Named <id>-<speaker>-<m|f> as in the archives, and then with the same id as there.
        key, _, rest = stem.partition("-")
        length = row.get("duration")
        yield Utterance(
            utt_id=f"{speaker}-{safe_id(key if rest in (f'{reader}-f', f'{reader}-m') else stem)}",
            audio=str(AudioSource(str(path), row=number)),
            text=transcript(row["text"] or ""),
            speaker=speaker,
            language=language,
            split=split,
            gender=gender_of(row.get("gender")),
            duration=float(length) if isinstance(length, float | int) else None,
        )
    if wrong:
        raise CorpusError(f"{path}: rows without a name or speaker:\n  {listed(wrong)}")


def _rows(path: Path) -> list[dict[str, Any]]:
    """All columns of a file but the audio."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in COLUMNS if name not in names]:
                raise other_layout(
                    f"{path} has no column {', '.join(missing)} among {', '.join(names)}", LAYOUT
                )
            audio_column(path, file.schema_arrow)
            wanted = [*COLUMNS, *(name for name in FURTHER if name in names)]
            rows: list[dict[str, Any]] = file.read(columns=wanted).to_pylist()
            return rows
    except ParquetError as error:
        raise other_layout(str(error), LAYOUT) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(str(damaged(path, error))) from None
