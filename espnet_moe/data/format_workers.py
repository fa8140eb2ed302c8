"""The processes that format audio, and the journal by which a killed run goes on.

Each process appends a line to a file of its own before and after each utterance. A file is written
under another name and renamed, so that what bears its name is whole. When a decoder crashes its
process, the journal tells on which file: that one is bad, and the others go on.
"""

import io
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import soundfile
from tqdm import tqdm

from espnet_moe.data.audio import AudioError, Samples, is_stored_as, load_audio, speech_bounds
from espnet_moe.data.files import write_bytes, write_text
from espnet_moe.data.sources import file_of
from espnet_moe.data.utterance import SAMPLE_RATE, Seconds

_CHUNK = 64  # utterances handed to a process at a time, less where there are few
_PARTS = 16  # of a recording, at least: every process that gets some decodes all of it
_JOURNAL = ".journal"
_CRASHED = "the decoder crashed on it"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One file to format.

    Attributes:
        utt_id: Whose file it is.
        source: What to read (``espnet_moe.data.sources``).
        output: File to write, absolute.
        key: Digest of the source's state and the options.
        min_samples: Fewer samples are bad.
        max_samples: More samples are bad.
        trim: Threshold in dB and margin in seconds; ``None`` to keep the silence.
    """

    utt_id: str
    source: str
    output: str
    key: str
    min_samples: int
    max_samples: int
    trim: tuple[float, Seconds] | None


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        samples: Length of the formatted audio; 0 where it is bad.
        size: Bytes of the formatted file; of the source where that is used as it is.
        problem: Why it is bad; empty where it is good.
        cut: Samples cut at the beginning; ``None`` where an earlier version did not note it.
        as_is: Whether the source is as it should be already, so that no file was written.
    """

    samples: int = 0
    size: int = 0
    problem: str = ""
    cut: int | None = 0
    as_is: bool = False


def run_jobs(jobs: Sequence[Job], folder: Path, num_jobs: int, title: str) -> dict[str, Outcome]:
    """Format files, in processes of their own where ``num_jobs`` is above 1.

    Args:
        jobs: The files.
        folder: Where the journal is kept and the outputs lie.
        num_jobs: Number of processes.
        title: Shown with the progress bar.

    Returns:
        Outcome by utterance id, of every job.

    Raises:
        AudioError: When a formatted file cannot be written (a full disk).
    """
    outcomes: dict[str, Outcome] = {}
    if not jobs:
        return outcomes
    earlier = read_journal(folder)
    _replace_journal(folder, (_entry(utt_id, *state) for utt_id, state in earlier.items()))
    for shard in map(Path, {os.path.dirname(job.output) for job in jobs}):
        shard.mkdir(parents=True, exist_ok=True)
        for leftover in shard.glob(".*.tmp"):  # of a killed run
            leftover.unlink(missing_ok=True)
    with tqdm(total=len(jobs), desc=title, unit="utt", disable=None) as progress:
        if num_jobs == 1:
            for job in jobs:
                outcomes |= format_chunk([job], folder / _JOURNAL)
                progress.update()
            return outcomes
        waiting = list(jobs)
        while waiting:
            done, suspects = _run_pool(waiting, folder / _JOURNAL, num_jobs, progress)
            outcomes |= done
            for job in suspects:  # alone, so that a crash is its own
                done, crashed = _run_pool([job], folder / _JOURNAL, 1, progress)
                outcomes |= done or {job.utt_id: Outcome(problem=f"{job.source}: {_CRASHED}")}
                logger.warning("%s: %s", job.source, _CRASHED if crashed else "fine when alone")
            waiting = [job for job in waiting if job.utt_id not in outcomes]
    return outcomes


def format_chunk(jobs: Sequence[Job], journal: Path) -> dict[str, Outcome]:
    """Format files one by one, noting each in this process's journal."""
    outcomes = {}
    with (journal / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as stream:
        for job in jobs:
            _note(stream, {"utt_id": job.utt_id, "started": True})
            outcome = outcomes[job.utt_id] = format_file(job)
            _note(stream, _entry(job.utt_id, job.key, outcome))
    return outcomes


def format_file(job: Job) -> Outcome:
    """Decode, trim, check and write one file, unless the source is what would be written.

    Raises:
        AudioError: When the file cannot be written; a bad source is an outcome.
    """
    try:
        samples = load_audio(job.source)
    except AudioError as error:
        return Outcome(problem=str(error))
    except Exception as error:
        # A library's own surprise at one file must not end a stage of a hundred thousand.
        return Outcome(problem=f"{job.source}: {type(error).__name__}: {error}")
    cut, end = 0, len(samples)
    if job.trim is not None:
        cut, end = speech_bounds(samples, *job.trim)
    whole = end - cut == len(samples)
    samples = samples[cut:end]
    seconds = len(samples) / SAMPLE_RATE
    if len(samples) < max(1, job.min_samples):
        limit = job.min_samples / SAMPLE_RATE
        return Outcome(problem=f"{job.source} is shorter than {limit:g} s ({seconds:.3f} s)")
    if len(samples) > job.max_samples:
        limit = job.max_samples / SAMPLE_RATE
        return Outcome(problem=f"{job.source} is longer than {limit:g} s ({seconds:.2f} s)")
    audio_format = job.output.rpartition(".")[2]
    if whole and is_stored_as(job.source, audio_format):
        return Outcome(samples=len(samples), size=os.path.getsize(job.source), as_is=True)
    content = _encode(samples, audio_format)
    try:
        write_bytes(Path(job.output), content)
    except OSError as error:
        raise AudioError(
            f"cannot write {job.output}: {error.strerror}; make room or choose another folder, "
            "then start again: finished files are kept"
        ) from None
    return Outcome(samples=len(samples), size=len(content), cut=cut)


def read_journal(folder: Path) -> dict[str, tuple[str, Outcome]]:
    """Return key and outcome of the good files an earlier run finished, by utterance id."""
    finished = {}
    for entry in _entries(folder / _JOURNAL):
        if "key" in entry:
            outcome = Outcome(
                entry["samples"],
                entry["size"],
                entry["problem"],
                entry.get("cut"),
                entry.get("as_is", False),
            )
            finished[entry["utt_id"]] = (entry["key"], outcome)
    return {key: value for key, value in finished.items() if not value[1].problem}


def write_journal(folder: Path, keys: Mapping[str, str], outcomes: Mapping[str, Outcome]) -> None:
    """Replace the processes' journals by one of what is finished."""
    _replace_journal(folder, (_entry(key, keys[key], item) for key, item in outcomes.items()))


def _replace_journal(folder: Path, entries: Iterable[Mapping[str, object]]) -> None:
    journal = folder / _JOURNAL
    journal.mkdir(parents=True, exist_ok=True)
    write_text(journal / "finished.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    for path in journal.glob("*.jsonl"):
        if path.name != "finished.jsonl":
            path.unlink()


def _run_pool(
    jobs: Sequence[Job], journal: Path, num_jobs: int, progress: "tqdm[None]"
) -> tuple[dict[str, Outcome], list[Job]]:
    """Run jobs until all are done or a process dies; return outcomes, and whom it may be due to."""
    outcomes: dict[str, Outcome] = {}
    # Not forked: libraries' threads and locks do not survive that.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(num_jobs, len(jobs)), context, _start_process)
    try:
        chunks = make_chunks(jobs, num_jobs)
        for future in as_completed([pool.submit(format_chunk, chunk, journal) for chunk in chunks]):
            done = future.result()
            outcomes |= done
            progress.update(len(done))
    except BrokenProcessPool:
        finished = read_journal(journal.parent)
        by_id = {job.utt_id: job for job in jobs if job.utt_id not in outcomes}
        # What a lost chunk had finished before its process died is as good as reported.
        for key, job in by_id.items():
            if finished.get(key, ("",))[0] == job.key:
                outcomes[key] = finished[key][1]
        suspects = [by_id[key] for key in _started(journal) if key in by_id]
        if not suspects and not outcomes:
            raise AudioError(
                "the processes that format audio die at their start; is there enough memory? "
                "Try fewer with --nj"
            ) from None
        return outcomes, suspects
    finally:
        pool.shutdown(cancel_futures=True)
    return outcomes, []


def make_chunks(jobs: Sequence[Job], num_jobs: int) -> list[list[Job]]:
    """Cut jobs into what is handed to a process at a time.

    Args:
        jobs: In the order of their sources.
        num_jobs: Number of processes; there are several chunks for each, so that they end together.

    Returns:
        Chunks of the jobs in their order. Parts of one recording, and rows of one parquet file, are
        cut into no smaller pieces than those that make a recording worth decoding.
    """
    size = max(1, min(_CHUNK, len(jobs) // (8 * num_jobs)))
    chunks: list[list[Job]] = []
    file, together = "", 0  # of the last job; how many of it are in the last chunk
    for job in jobs:
        path = file_of(job.source)
        together = together + 1 if path == file else 0
        if not chunks or (len(chunks[-1]) >= size and (not together or together >= _PARTS)):
            chunks.append([])
            together = 0
        chunks[-1].append(job)
        file = path
    return chunks


def _start_process() -> None:
    # Ctrl-C reaches all processes: the parent's part is to stop handing out work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _started(journal: Path) -> set[str]:
    """Utterances that were begun and not ended."""
    started = set()
    for entry in _entries(journal):
        if "started" in entry:
            started.add(entry["utt_id"])
        else:
            started.discard(entry["utt_id"])
    return started


def _entries(journal: Path) -> Iterator[dict]:  # type: ignore[type-arg]
    for path in sorted(journal.glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # the last line of a process killed while writing it
                continue


def _entry(utt_id: str, key: str, outcome: Outcome) -> dict[str, object]:
    return {
        "utt_id": utt_id,
        "key": key,
        "samples": outcome.samples,
        "size": outcome.size,
        "problem": outcome.problem,
        "cut": outcome.cut,
        "as_is": outcome.as_is,
    }


def _note(stream: io.TextIOBase, entry: Mapping[str, object]) -> None:
    stream.write(json.dumps(entry) + "\n")
    stream.flush()


def _encode(samples: Samples, audio_format: str) -> bytes:
    """Return a 16 bit file; audio louder than full scale is turned down, not clipped."""
    peak = float(max(samples.max(), -samples.min()))
    if peak > 1.0:
        samples = samples / peak
    content = io.BytesIO()
    soundfile.write(content, samples, SAMPLE_RATE, format=audio_format.upper(), subtype="PCM_16")
    return content.getvalue()
