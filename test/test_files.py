"""Files that are whole or absent."""

import errno
import hashlib
import os

import pytest

from espnet_moe.errors import UserError
from espnet_moe.files import atomic, sha256, whole_folder


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


def test_written_as_a_whole_with_usual_permissions(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("one")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "one" and leftovers(path.parent) == ["a.txt"]
    (tmp_path / "usual").write_text("")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("earlier", [True, False])
def test_a_full_disk(tmp_path, error, earlier):
    path = tmp_path / "a.txt"
    if earlier:
        path.write_text("earlier")
    with pytest.raises(UserError) as raised, atomic(path) as temporary:
        temporary.write_text("hal")
        raise error
    kept = "the earlier one is kept whole" if earlier else "nothing is left of it"
    assert kept in str(raised.value) and "free space" in str(raised.value)
    assert leftovers(tmp_path) == (["a.txt"] if earlier else [])
    assert not earlier or path.read_text() == "earlier"


def test_other_errors_pass_and_leave_nothing(tmp_path):
    for error in (KeyboardInterrupt(), RuntimeError("shapes differ"), ValueError("x")):
        with pytest.raises(type(error)) as raised, atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("hal")
            raise error
        assert raised.value is error
    assert leftovers(tmp_path) == []


def test_file_that_writers_replace_themselves(tmp_path):
    # Some writers (safetensors) write beside the path that they were given and rename.
    with atomic(tmp_path / "a.txt") as temporary:
        (tmp_path / "x").write_text("content")
        os.replace(tmp_path / "x", temporary)
    assert (tmp_path / "a.txt").read_text() == "content"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="could not write"), atomic(tmp_path / "closed" / "a"):
        pass


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not write"), atomic(tmp_path / "file" / "a.txt"):
        pass


def test_hash_over_several_files(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    (tmp_path / "b").write_bytes(b"y")
    assert (
        sha256(tmp_path / "a", tmp_path / "b")
        == hashlib.sha256(b"x" * 3_000_000 + b"y").hexdigest()
    )


def test_what_torch_says_on_a_full_disk_is_understood(tmp_path):
    import torch

    from espnet_moe.files import is_disk_error

    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises((OSError, RuntimeError)) as raised:
        torch.save({"a": torch.zeros(300_000)}, "/dev/full")
    assert is_disk_error(raised.value)


def test_a_folder_stays_until_the_next_is_whole(tmp_path):
    folder = tmp_path / "expert"
    for text in ("one", "two"):
        with whole_folder(folder) as beside:
            beside.mkdir()
            (beside / "a").write_text(text)
        assert (folder / "a").read_text() == text and leftovers(tmp_path) == ["expert"]
    # Killed between the two renamings: the next write fails, and nothing is lost by it.
    folder.rename(tmp_path / ".expert.old")
    with pytest.raises(OSError, match="full"), whole_folder(folder) as beside:
        beside.mkdir()
        raise OSError(errno.ENOSPC, "full")
    assert (folder / "a").read_text() == "two" and leftovers(tmp_path) == ["expert"]
