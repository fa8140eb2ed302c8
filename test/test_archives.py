"""Archives: the same bytes from the same files, and what strangers may not do with one."""

import os
import stat
import zipfile

import pytest

from espnet_moe import archives
from espnet_moe.archives import unpack, unpacked, write_archive
from espnet_moe.errors import UserError


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    (made / "b" / "c").mkdir(parents=True)
    (made / "b" / "c" / "weights").write_bytes(os.urandom(100_000))
    (made / "b" / "text").write_text("ਪੰਜਾਬੀ", encoding="utf-8")
    (made / "meta.yaml").write_text("a: 1\n")
    (made / "a").write_text("")
    return made


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip_and_the_same_bytes(folder, tmp_path):
    write_archive(folder, tmp_path / "one.zip", first=["meta.yaml"])
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    write_archive(folder, tmp_path / "two.zip", first=["meta.yaml"])
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as packed:
        assert packed.namelist() == ["meta.yaml", "a", "b/c/weights", "b/text"]
    unpack(tmp_path / "one.zip", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)


def test_it_is_unpacked_once_and_anew_when_it_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_archive(folder, tmp_path / "one.zip")
    first = unpacked(tmp_path / "one.zip")
    assert first == unpacked(tmp_path / "one.zip") and contents(first) == contents(folder)
    (folder / "a").write_text("new")
    write_archive(folder, tmp_path / "one.zip")
    assert contents(unpacked(tmp_path / "one.zip")) == contents(folder)


def link(packed):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    packed.writestr(info, "/etc/passwd")


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda z: z.writestr("../evil", "x"), "'../evil' would land outside"),
        (lambda z: z.writestr("a/../../evil", "x"), "would land outside"),
        (lambda z: z.writestr("/tmp/evil", "x"), "would land outside"),
        (lambda z: z.writestr("..\\evil", "x"), "would land outside"),
        (lambda z: z.writestr("C:evil", "x"), "would land outside"),
        (link, "'link' is a link"),
        (lambda z: (z.writestr("A", "x"), z.writestr("a", "y")), "two files of one name"),
        (lambda z: z.writestr("zeros", bytes(50_000_000)), "more than 100 times as many"),
    ],
)
def test_hostile_archives(tmp_path, plant, message):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("harmless", "x")
        plant(packed)
    with pytest.raises(UserError, match=rf"evil\.zip is refused: .*{message}"):
        unpack(tmp_path / "evil.zip", tmp_path / "deep" / "out")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == [], "nothing is left behind"


def test_a_header_that_lies_about_the_size(tmp_path):
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("zeros", bytes(5_000_000))
    # Declared size in the directory at the end: 4 bytes, little-endian, at offset 24 of its entry.
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="could not be unpacked"):
        unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_many_files_and_too_little_disk(folder, tmp_path, monkeypatch):
    write_archive(folder, tmp_path / "one.zip")
    monkeypatch.setattr(archives, "MAX_ENTRIES", 3)
    with pytest.raises(UserError, match="it holds 4 files, more than 3"):
        unpack(tmp_path / "one.zip", tmp_path / "out")
    monkeypatch.setattr(archives, "MAX_ENTRIES", 30)
    usage = archives.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="needs 1000.* bytes, the disk has 1000"):
        unpack(tmp_path / "one.zip", tmp_path / "out")


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_damaged_archives(folder, tmp_path, keep):
    write_archive(folder, tmp_path / "one.zip")
    whole = (tmp_path / "one.zip").read_bytes()
    (tmp_path / "one.zip").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=r"one\.zip could not be unpacked"):
        unpack(tmp_path / "one.zip", tmp_path / "out")


def test_changed_bytes_are_found(folder, tmp_path):
    write_archive(folder, tmp_path / "one.zip")
    data = bytearray((tmp_path / "one.zip").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "one.zip").write_bytes(bytes(data))
    with pytest.raises(UserError, match="could not be unpacked"):
        unpack(tmp_path / "one.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
