"""AI4Bharat Shrutilipi: news bulletins of All India Radio, cut into sentences.

The folder given is, or holds, for each language

    [shrutilipi_fairseq/]<hindi|punjabi|telugu>/
      train.tsv                               the publisher's folder; then path<TAB>frames a line
      train.wrd                               a transcript a line, of the same paths
    [data/|newsonair_v5/]<hindi|punjabi|telugu>/<bulletin>/sent_<number>.wav

There are no speakers: a bulletin counts as one. There is nothing but a training set: ``dev`` and
``test`` are made of bulletins of their own.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath

from espnet_moe.data.corpora.checks import MAX_DURATION
from espnet_moe.data.corpora.layout import (
    USUAL_SPLITS,
    CorpusError,
    check_language,
    check_root,
    check_splits,
    counted,
    drawing,
    other_layout,
    read_all_lines,
    transcript,
)
from espnet_moe.data.corpora.splits import hold_out, in_splits
from espnet_moe.data.files import listed
from espnet_moe.data.normalize import normalize
from espnet_moe.data.utterance import SAMPLE_RATE, Utterance, safe_id

LANGUAGES = {"hi": "hindi", "pa": "punjabi", "te": "telugu"}
LAYOUT = drawing(__doc__)

_PROBED = 100  # files that are looked for, to find out below which folder they are

logger = logging.getLogger(__name__)


def read_shrutilipi(
    root: str | Path, language: str, splits: Iterable[str] = USUAL_SPLITS
) -> list[Utterance]:
    """Read the utterances of Shrutilipi.

    Those of more than 30 s or without text are left out; the log counts them.

    Args:
        root: Folder as drawn above.
        language: ISO 639-1 code.
        splits: Any of ``train``, ``dev``, ``test``.

    Returns:
        Utterances, in the order of the files. Whether all audio exists is not looked at.

    Raises:
        CorpusError: When the folder is of another layout, no audio is where it should be, the two
            files have not the same number of lines, or rows are not as drawn above.
    """
    splits = check_splits(splits, USUAL_SPLITS, "Shrutilipi")
    name = check_language(language, "Shrutilipi", LANGUAGES)
    root = check_root(root, LAYOUT)
    table = _find(root, name)
    published, rows = _read_table(table)
    texts = [text for _, text in read_all_lines(table.with_suffix(".wrd"), LAYOUT)]
    if len(texts) != len(rows):
        raise CorpusError(
            f"{table} names {len(rows)} files, but train.wrd beside it has {len(texts)} "
            "transcripts; they must be of the same lines: unpack both again"
        )
    folder = _audio_folder(root, table, name, published, [path for path, _ in rows])
    utterances = []
    lost: Counter[str] = Counter()
    for (path, frames), text in zip(rows, texts, strict=True):
        if frames > MAX_DURATION * SAMPLE_RATE:
            lost[f"longer than {MAX_DURATION:g} s"] += 1
            continue
        if not normalize(text, language):
            lost["without text"] += 1
            continue
        speaker = f"sl_{language}_{safe_id(path.parent.name)}"
        utterances.append(
            Utterance(
                utt_id=f"{speaker}-{safe_id(path.stem)}",
                audio=str(folder / path),
                text=transcript(text),
                speaker=speaker,
                language=language,
                split="train",
                duration=frames / SAMPLE_RATE,
            )
        )
    logger.info(
        "%s: Shrutilipi, %d utterances; left out: %s", table, len(utterances), counted(lost)
    )
    # Whatever is asked for: the splits of two calls must not share bulletins either.
    return in_splits(hold_out(utterances, ["dev", "test"], f"Shrutilipi ({language})"), splits)


def _find(root: Path, name: str) -> Path:
    """Return the ``train.tsv`` of a language."""
    found = [root / "train.tsv"] if root.name == name else []
    found += sorted({root / name / "train.tsv", *root.glob(f"*/{name}/train.tsv")})
    found = [path for path in found if path.is_file()]
    if len(found) > 1:
        raise CorpusError(
            f"{root} holds train.tsv of {name} more than once; remove all but one:\n  "
            f"{listed(map(str, found))}"
        )
    if not found:
        there = ", ".join(islice((p.name for p in sorted(root.iterdir())), 20)) or "nothing"
        raise other_layout(f"no {name}/train.tsv in {root} (there: {there})", LAYOUT)
    return found[0]


def _read_table(table: Path) -> tuple[str, list[tuple[PurePosixPath, int]]]:
    """Return the publisher's folder, and of each file its path and number of samples."""
    lines = iter(read_all_lines(table, LAYOUT))
    published = next(lines, (1, ""))[1].strip()
    rows, wrong = [], []
    for number, line in lines:
        path, _, frames = line.partition("\t")
        try:
            rows.append((PurePosixPath(path), int(frames)))
        except ValueError:
            wrong.append(f"{table}:{number}: '{line}'")
            continue
        if len(rows[-1][0].parts) < 2:
            wrong.append(f"{table}:{number}: '{path}' is in no bulletin")
    if wrong:
        raise CorpusError(
            f"{len(wrong)} lines are not <bulletin>/sent_<number>.wav<TAB>frames; unpack "
            f"train.tsv again, or mend them:\n  {listed(wrong)}"
        )
    if not rows:
        raise other_layout(f"{table} names no file", LAYOUT)
    return published, rows


def _audio_folder(
    root: Path, table: Path, name: str, published: str, paths: list[PurePosixPath]
) -> Path:
    """Return the folder that the table's paths are below: the one that has any of the first."""
    # A folder of the publisher's name may be there and be something else.
    folders = [Path(published)] if published and Path(published).is_absolute() else []
    for top in dict.fromkeys((root, table.parent, table.parent.parent, table.parent.parent.parent)):
        for below in ("", "data", "newsonair_v5"):
            folders += [top / below / name, top / below]
    for folder in folders:
        if any((folder / path).is_file() for path in paths[:_PROBED]):
            return folder
    raise other_layout(
        f"{table} names audio files, but {paths[0]} and the next {min(len(paths), _PROBED)} are "
        f"not in {root}, and {published} is not there; was the audio unpacked?",
        LAYOUT,
    )
