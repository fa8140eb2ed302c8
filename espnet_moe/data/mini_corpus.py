"""The mini corpus: synthetic speech in the layouts of Common Voice, MLS and Kathbath.

The same options give the same files. The splits have no voice and no sentence in common. The two
layouts of a language have no sentence in common either, whatever their seeds and sizes, so that one
may train on both. Beside what the real corpora hold lie the manifest and the times of
words and phones (`corpora.alignments`).
"""

import hashlib
import json
import logging
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from espnet_moe.data.corpora.alignments import (
    ALIGNMENTS,
    PHONE_ALIGNMENTS,
    write_alignments,
)
from espnet_moe.data.extras import Word
from espnet_moe.data.files import listed, write_text
from espnet_moe.data.mini_commonvoice import FIRST_TELUGU_RELEASE, RELEASES, CommonVoice
from espnet_moe.data.mini_layouts import (
    Durations,
    Kathbath,
    Layout,
    Mls,
    Recording,
    Section,
    by_section,
)
from espnet_moe.data.mini_recording import Job, draw_of, record
from espnet_moe.data.mini_text import Sentence, capacity, sentences
from espnet_moe.data.mini_voices import Voice, voices
from espnet_moe.errors import UserError
from espnet_moe.files import sha256

LAYOUTS = {
    "commonvoice": ("hi", "it", "pa", "te"),
    "mls": ("it",),
    "kathbath": ("hi", "pa", "te"),
}
AUDIO = ("flac", "opus")
DEFAULT_RELEASE = "22.0"
MANIFEST = "mini_corpus.json"

_VERSION = 2  # raise it when the same options give other files
_UNFINISHED = ".mini_corpus.unfinished.json"
_KATHBATH_NAMES = {"hi": "hindi", "pa": "punjabi", "te": "telugu"}
# Common Voice has one half of the sentences, the other layouts the other.
_HALVES = {"commonvoice": 0, "mls": 1, "kathbath": 1}
_ASKS = ("why", "where", "how", "who", "is", "do")  # first words of English questions
_CHUNK = 8  # recordings handed to a process at a time

Timings = Mapping[str, Sequence[Word]]  # by the clip's path below the corpus folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MiniCorpusOptions:
    """What to make.

    Attributes:
        layout: One of ``LAYOUTS``.
        lang: ISO 639-1 code, one that the layout has.
        size: Number of training utterances.
        dev_size: Number of utterances of the development set.
        test_size: Number of utterances of each test set.
        seed: Of sentences, voices and noise.
        release: Common Voice only: number of the release.
        audio: MLS only: ``flac`` or ``opus``.

    Raises:
        UserError: Naming everything that is wrong.
    """

    layout: str
    lang: str
    size: int
    dev_size: int = 40
    test_size: int = 60
    seed: int = 0
    release: str = DEFAULT_RELEASE
    audio: str = "flac"

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {getattr(self, name)} but must be at least 1"
            for name in ("size", "dev_size", "test_size")
            if getattr(self, name) < 1
        ]
        if self.lang not in LAYOUTS.get(self.layout, ()):
            legal = "; ".join(f"{name}: {', '.join(codes)}" for name, codes in LAYOUTS.items())
            problems.append(
                f"no language '{self.lang}' in layout '{self.layout}'; the layouts have {legal}"
            )
        if self.release not in RELEASES:
            problems.append(f"no release '{self.release}'; legal are {', '.join(RELEASES)}")
        elif self.layout != "commonvoice" and self.release != DEFAULT_RELEASE:
            problems.append(f"releases are there for commonvoice only, not for {self.layout}")
        elif self.lang == "te" and float(self.release) < FIRST_TELUGU_RELEASE:
            problems.append(
                f"release {self.release} has no te; name {FIRST_TELUGU_RELEASE}.0 or a later one"
            )
        if self.audio not in AUDIO:
            problems.append(f"no audio '{self.audio}'; legal are {', '.join(AUDIO)}")
        elif self.layout != "mls" and self.audio != "flac":
            problems.append(f"audio {self.audio} is there for mls only, not for {self.layout}")
        if problems:
            raise UserError("; ".join(problems))


def make_mini_corpus(options: MiniCorpusOptions, out: str | Path, num_jobs: int = 2) -> Path:
    """Write a corpus, unless it is there.

    A call that was interrupted is taken up by the next one with the same options; other options
    replace the language's folder.

    Args:
        options: What to make.
        out: Corpus folder, which may hold other languages and layouts.
        num_jobs: Number of processes.

    Returns:
        The manifest, in the language's folder: JSON with the options and, for each section, the
        number of utterances and speakers, and the hours.

    Raises:
        UserError: When there are not as many sentences, the folder holds something else, or it
            cannot be written.
    """
    if num_jobs < 1:
        raise UserError(f"num_jobs is {num_jobs} but must be at least 1")
    out = Path(out)
    layout = layout_of(options)
    manifest = out / layout.folders[0] / MANIFEST
    alignments = [
        out / folder / name for folder in layout.folders for name in (ALIGNMENTS, PHONE_ALIGNMENTS)
    ]
    parameters = _parameters(options)
    # A corpus of an earlier version lacks the alignments alone.
    whole = all(path.is_file() for path in alignments)
    unfinished = manifest.parent / _UNFINISHED
    if whole and not unfinished.is_file() and _parameters_in(manifest) == parameters:
        logger.info("%s is there already, with the same options", manifest.parent)
        return manifest
    recordings = plan(options)
    try:
        _claim([out / folder for folder in layout.folders], parameters)
        durations, words, phones = _record_all(options, layout, recordings, out, num_jobs)
        for name, content in layout.tables(recordings, durations).items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(out / name, content)
        _write_alignments(layout, words, out, ALIGNMENTS)
        _write_alignments(layout, phones, out, PHONE_ALIGNMENTS)
        document = {"parameters": parameters, "sections": _summary(durations)}
        write_text(manifest, json.dumps(document, indent=2) + "\n")
        unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"could not write the mini corpus in {out}: {error}; make room, or name another "
            "folder, and start again: what is done is kept"
        ) from error
    return manifest


def layout_of(options: MiniCorpusOptions) -> Layout:
    """Return the layout that the options name."""
    if options.layout == "commonvoice":
        return CommonVoice(options.lang, options.release)
    if options.layout == "mls":
        return Mls(options.lang, options.audio)
    return Kathbath(options.lang, _KATHBATH_NAMES[options.lang])


def plan(options: MiniCorpusOptions) -> list[Recording]:
    """Choose the sentences and the speakers; nothing is spoken yet.

    Returns:
        The recordings, section by section. All languages of a layout have the same sentences.

    Raises:
        UserError: When a split has not as many sentences.
    """
    layout = layout_of(options)
    sections = layout.sections(options.size, options.dev_size, options.test_size)
    needed: Counter[str] = Counter()
    for section in sections:
        needed[section.split] += section.size
    drawn = {
        split: iter(_draw(split, count, options.seed, options.layout))
        for split, count in needed.items()
    }
    recordings = []
    for section in sections:
        speakers = assign_voices(options, section)
        for index, voice in enumerate(speakers):
            sentence = next(drawn[section.split])
            question = sentence.texts["en"].split()[0] in _ASKS
            text = sentence.texts[options.lang]
            recordings.append(Recording(section.name, index, text, question, voice))
    return recordings


def assign_voices(options: MiniCorpusOptions, section: Section) -> list[Voice]:
    """Choose a speaker for each recording of a section.

    The voices of the split take turns in an order of the layout's and the language's own. Further
    sections of the training split have the speakers of the training section only.
    """
    pool = voices(section.split)
    order = draw_of("voices", options.seed, options.layout, options.lang, section.split)
    turn = [pool[index] for index in order.permutation(len(pool))]
    if section.split == "train":
        turn = turn[: options.size]
    return [turn[index % len(turn)] for index in range(section.size)]


def _draw(split: str, size: int, seed: int, layout: str) -> list[Sentence]:
    """Draw sentences of the layout's half, which is the same for every seed."""
    limit = capacity(split)
    asked = 2 * size
    while True:
        asked = min(limit, asked + 64)
        half = [s for s in sentences(split, asked, seed) if _half_of(s.key) == _HALVES[layout]]
        if len(half) >= size:
            return half[:size]
        if asked == limit:
            raise UserError(
                f"{size} sentences are needed of the mini corpus split '{split}' (with some for "
                f"further sets of the layout); {layout} has {len(half)}: ask for fewer"
            )


def _half_of(key: str) -> int:
    return hashlib.sha256(f"half {key}".encode()).digest()[0] % 2


def _parameters(options: MiniCorpusOptions) -> dict[str, object]:
    tables = [Path(__file__).with_name(f"mini_{name}.tsv") for name in ("lexicon", "patterns")]
    return {**asdict(options), "version": _VERSION, "text": sha256(*tables)}


def _parameters_in(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("parameters")
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return None


def _claim(folders: Sequence[Path], parameters: dict[str, object]) -> None:
    """Empty the folders, unless they hold the beginning of the same corpus.

    Raises:
        UserError: When they hold something that is no mini corpus: it is not touched.
    """
    marker = folders[0] / _UNFINISHED
    ours = marker.is_file() or (folders[0] / MANIFEST).is_file()
    for folder in folders:
        if not ours and folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{folder} holds something that is no mini corpus; name another folder, or remove "
                "it yourself"
            )
    # While the folder is being emptied it belongs to no options.
    if parameters not in (_parameters_in(marker), _parameters_in(folders[0] / MANIFEST)):
        folders[0].mkdir(parents=True, exist_ok=True)
        write_text(marker, "{}\n")
        for folder in folders:
            for entry in folder.iterdir() if folder.exists() else ():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != marker:
                    entry.unlink()
        write_text(marker, json.dumps({"parameters": parameters}) + "\n")
    for folder in folders:
        for leftover in folder.rglob(".*.tmp"):  # of a killed run
            leftover.unlink()


def _record_all(
    options: MiniCorpusOptions,
    layout: Layout,
    recordings: Sequence[Recording],
    out: Path,
    num_jobs: int,
) -> tuple[Durations, Timings, Timings]:
    """Make all audio files that are not there, in processes of their own; say what is in all."""
    clips = layout.clips(recordings)
    scope = f"{options.seed}/{options.layout}/{options.lang}"
    jobs = [
        Job(
            text=clip.recording.text,
            language=options.lang,
            voice=clip.recording.voice,
            key=f"{scope}/{clip.recording.section}/{clip.recording.index}",
            rate=clip.rate,
            street=clip.street,
            path=str(out / clip.path),
        )
        for clip in clips
    ]
    # espeak-ng is global to a process and forks: it must not begin with this one's threads.
    context = multiprocessing.get_context("spawn")
    title = f"mini corpus {options.layout} {options.lang}"
    try:
        with ProcessPoolExecutor(min(num_jobs, len(jobs)), context) as pool:
            made = pool.map(record, jobs, chunksize=_CHUNK)
            files = list(tqdm(made, title, len(jobs), unit="utt", disable=None))
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that makes the mini corpus was killed ({error}); is there memory enough? "
            "Start again: what is done is kept"
        ) from error
    durations = {c.recording: file.duration for c, file in zip(clips, files, strict=True)}
    words = {c.path: file.words for c, file in zip(clips, files, strict=True)}
    phones = {c.path: file.phones for c, file in zip(clips, files, strict=True)}
    if lost := [path for path, own in words.items() if not own]:
        logger.warning(
            "%s: espeak-ng does not tell the words of %d of %d clips apart: %s",
            out / layout.folders[0],
            len(lost),
            len(clips),
            listed(lost, ", "),
        )
    return durations, words, phones


def _write_alignments(layout: Layout, timings: Timings, out: Path, name: str) -> None:
    """Write times of words or phones into each of the layout's folders, for the clips below it."""
    for folder in layout.folders:
        inside = {
            path.removeprefix(f"{folder}/"): own
            for path, own in timings.items()
            if path.startswith(f"{folder}/")
        }
        write_alignments(out / folder / name, inside)


def _summary(durations: Durations) -> dict[str, dict[str, float]]:
    return {
        section: {
            "utterances": len(members),
            "speakers": len({recording.voice.speaker for recording in members}),
            "hours": round(sum(durations[recording] for recording in members) / 3600, 4),
        }
        for section, members in by_section(durations).items()
    }
