"""Files that are whole or absent: written beside the target, synced to disk, renamed."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from espnet_moe.errors import UserError


@contextmanager
def atomic(
    path: str | Path, before_replacing: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; rename it to ``path`` if all went well.

    Whatever was at ``path`` before stays until the new file is complete and on disk. A write that
    fails leaves no rest behind; one that is killed leaves one that :func:`remove_leftovers` finds.

    Args:
        path: The file to write.
        before_replacing: Called when the new file is on disk, such as to keep the one before.

    Raises:
        UserError: Where the disk is full or cannot be written; names the file that was kept.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise UserError(f"could not write {path}: {error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        before_replacing()
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:
        if not is_disk_error(error):
            raise
        kept = "the earlier one is kept whole" if path.exists() else "nothing is left of it"
        raise UserError(
            f"could not write {path} ({error}): {kept}; free space on the disk and start again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """Give a path beside ``folder`` to fill; it takes the folder's place if all went well.

    The earlier folder stays until then. Killed between the two renamings, it lies beside its place
    as ``.<name>.old``, and the next call puts it back before anything else.
    """
    folder = Path(folder)
    beside, old = (folder.with_name(f".{folder.name}.{end}") for end in ("new", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for rest in (beside, old):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        yield beside
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring a folder's new name to disk, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | Path) -> None:
    """Remove what writes of :func:`atomic` have left in a folder when they were killed."""
    for path in Path(folder).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def is_disk_error(error: Exception) -> bool:
    """Whether a failed write is the disk's fault (torch and safetensors word it their way)."""
    if isinstance(error, OSError):
        return error.errno is not None
    words = str(error).lower()
    return any(w in words for w in ("no space left", "pytorchstreamwriter", "inline_container"))


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_manifest(path: Path, files: Sequence[Path]) -> None:
    """Write, last of all, the SHA-256 of files in a manifest's folder; :func:`changed_since`."""
    digests = {str(file.relative_to(path.parent)): sha256(file) for file in files}
    with atomic(path) as temporary:
        text = json.dumps({"sha256": digests}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def manifest_names(path: Path) -> list[str]:
    """The files that a manifest names, relative to its folder.

    Raises:
        UserError: See :func:`changed_since`.
    """
    return list(_read_digests(path))


def changed_since(path: Path) -> list[str]:
    """Files that a manifest names and that are gone or are others now.

    Raises:
        UserError: Where the manifest is missing, as after a killed write, or cannot be read.
    """
    digests = _read_digests(path)
    files = {name: path.parent / name for name in digests}
    try:
        return [n for n, f in files.items() if not f.is_file() or sha256(f) != digests[n]]
    except OSError as error:
        raise UserError(f"{path}: what it names cannot be read ({error})") from error


def _read_digests(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError:
        raise UserError(f"{path}, which is written last, is missing: run that step again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error})") from error


def sha256(*paths: str | Path) -> str:
    """SHA-256 over the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
