"""Two checkpoints and their manifest: what counts after kills between any two of their writes."""

import json
import os
from pathlib import Path

import pytest
import torch

from espnet_moe import checkpoints, files
from espnet_moe.checkpoints import BEFORE, MANIFEST, NEWEST, Checkpoints


class Killed(BaseException):
    """As SIGKILL: nothing that comes after is done."""


def write(folder, step):
    Checkpoints(folder).save({"step": torch.tensor(step)})


def step_of(folder):
    return int(Checkpoints(folder).load("cpu")["step"])


@pytest.fixture
def kill_before(monkeypatch):
    """``kill_before(name)``: the renaming of a save to this name does not come to be."""

    def install(name):
        replace = os.replace

        def until(source, target):
            if Path(target).name == name:
                raise Killed
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", until)
        monkeypatch.setattr(checkpoints.Path, "replace", lambda self, to: until(self, to))

    return install


@pytest.mark.parametrize("first", [BEFORE, NEWEST, MANIFEST])
@pytest.mark.parametrize("second", [NEWEST, MANIFEST])
def test_killed_twice_in_a_row(tmp_path, kill_before, monkeypatch, first, second):
    """Whatever was confirmed last can still be gone on from, and saves after that count."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    for name in (first, second):
        kill_before(name)
        with pytest.raises(Killed):
            write(tmp_path, 3)
        monkeypatch.undo()
        assert step_of(tmp_path) == 2
    write(tmp_path, 4)
    assert step_of(tmp_path) == 4
    (tmp_path / NEWEST).write_bytes(b"damaged")
    assert step_of(tmp_path) == 2


def test_a_damaged_one_never_takes_the_place_of_a_whole_one(tmp_path):
    write(tmp_path, 1)
    write(tmp_path, 2)
    (tmp_path / NEWEST).write_bytes(b"damaged")
    assert step_of(tmp_path) == 1
    write(tmp_path, 2)
    (tmp_path / NEWEST).write_bytes(b"damaged again")
    assert step_of(tmp_path) == 1


def test_a_manifest_of_before(tmp_path):
    """It had names for its digests."""
    write(tmp_path, 1)
    write(tmp_path, 2)
    newest, before = json.loads((tmp_path / MANIFEST).read_text())["sha256"]
    old = {"sha256": {"newest": newest, "before": before}}
    (tmp_path / MANIFEST).write_text(json.dumps(old))
    assert step_of(tmp_path) == 2
    (tmp_path / NEWEST).write_bytes(b"damaged")
    assert step_of(tmp_path) == 1


def test_without_a_manifest_what_can_be_read_counts(tmp_path):
    """As checkpoints were written before there was one."""
    torch.save({"step": torch.tensor(5)}, tmp_path / NEWEST)
    assert not (tmp_path / MANIFEST).exists()
    assert step_of(tmp_path) == 5
    write(tmp_path, 6)
    assert (tmp_path / BEFORE).exists()
    assert step_of(tmp_path) == 6
    (tmp_path / NEWEST).write_bytes(b"damaged")
    assert step_of(tmp_path) == 5
