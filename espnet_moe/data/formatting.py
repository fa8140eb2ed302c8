"""Stage 2: audio of any kind becomes 16 kHz mono files, and transcripts their normal form.

dump/raw/<set>/
  wav.scp text utt2spk …      as in ``espnet_moe.data.datadir``; text is normalised
  text.raw                    the transcripts as the corpus has them
  text.alt words.ctm …        normalised too; times are those of the formatted audio
  skipped.tsv                 utt_id<TAB>reason for each utterance left out
  data/<two hex digits>/<utt_id>.flac       (none where the corpus's own file is as it should be)
  data/.journal/*.jsonl       what is finished, for a run that is killed and started again
"""

import hashlib
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from espnet_moe.data.audio import AudioError
from espnet_moe.data.datadir import load_datadir, write_datadir
from espnet_moe.data.files import file_sizes, listed
from espnet_moe.data.format_extras import format_extras
from espnet_moe.data.format_workers import Job, Outcome, read_journal, run_jobs, write_journal
from espnet_moe.data.normalize import check_languages, normalize
from espnet_moe.data.sources import parse_source
from espnet_moe.data.utterance import SAMPLE_RATE, Seconds, Utterance, is_test, safe_id
from espnet_moe.errors import UserError

AUDIO_FORMATS = ("flac", "wav")

_MAX_NAME = 150  # characters, of a file name made from an utterance id

logger = logging.getLogger(__name__)


class FormatOptionError(UserError):
    """Options of audio formatting that do not go together."""


@dataclass(frozen=True)
class FormatOptions:
    """How audio is formatted.

    Attributes:
        audio_format: ``flac`` or ``wav``, both 16 bit.
        min_wav_duration: Shorter utterances are bad, seconds.
        max_wav_duration: Longer utterances are bad, seconds, after trimming.
        trim: Cut leading and trailing silence.
        trim_threshold_db: Silence is this far below the loudest part, dB.
        trim_margin: Silence left at either end, seconds.
        allow_bad_audio: Leave bad utterances out of test sets too, instead of an error.
        num_jobs: Processes; 1 works in this process.
    """

    audio_format: str = "flac"
    min_wav_duration: Seconds = 0.1
    max_wav_duration: Seconds = 30.0
    trim: bool = True
    trim_threshold_db: float = 40.0
    trim_margin: Seconds = 0.1
    allow_bad_audio: bool = False
    num_jobs: int = 1

    def __post_init__(self) -> None:
        problems = []
        if self.audio_format not in AUDIO_FORMATS:
            legal = ", ".join(AUDIO_FORMATS)
            problems.append(f"audio_format is '{self.audio_format}', but legal are {legal}")
        if not 0 <= self.min_wav_duration < self.max_wav_duration:
            problems.append(
                f"min_wav_duration ({self.min_wav_duration}) must not be negative and must be "
                f"below max_wav_duration ({self.max_wav_duration})"
            )
        if self.trim_threshold_db <= 0 or self.trim_margin < 0:
            problems.append("trim_threshold_db must be positive and trim_margin not negative")
        if self.num_jobs < 1:
            problems.append(f"num_jobs is {self.num_jobs}, but must be at least 1")
        if problems:
            raise FormatOptionError("; ".join(problems))


@dataclass(frozen=True)
class FormatSummary:
    """What became of a set.

    Attributes:
        kept: Number of utterances in the formatted set.
        formatted: Number of files done by this run; the others were finished before.
        skipped: Reason by id of each utterance lost, here or before.
        hours: Of the formatted set.
    """

    kept: int
    formatted: int
    skipped: Mapping[str, str]
    hours: float


def format_datadir(
    source: str | Path, target: str | Path, options: FormatOptions | None = None
) -> FormatSummary:
    """Format the audio and normalise the text of a data directory.

    A set is a test set when the name of ``target`` or ``source`` says so (``is_test``). Files that
    an earlier run finished are not done again, unless the source file (path, size, time) or the
    options changed.

    Args:
        source: The data directory to read.
        target: The data directory to write.
        options: Defaults where ``None``.

    Raises:
        AudioError: When a test set has bad utterances and they are not allowed (all are named), or
            no utterance is left.
        LanguageError: When a language has no normaliser.
        DataDirError: When ``source`` cannot be read.
    """
    options = options or FormatOptions()
    source, target = Path(source), Path(target)
    if source.resolve() == target.resolve():
        raise FormatOptionError(f"{source} is both what to format and where to write it")
    data = load_datadir(source)
    check_languages({utt.language for utt in data.utterances})
    texts = {utt.utt_id: normalize(utt.text, utt.language) for utt in data.utterances}
    bad = {key: "text is empty after normalisation" for key, text in texts.items() if not text}

    jobs = _jobs([utt for utt in data.utterances if utt.utt_id not in bad], target, options)
    timed = {*data.timings, *data.phones, *data.segments}
    finished = _finished(jobs, target / "data", timed)
    todo = [job for job in jobs if job.utt_id not in finished]
    if finished and todo:
        logger.info("%s: %d of %d files are finished already", target, len(finished), len(jobs))
    outcomes = finished | run_jobs(todo, target / "data", options.num_jobs, target.name)

    bad |= {key: outcome.problem for key, outcome in outcomes.items() if outcome.problem}
    _check_bad(source, target, bad, len(data.utterances), options)
    samples = {key: outcome.samples for key, outcome in outcomes.items() if key not in bad}
    audio = {
        job.utt_id: os.path.abspath(job.source) if outcomes[job.utt_id].as_is else job.output
        for job in jobs
    }
    skipped = {**data.skipped, **bad}
    write_datadir(
        target,
        (
            replace(
                utt,
                audio=audio[utt.utt_id],
                text=texts[utt.utt_id],
                duration=samples[utt.utt_id] / SAMPLE_RATE,
            )
            for utt in data.utterances
            if utt.utt_id in samples
        ),
        num_samples=samples,
        raw_text={utt.utt_id: utt.text for utt in data.utterances if utt.utt_id in samples},
        skipped=skipped,
        extras=format_extras(data, texts, {key: outcomes[key] for key in samples}),
        corpora=data.corpora,
    )
    write_journal(target / "data", {job.utt_id: job.key for job in jobs}, outcomes)
    hours = sum(samples.values()) / SAMPLE_RATE / 3600
    return FormatSummary(
        len(samples), len(todo) - len(bad.keys() & outcomes.keys()), skipped, hours
    )


def _jobs(utterances: list[Utterance], target: Path, options: FormatOptions) -> list[Job]:
    """What to do, in the order of the sources: a recording of many parts is read through once."""
    jobs = []
    trim = (options.trim_threshold_db, options.trim_margin) if options.trim else None
    folder = target.absolute() / "data"
    here = os.getcwd()
    states: dict[str, tuple[int, int]] = {}
    sources = {utt.utt_id: parse_source(utt.audio) for utt in utterances}
    for utt in sorted(utterances, key=lambda utt: sources[utt.utt_id].order):
        path = sources[utt.utt_id].path
        if path not in states:
            states[path] = _state(path)
        state = (os.path.join(here, utt.audio), *states[path])
        name = _file_name(utt.utt_id)
        shard = hashlib.sha256(utt.utt_id.encode()).hexdigest()[:2]
        jobs.append(
            Job(
                utt_id=utt.utt_id,
                source=utt.audio,
                output=f"{folder}/{shard}/{name}.{options.audio_format}",
                key=hashlib.sha256(repr((state, options.audio_format, trim)).encode()).hexdigest()[
                    :16
                ],
                min_samples=round(options.min_wav_duration * SAMPLE_RATE),
                max_samples=round(options.max_wav_duration * SAMPLE_RATE),
                trim=trim,
            )
        )
    return jobs


def _state(path: str) -> tuple[int, int]:
    """Size and time of a file, by which a change is seen."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _file_name(utt_id: str) -> str:
    """Return the id where it is a safe file name, else a safe one with a digest of the id."""
    name = "-".join(safe_id(part) for part in utt_id.split("-"))
    if name == utt_id and len(name) <= _MAX_NAME:
        return name
    return f"{name[:_MAX_NAME]}.{hashlib.sha256(utt_id.encode()).hexdigest()[:16]}"


def _finished(jobs: list[Job], folder: Path, timed: Collection[str]) -> dict[str, Outcome]:
    """What an earlier run finished, with the same input and options, and whose file is there.

    Of utterances with times (``timed``) it must have noted what was cut, too.
    """
    journal = read_journal(folder)
    sizes = file_sizes(job.output for job in jobs)
    finished = {}
    for job in jobs:
        key, outcome = journal.get(job.utt_id, ("", None))
        if outcome is None or key != job.key:
            continue
        if not outcome.as_is and sizes[job.output] != outcome.size:
            continue
        if outcome.cut is None and job.utt_id in timed:
            continue
        if job.min_samples <= outcome.samples <= job.max_samples:
            finished[job.utt_id] = outcome
    return finished


def _check_bad(
    source: Path, target: Path, bad: Mapping[str, str], count: int, options: FormatOptions
) -> None:
    for key, reason in sorted(bad.items())[:20]:
        logger.warning("%s: %s left out: %s", target, key, reason)
    if bad:
        logger.warning("%s: %d of %d utterances left out", target, len(bad), count)
    reasons = listed(f"{key}: {reason}" for key, reason in sorted(bad.items()))
    if bad and (is_test(target.name) or is_test(source.name)) and not options.allow_bad_audio:
        raise AudioError(
            f"{len(bad)} of {count} utterances of test set {source} are bad; mend them, or leave "
            f"them out, named in the results, with --allow_bad_audio true:\n  {reasons}"
        )
    if len(bad) == count:
        raise AudioError(f"no utterance of {source} is left:\n  {reasons}")
