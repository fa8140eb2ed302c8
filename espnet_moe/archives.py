"""Zip archives: written the same from the same files, unpacked without trusting them.

An archive that comes from somewhere is data of a stranger: nothing in it may land outside of its
folder, fill the disk, or take the place of something else.
"""

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from espnet_moe.errors import UserError
from espnet_moe.files import atomic

# The compressed formats hardly gain on weights, and text gains 10 at most.
MAX_RATIO = 100
MAX_ENTRIES = 10_000
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can tell
_BLOCK = 1 << 20
# What zipfile raises for broken files, and (the last two) for methods and passwords it cannot read.
_UNREADABLE = (
    *(OSError, zipfile.BadZipFile, zlib.error, EOFError),
    *(NotImplementedError, RuntimeError),
)


def write_archive(folder: Path, archive: Path, first: Sequence[str] = ()) -> None:
    """Pack a folder's files; the same files give the same bytes.

    Nothing of the machine goes in: no times, owners or permissions; files stand in the order of
    their names, uncompressed (weights gain nothing, and zlib's versions differ).

    Args:
        folder: What to pack; paths in the archive begin below it.
        archive: The ``.zip`` to write, whole or not at all.
        first: Files that stand before all others.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    names = [*first, *(n for n in names if n not in first)]
    with atomic(archive) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for name in names:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # Unix, wherever it is written
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.file_size = (folder / name).stat().st_size
            with open(folder / name, "rb") as source, packed.open(info, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK)


def unpack(archive: str | Path, folder: Path) -> None:
    """Unpack an archive into a new folder, whole or not at all.

    Args:
        archive: A ``.zip``.
        folder: Where to; must not be there.

    Raises:
        UserError: For what is no archive, is damaged, or reaches for more than its place: paths
            outside of the folder, links, one name twice, more than :data:`MAX_RATIO` times its own
            size, or more than the disk has.
    """
    archive = Path(archive)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        content = Path(place) / "content"
        content.mkdir()
        try:
            with zipfile.ZipFile(archive) as packed:
                members = packed.infolist()
                _require_harmless(archive, members, shutil.disk_usage(place).free)
                for info in members:
                    if not info.is_dir():
                        _extract(packed, info, content)
        except _UNREADABLE as error:
            raise UserError(
                f"{archive} could not be unpacked in {folder.parent}: {error}"
            ) from error
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise


def _require_harmless(archive: Path, members: Sequence[zipfile.ZipInfo], free: int) -> None:
    problems = []
    if len(members) > MAX_ENTRIES:
        problems.append(f"it holds {len(members)} files, more than {MAX_ENTRIES}")
    names = [info.filename for info in members]
    if outside := [n for n in names if not _is_inside(n)]:
        problems.append(f"{outside[0]!r} would land outside of its folder")
    if links := [i.filename for i in members if stat.S_ISLNK(i.external_attr >> 16)]:
        problems.append(f"{links[0]!r} is a link")
    if len({n.lower() for n in names}) < len(names):
        problems.append("it holds two files of one name")
    size = sum(info.file_size for info in members)
    if size > MAX_RATIO * archive.stat().st_size:
        problems.append(
            f"its {archive.stat().st_size} bytes would become {size}, more than {MAX_RATIO} times "
            "as many"
        )
    elif size > free:
        problems.append(f"it needs {size} bytes, the disk has {free}")
    if problems:
        raise UserError(f"{archive} is refused: {'; '.join(problems)}")


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name)


def _extract(packed: zipfile.ZipFile, info: zipfile.ZipInfo, content: Path) -> None:
    """Write one file; no byte more than its header has declared, which has been checked."""
    target = content / info.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    with packed.open(info) as source, open(target, "xb") as file:
        while block := source.read(_BLOCK):
            if (left := left - len(block)) < 0:
                raise zipfile.BadZipFile(f"{info.filename} is larger than it declares")
            file.write(block)


def unpacked(archive: str | Path) -> Path:
    """The folder of an archive's content, under the user's cache; unpacked once.

    Raises:
        UserError: See :func:`unpack`.
    """
    archive = Path(archive)
    stat_of = archive.stat()
    # espnet_model_zoo knows an archive by its path alone: another in its place would go unseen.
    name = f"{archive.resolve()} {stat_of.st_size} {stat_of.st_mtime_ns}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espnet_moe"
    folder = cache / f"{archive.stem}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        unpack(archive, folder)
    return folder
