"""Text files written whole or not at all, and many files looked up with few system calls."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from espnet_moe.data.sources import file_of
from espnet_moe.errors import UserError
from espnet_moe.files import atomic

MAX_LISTED = 20  # a message names this many offenders, then counts the rest


class DataDirError(UserError):
    """A data directory that is missing, damaged, or against Kaldi's rules."""


def listed(items: Iterable[str], separator: str = "\n  ") -> str:
    """Join the first ``MAX_LISTED`` items, then say how many more there are."""
    items = list(items)
    shown = items[:MAX_LISTED]
    if len(items) > MAX_LISTED:
        shown.append(f"… and {len(items) - MAX_LISTED} more")
    return separator.join(shown)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, without waiting for the disk: for audio by the 10,000.

    Raises:
        OSError: When it cannot be written; an older file of that name is untouched.
    """
    # Plain system calls: a path object and a buffered file cost as much again as the writing.
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name[:200]}.{os.getpid()}.tmp")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file whole or not at all.

    Raises:
        UserError: Where the disk is full; an older file of that name is untouched.
    """
    with atomic(path) as temporary:
        temporary.write_bytes(content.encode("utf-8"))


def write_table(path: Path, rows: Mapping[str, object]) -> None:
    """Write ``key<space>value`` lines in the byte order Kaldi asks for (``LC_ALL=C``)."""
    lines = (f"{key} {rows[key]}".rstrip(" ") + "\n" for key in sorted(rows, key=str.encode))
    write_text(path, "".join(lines))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the text of each line that is not blank.

    Only a line feed ends a line: a transcript may hold any other Unicode separator.

    Raises:
        DataDirError: When the file is missing or is not UTF-8.
    """
    try:
        content = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise DataDirError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DataDirError(f"{path} is not UTF-8: {error}; write it again as UTF-8") from None
    for number, line in enumerate(content.split("\n"), start=1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def file_sizes(audio: Iterable[str]) -> dict[str, int | None]:
    """Look up many files' sizes, reading each folder once.

    Args:
        audio: Paths of files or of parts of them (``espnet_moe.data.sources``), in any number of
            folders.

    Returns:
        Bytes of the file by what was asked for; ``None`` where it is missing or no regular file.
    """
    files = {source: file_of(source) for source in audio}
    sizes: dict[str, int | None] = dict.fromkeys(files.values())
    folders: dict[str, dict[str, str]] = defaultdict(dict)
    for path in sizes:
        folder, name = os.path.split(path)
        folders[folder or "."][name] = path
    for folder, wanted in folders.items():
        try:
            entries = os.scandir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                if entry.name in wanted and entry.is_file():
                    sizes[wanted[entry.name]] = entry.stat().st_size
    return {source: sizes[path] for source, path in files.items()}
