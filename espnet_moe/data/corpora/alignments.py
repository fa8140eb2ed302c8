"""Word and phone times that lie beside a corpus: the mini corpus has them, the real ones do not.

    <a language's folder>/alignments.ctm          clip 1 start duration word     (NIST's CTM)
    <a language's folder>/phone_alignments.ctm    clip 1 start duration phone    (IPA)

``clip`` is the audio file's path below that folder, or ``<path>.parquet#row=<n>``; the times are
seconds in the audio as ``load_audio`` decodes it (an AAC file has 1024 samples of its encoder's
before the first). Of a recording that utterances are parts of, it is the whole one's words and
times. Any corpus that somebody has aligned may be given such files.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from espnet_moe.data.corpora.layout import CorpusError
from espnet_moe.data.extras import Word
from espnet_moe.data.files import listed, read_lines, write_text
from espnet_moe.data.sources import AudioSource, parse_source
from espnet_moe.data.utterance import Seconds, Utterance

ALIGNMENTS = "alignments.ctm"
PHONE_ALIGNMENTS = "phone_alignments.ctm"

_TOLERANCE: Seconds = 0.005  # of a word or phone at the edge of a part

logger = logging.getLogger(__name__)


def write_alignments(path: Path, timings: Mapping[str, Sequence[Word]]) -> None:
    """Write the words (or phones) of each clip, by its path below the file's folder."""
    rows = (
        f"{clip} 1 {word.start:.3f} {word.duration:.3f} {word.word}\n"
        for clip in sorted(timings)
        for word in timings[clip]
    )
    write_text(path, "".join(rows))


def read_alignments(
    root: str | Path, utterances: Iterable[Utterance], name: str = ALIGNMENTS
) -> dict[str, tuple[Word, ...]]:
    """Find the times of utterances' words or phones.

    Args:
        root: The corpus folder; such files are looked for between it and the audio.
        utterances: As the corpus's reader gives them.
        name: Of the files: ``ALIGNMENTS`` or ``PHONE_ALIGNMENTS``.

    Returns:
        Words or phones by utterance id, of the utterances that have any. A part of a recording that
        cuts through one has none: they would not be those of its transcript.

    Raises:
        CorpusError: When such a file is damaged; every such line is named.
    """
    root = Path(root).expanduser().absolute()
    utterances = list(utterances)
    folders: dict[Path, Path | None] = {}
    tables: dict[Path, dict[str, list[Word]]] = {}
    found = {}
    for utt in utterances:
        source = parse_source(utt.audio)
        audio = Path(source.path).absolute()
        if audio.parent not in folders:
            folders[audio.parent] = _folder(audio.parent, root, name)
        folder = folders[audio.parent]
        if folder is None:
            continue
        if folder not in tables:
            tables[folder] = _read(folder / name)
        clip = str(AudioSource(audio.relative_to(folder).as_posix(), row=source.row))
        if words := _within(tables[folder].get(clip, ()), source):
            found[utt.utt_id] = words
    if tables:
        logger.info("%s: %s has %d of %d utterances", root, name, len(found), len(utterances))
    return found


def _within(words: Sequence[Word], source: AudioSource) -> tuple[Word, ...]:
    """The words of a part of a recording, at their times in it; none where it cuts through one."""
    if source.start is None or source.end is None:
        return tuple(words)
    inside = []
    for word in words:
        if word.end <= source.start + _TOLERANCE or word.start >= source.end - _TOLERANCE:
            continue
        if word.start < source.start - _TOLERANCE or word.end > source.end + _TOLERANCE:
            return ()
        start = max(0.0, word.start - source.start)
        end = min(word.end, source.end) - source.start
        inside.append(Word(start, end - start, word.word))
    return tuple(inside)


def _folder(folder: Path, root: Path, name: str) -> Path | None:
    """Return the nearest folder with such a file, not above the corpus's."""
    for here in (folder, *folder.parents):
        if (here / name).is_file():
            return here
        if here == root:
            break
    return None


def _read(path: Path) -> dict[str, list[Word]]:
    table: dict[str, list[Word]] = {}
    wrong = []
    for number, line in read_lines(path):
        values = line.rsplit(maxsplit=4)
        try:
            clip, _, start, duration, word = values
            table.setdefault(clip, []).append(Word(float(start), float(duration), word))
        except ValueError:
            wrong.append(f"{path}:{number}: '{line}'")
    if wrong:
        raise CorpusError(
            f"{path.name}: lines that are not 'clip 1 start duration word'; make the file again, "
            f"or mend or remove it:\n  {listed(wrong)}"
        )
    return table
