"""Whether a stage of a recipe is done: a stamp holds what it was made from.

A stamp is a JSON file that says of which options, inputs and outputs a stage was made. Before a
stage runs, :func:`check` compares; if there is work to do it leaves ``<stamp>.pending``, which
:func:`commit` turns into the stamp once the work is done. What an input was is therefore known from
before the work.

Imports nothing heavy: a recipe asks some thirty times.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from espnet_moe import __version__
from espnet_moe.data.sources import file_of
from espnet_moe.errors import UserError

MAX_HASHED_BYTES = 1 << 26  # larger files are told apart by size and time
AUDIO = {".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"}


class StampError(UserError):
    """A stage that cannot start or cannot be called done."""


class State(IntEnum):
    """What is to be done; the numbers are the command line's exit codes.

    None is 1 or 2, which are Python's and a shell's when they fail: a check that breaks is no work.
    """

    DONE = 0
    TO_DO = 4
    INTERRUPTED = 3  # begun earlier from the same inputs


@dataclass(frozen=True)
class Stage:
    """What a stage is made from.

    Attributes:
        options: Whatever influences the outputs, as text.
        inputs: Files, and folders: these stand for the files directly in them.
        listed: Kaldi ``wav.scp`` files, whose audio files are inputs too.
        outputs: Files or folders that are there when the stage is done.
    """

    options: Sequence[str] = ()
    inputs: Sequence[str] = ()
    listed: Sequence[str] = ()
    outputs: Sequence[str] = ()


def check(stamp: str | Path, stage: Stage) -> tuple[State, str]:
    """Compare a stage with its stamp, and leave a pending stamp where there is work to do.

    Returns:
        The state, and why it is so.

    Raises:
        StampError: When inputs are missing; names all of them.
    """
    stamp = Path(stamp)
    missing = [path for path in (*stage.inputs, *stage.listed) if not os.path.exists(path)]
    if missing:
        raise StampError(
            f"input missing: {', '.join(missing)}; run the stages before this one, or correct the "
            "options"
        )
    wanted = fingerprint(stage)
    pending = _pending(stamp)
    reason = _difference(_read(stamp), wanted)
    if not reason:
        absent = [path for path in stage.outputs if not os.path.exists(path)]
        if not absent:
            return State.DONE, "done, nothing has changed"
        reason = f"output missing: {', '.join(absent)}"
    # The outputs are about to change: the old stamp no longer speaks for them.
    stamp.unlink(missing_ok=True)
    if _read(pending) == wanted:
        return State.INTERRUPTED, "begun earlier"
    pending.parent.mkdir(parents=True, exist_ok=True)
    _write(pending, wanted)
    return State.TO_DO, reason


def commit(stamp: str | Path) -> None:
    """Call a stage done, of which :func:`check` said that there was work to do.

    Raises:
        StampError: When the stage was never checked, or an output is missing.
    """
    stamp = Path(stamp)
    pending = _pending(stamp)
    wanted = _read(pending)
    if wanted is None:
        raise StampError(f"{pending} does not exist: check the stage before it runs")
    absent = [path for path in wanted["outputs"] if not os.path.exists(path)]
    if absent:
        raise StampError(f"the stage has ended, but has not made {', '.join(absent)}")
    os.replace(pending, stamp)


def fingerprint(stage: Stage) -> dict[str, Any]:
    """Describe a stage so that equal means nothing has changed."""
    files = {str(path): _of_path(Path(path)) for path in stage.inputs}
    files |= {f"audio of {path}": _of_audio(Path(path)) for path in stage.listed}
    return {
        "version": __version__,
        **{key: list(value) for key, value in asdict(stage).items()},
        "files": files,
    }


def _of_path(path: Path) -> dict[str, str]:
    if path.is_dir():
        with os.scandir(path) as entries:
            inside = sorted((e for e in entries if e.is_file()), key=lambda e: e.name)
        return {entry.name: _of_file(entry.path, entry.stat()) for entry in inside}
    return {"": _of_file(path, path.stat())}


def _of_file(path: str | Path, stat: os.stat_result) -> str:
    if stat.st_size > MAX_HASHED_BYTES or Path(path).suffix.lower() in AUDIO:
        return f"{stat.st_size} bytes of {stat.st_mtime_ns}"
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _of_audio(wav_scp: Path) -> dict[str, str]:
    """One digest for all: a corpus has too many files to list."""
    digest = hashlib.sha256()
    states: dict[str, str] = {}  # thousands of utterances may be parts of one file
    for line in wav_scp.read_text("utf-8").splitlines():
        audio = line.partition(" ")[2].strip()
        path = file_of(audio)
        if path not in states:
            try:
                stat = os.stat(path)
                states[path] = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:
                states[path] = "missing"
        digest.update(f"{audio} {states[path]}\n".encode())
    return {"": digest.hexdigest()}


def _difference(old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    """Why a stage is not up to date, in a few words; empty when it is."""
    if old is None:
        return "not done yet"
    if old == new:
        return ""
    if old.get("version") != new["version"]:
        return f"made by version {old.get('version')}"
    if old.get("options") != new["options"]:
        return "options have changed"
    before, now = old.get("files", {}), new["files"]
    for path in now:
        if path not in before:
            return f"{path} is new"
        for name in sorted(before[path].keys() | now[path].keys()):
            if before[path].get(name) != now[path].get(name):
                return f"{Path(path) / name} has changed"
    return "inputs or outputs have other names"


def _pending(stamp: Path) -> Path:
    return stamp.with_name(f"{stamp.name}.pending")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    os.replace(temporary, path)
