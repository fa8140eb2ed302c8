"""Stage 3: test sets in which the language changes within an utterance.

<out>/<name>_<kind>/            a formatted data directory; ``utt2segments`` has the languages
  data/<utt_id>.flac
  pieces.tsv                    part, its source utterance, where in it (seconds), its language
<out>/<name>_<kind>_parts/      each piece as an utterance of its own, ``<utt_id>-p1`` and so on
  data/<utt_id>-p1.flac
"""

import io
import logging
import multiprocessing
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from espnet_moe.data.audio import Samples, load_audio
from espnet_moe.data.codeswitch import (
    KINDS,
    CodeSwitchError,
    CodeSwitchOptions,
    Piece,
    Plan,
    check_pool,
    plan_codeswitch,
)
from espnet_moe.data.datadir import (
    DataDir,
    corpora_of,
    load_datadir,
    validate_datadir,
    write_datadir,
)
from espnet_moe.data.extras import Extras, Segment, Word
from espnet_moe.data.files import DataDirError, listed, write_bytes, write_text
from espnet_moe.data.normalize import check_languages
from espnet_moe.data.utterance import SAMPLE_RATE, Seconds, Utterance, split_of

_PEAK = 0.99  # full scale is 1
_CHUNK = 8  # utterances handed to a process at a time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """An utterance whose audio is written.

    Attributes:
        plan: What it is of.
        audio: Its file.
        parts: The pieces' files.
        samples: Its length.
        part_samples: The pieces' lengths.
        offsets: Where in it each piece begins, samples.
    """

    plan: Plan
    audio: str
    parts: tuple[str, ...]
    samples: int
    part_samples: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Who speaks which language when: it changes in the middle of an overlap or silence."""
        ends = [o + n for o, n in zip(self.offsets, self.part_samples, strict=True)]
        middles = [
            (end + start) / 2 / SAMPLE_RATE
            for end, start in zip(ends[:-1], self.offsets[1:], strict=True)
        ]
        bounds = [0.0, *middles, self.samples / SAMPLE_RATE]
        return tuple(
            Segment(start, end, piece.source.language)
            for start, end, piece in zip(bounds[:-1], bounds[1:], self.plan.pieces, strict=True)
        )


def make_codeswitch(
    sources: Sequence[str | Path],
    out: str | Path,
    options: CodeSwitchOptions | None = None,
    audio_dir: str | Path | None = None,
    num_jobs: int = 1,
) -> dict[str, int]:
    """Make code-switched sets, and for each a set of its parts.

    Args:
        sources: Formatted data directories, in any order.
        out: Folder to write the sets into.
        options: Defaults where ``None``.
        audio_dir: Folder for the audio, in a folder a set; default: ``data`` in each set.
        num_jobs: Processes; 1 works in this process.

    Returns:
        Number of utterances by the set's name.

    Raises:
        CodeSwitchError: When the sets have one language, too few utterances, no word times, or
            other speakers than asked for: nothing is written then.
        DataDirError: When a source cannot be read or is not formatted.
    """
    options = options or CodeSwitchOptions()
    if num_jobs < 1:
        raise CodeSwitchError(f"num_jobs is {num_jobs}, but must be at least 1")
    data = _load(sources)
    check_pool(data.utterances, data.timings, options)
    plans = {
        kind: plan_codeswitch(kind, data.utterances, data.timings, options)
        for kind in KINDS
        if getattr(options.sizes, kind)
    }
    sizes: dict[str, int] = {}
    for kind, planned in plans.items():
        target = Path(out).absolute() / f"{options.name}_{kind}"
        parts = target.with_name(f"{target.name}_parts")
        folders = [
            Path(audio_dir).absolute() / name.name if audio_dir else name / "data"
            for name in (target, parts)
        ]
        made = _render_all(planned, folders, options.level, num_jobs, target.name)
        _write_whole(target, made, data)
        _write_parts(parts, made, data)
        for path in (target, parts):
            validate_datadir(path)
        sizes |= {target.name: len(made), parts.name: sum(len(each.parts) for each in made)}
    return sizes


def _load(sources: Sequence[str | Path]) -> DataDir:
    """Read the sources as one set."""
    sets = [load_datadir(source) for source in sources]
    plain = [str(p) for p, part in zip(sources, sets, strict=True) if not part.num_samples]
    if plain:
        raise DataDirError(f"{', '.join(plain)} are not formatted; run format_audio on them first")
    utterances = [utt for part in sets for utt in part.utterances]
    counts = Counter(utt.utt_id for utt in utterances)
    if repeated := sorted(key for key, count in counts.items() if count > 1):
        raise CodeSwitchError(
            f"{len(repeated)} utterances are in more than one of the sets; give each set once:\n  "
            f"{listed(repeated)}"
        )
    check_languages({utt.language for utt in utterances})
    samples = {key: n for part in sets for key, n in part.num_samples.items()}
    return DataDir(
        # As exact as the audio is.
        tuple(replace(utt, duration=samples[utt.utt_id] / SAMPLE_RATE) for utt in utterances),
        samples,
        {key: text for part in sets for key, text in part.raw_text.items()},
        corpora=corpora_of(sets),
        timings={key: words for part in sets for key, words in part.timings.items()},
    )


def render(plan: Plan, level: float) -> tuple[Samples, list[Samples], list[int]]:
    """Join the pieces of an utterance.

    Neighbours overlap by the cross-fade, with gains whose squares add up to 1; where there is a gap
    they fade out and in before and after it. A piece that is cut out of an utterance brings half a
    cross-fade more at either end, so that the language changes at the word boundary.

    Args:
        plan: What to join.
        level: Root mean square of each piece, dB below full scale.

    Returns:
        Samples of the whole, (samples,), float32 at 16 kHz; of the pieces before fading, at the
        same volume; and the place of each piece's first sample in the whole.
    """
    pieces = [_cut(plan, number, level) for number in range(len(plan.pieces))]
    fades = [round(seconds * SAMPLE_RATE) for seconds in plan.cross_fades]
    gaps = [round(seconds * SAMPLE_RATE) for seconds in plan.gaps]
    offsets = [0]
    for piece, fade, gap in zip(pieces, fades, gaps, strict=False):
        offsets.append(offsets[-1] + len(piece) + (gap or -fade))
    whole = np.zeros(offsets[-1] + len(pieces[-1]), np.float32)
    for number, (piece, offset) in enumerate(zip(pieces, offsets, strict=True)):
        faded = piece.copy()
        if number > 0 and (fade := fades[number - 1]):
            faded[:fade] *= _rise(fade)
        if number < len(fades) and (fade := fades[number]):
            faded[-fade:] *= _rise(fade)[::-1]
        whole[offset : offset + len(piece)] += faded
    peak = max(float(np.abs(each).max()) for each in (whole, *pieces))
    if peak > _PEAK:
        whole *= _PEAK / peak
        pieces = [piece * np.float32(_PEAK / peak) for piece in pieces]
    return whole, pieces, offsets


def _rise(count: int) -> Samples:
    return np.sin(0.5 * np.pi * (np.arange(count) + 0.5) / count).astype(np.float32)


def _cut(plan: Plan, number: int, level: float) -> Samples:
    """The samples of a piece, at the wanted level."""
    piece = plan.pieces[number]
    start, end = _bounds(plan, number)
    samples = load_audio(piece.source.audio)
    samples = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
    rms = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))
    if rms == 0:
        raise CodeSwitchError(f"{piece.source.utt_id} is silent; remove it from its set")
    return samples * np.float32(10 ** (level / 20) / rms)


def _bounds(plan: Plan, number: int) -> tuple[Seconds, Seconds]:
    """Where in its source a piece is cut, seconds."""
    piece = plan.pieces[number]
    before = plan.cross_fades[number - 1] / 2 if number else 0.0
    after = plan.cross_fades[number] / 2 if number < len(plan.cross_fades) else 0.0
    return (
        max(0.0, piece.start - before),
        min(piece.source.duration or piece.end, piece.end + after),
    )


def _render_all(
    plans: Sequence[Plan], folders: Sequence[Path], level: float, num_jobs: int, title: str
) -> list[Made]:
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    jobs = [(plan, str(folders[0]), str(folders[1]), level) for plan in plans]
    progress = {"desc": title, "total": len(jobs), "unit": "utt", "disable": None}
    if num_jobs == 1:
        made = list(tqdm(map(_render_one, jobs), **progress))  # type: ignore[call-overload]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(num_jobs, len(jobs)), context) as pool:
            results = pool.map(_render_one, jobs, chunksize=_CHUNK)
            made = list(tqdm(results, **progress))  # type: ignore[call-overload]
    written = {path for each in made for path in (each.audio, *each.parts)}
    for folder in folders:  # of an earlier run with other options
        for path in folder.glob("cs_*-*.flac"):
            if str(path) not in written:
                path.unlink()
    return made


def _render_one(job: tuple[Plan, str, str, float]) -> Made:
    plan, folder, parts_folder, level = job
    whole, pieces, offsets = render(plan, level)
    audio = f"{folder}/{plan.utt_id}.flac"
    parts = [f"{parts_folder}/{plan.utt_id}-p{n}.flac" for n in range(1, len(pieces) + 1)]
    for path, samples in zip([audio, *parts], [whole, *pieces], strict=True):
        content = io.BytesIO()
        soundfile.write(content, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        write_bytes(Path(path), content.getvalue())
    lengths = tuple(len(piece) for piece in pieces)
    return Made(plan, audio, tuple(parts), len(whole), lengths, tuple(offsets))


def _write_whole(target: Path, made: Sequence[Made], data: DataDir) -> None:
    utterances, raw, timings, rows = [], {}, {}, []
    for each in made:
        plan = each.plan
        utterances.append(
            _utterance(plan, plan.utt_id, plan.pieces, each.audio, each.samples, target)
        )
        raw[plan.utt_id] = " ".join(_raw(piece, data) for piece in plan.pieces)
        words = [_placed(each, number) for number in range(len(plan.pieces))]
        if all(words):
            timings[plan.utt_id] = _in_order([word for part in words for word in part])
        rows += [
            f"{plan.utt_id}-p{number}\t{piece.source.utt_id}\t{piece.start:.3f}\t{piece.end:.3f}"
            f"\t{piece.source.language}\n"
            for number, piece in enumerate(plan.pieces, start=1)
        ]
    write_datadir(
        target,
        utterances,
        num_samples={each.plan.utt_id: each.samples for each in made},
        raw_text=raw,
        extras=Extras(timings=timings, segments={each.plan.utt_id: each.segments for each in made}),
        corpora=data.corpora,
    )
    write_text(target / "pieces.tsv", "".join(rows))


def _write_parts(target: Path, made: Sequence[Made], data: DataDir) -> None:
    utterances, raw, timings, samples = [], {}, {}, {}
    for each in made:
        for number, piece in enumerate(each.plan.pieces):
            key = f"{each.plan.utt_id}-p{number + 1}"
            samples[key] = each.part_samples[number]
            utterances.append(
                _utterance(each.plan, key, [piece], each.parts[number], samples[key], target)
            )
            raw[key] = _raw(piece, data)
            offset = each.offsets[number] / SAMPLE_RATE
            if words := _placed(each, number):
                timings[key] = tuple(replace(word, start=word.start - offset) for word in words)
    write_datadir(
        target,
        utterances,
        num_samples=samples,
        raw_text=raw,
        extras=Extras(timings=timings),
        corpora=data.corpora,
    )


def _utterance(
    plan: Plan, key: str, pieces: Sequence[Piece], audio: str, samples: int, target: Path
) -> Utterance:
    genders = {piece.source.gender for piece in pieces}
    return Utterance(
        utt_id=key,
        audio=audio,
        text=" ".join(piece.text for piece in pieces),
        speaker=plan.speaker,
        language=pieces[0].source.language,
        split=split_of(target.name),
        gender=genders.pop() if len(genders) == 1 else None,
        duration=samples / SAMPLE_RATE,
    )


def _raw(piece: Piece, data: DataDir) -> str:
    """The transcript before normalisation, where it is known of just this piece."""
    if piece.text == piece.source.text:
        return data.raw_text.get(piece.source.utt_id, piece.text)
    return piece.text


def _in_order(words: Sequence[Word]) -> tuple[Word, ...]:
    """No word begins before the one before it, which another piece's may, inside their fade."""
    ordered, earliest = [], 0.0
    for word in words:
        earliest = max(earliest, word.start)
        ordered.append(Word(earliest, max(0.0, word.end - earliest), word.word))
    return tuple(ordered)


def _placed(made: Made, number: int) -> tuple[Word, ...]:
    """The words of a piece at their times in the whole."""
    shift = made.offsets[number] / SAMPLE_RATE - _bounds(made.plan, number)[0]
    limit = (made.offsets[number] + made.part_samples[number]) / SAMPLE_RATE
    placed = []
    for word in made.plan.pieces[number].words:
        start = min(max(0.0, word.start + shift), limit)
        placed.append(Word(start, min(word.end + shift, limit) - start, word.word))
    return tuple(placed)
