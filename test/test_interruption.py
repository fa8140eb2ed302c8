"""Trainings that are asked to leave, are killed, or find a damaged checkpoint."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from espnet_moe.errors import UserError
from espnet_moe.interruption import REQUEUE
from espnet_moe.model import ESPnetMoEModel
from espnet_moe.task import MoETask
from test_trainer import RANDOM, same, state

ROOT = Path(__file__).resolve().parents[1]

# 6 batches and 2 validation batches an epoch, 2 batches a step, 2 processes that load data.
OPTIONS = [*RANDOM, "--num_iters_per_epoch", "6", "--max_epoch", "3", "--num_workers", "2"]


@pytest.fixture(autouse=True)
def handlers():
    """A training that was asked to leave keeps its handlers until the process ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def uninterrupted(train_args, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    MoETask.main(cmd=train_args(folder, *OPTIONS))
    return folder


def equal(one, two):
    """Whether two trainings have come to the same, by what they have learned and reported."""
    assert same(state(one, "3epoch.pth"), state(two, "3epoch.pth"))
    reports = [state(f, "checkpoint.pth")["reporter"]["stats"] for f in (one, two)]
    for epoch in (1, 2, 3):
        for phase in ("train", "valid"):
            a, b = ({k: v for k, v in r[epoch][phase].items() if "time" not in k} for r in reports)
            assert a == pytest.approx(b, nan_ok=True), (epoch, phase)
    return True


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_asked_to_leave_again_and_again(
    uninterrupted, train_args, tmp_path, monkeypatch, caplog, number
):
    """After any step, in a validation, between the batches of a step: nothing is different."""
    forward, calls = ESPnetMoEModel.forward, []
    asked_at = {3, 5, 11, 16, 19}  # batches; an epoch has 6, and 2 of validation

    def asked(self, *args, **kwargs):
        calls.append(1)
        if len(calls) in asked_at:
            # As SLURM does: the processes that load data, too.
            for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                os.kill(process.pid, number)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ESPnetMoEModel, "forward", asked)
    places = []
    for _ in asked_at:
        with pytest.raises(SystemExit) as left:
            MoETask.main(cmd=train_args(tmp_path, *OPTIONS))
        assert left.value.code == REQUEUE == 75
        for child in multiprocessing.active_children():
            child.join(timeout=10)
            assert not child.is_alive()
        position = state(tmp_path, "checkpoint.pth")["positions"][0]
        places.append((position["epoch"], position["iterations"], position["trained"]))
    assert f"{number.name} (" in caplog.text and "the same command goes on there" in caplog.text
    MoETask.main(cmd=train_args(tmp_path, *OPTIONS))
    assert places == [
        (1, 4, False),
        (1, 6, False),
        (2, 4, False),
        (2, 6, True),  # left in the validation
        (3, 2, False),
    ]
    assert equal(uninterrupted, tmp_path)


# 10 batches, of which two steps of four are made: what is left after the second is none.
TEN = [*OPTIONS, "--num_iters_per_epoch", "10", "--accum_grad", "4", "--max_epoch", "2"]


def leave_at(monkeypatch, batch):
    """Have trainings asked to leave when they have come to a batch."""
    forward, calls = ESPnetMoEModel.forward, []

    def asked(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == batch:
            os.kill(os.getpid(), signal.SIGUSR1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(ESPnetMoEModel, "forward", asked)


def test_a_rest_without_a_step_is_no_end(train_args, tmp_path, monkeypatch):
    MoETask.main(cmd=train_args(tmp_path / "whole", *TEN))
    leave_at(monkeypatch, 7)
    with pytest.raises(SystemExit):
        MoETask.main(cmd=train_args(tmp_path / "left", *TEN))
    assert state(tmp_path / "left", "checkpoint.pth")["positions"][0]["iterations"] == 8
    MoETask.main(cmd=train_args(tmp_path / "left", *TEN))
    one, two = (state(tmp_path / name, "2epoch.pth") for name in ("whole", "left"))
    assert same(one, two)


def test_other_batches_begin_the_epoch_anew(train_args, tmp_path, monkeypatch, caplog):
    leave_at(monkeypatch, 7)
    with pytest.raises(SystemExit):
        MoETask.main(cmd=train_args(tmp_path, *TEN))
    smaller = ["--batch_size", "1", "--num_iters_per_epoch", "6"]
    MoETask.main(cmd=train_args(tmp_path, *TEN, *smaller))
    assert "left inside epoch 1 with batch_type sorted, batch_size 2" in caplog.text
    assert "batch_size 1" in caplog.text and "the epoch begins anew" in caplog.text
    stats = state(tmp_path, "checkpoint.pth")["reporter"]["stats"]
    assert [stats[e]["train"]["total_count"] for e in (1, 2)] == [6, 12]


GROUP = """
import os, signal, sys, time
import torch
from espnet_moe.interruption import REQUEUE, Signals, leaving_together

def work(rank, folder):
    signals = Signals()
    with signals.noted():
        open(f"{folder}/{rank}", "w").write(str(os.getpid()))
        until = time.monotonic() + 60
        while not signals.asked():
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.2 * rank)  # a checkpoint
        open(f"{folder}/saved{rank}", "w").close()
        sys.exit(REQUEUE)

if __name__ == "__main__":
    with leaving_together():
        torch.multiprocessing.spawn(work, (sys.argv[1],), nprocs=2)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGKILL])
def test_processes_of_one_training(tmp_path, number):
    """Who has started them passes a signal on, and asks for another run only when they do."""
    (tmp_path / "group.py").write_text(GROUP)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "group.py", tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while not all((tmp_path / f"{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)  # their numbers are written
    if number == signal.SIGKILL:
        os.kill(int((tmp_path / "1").read_text()), number)
        assert parent.wait(timeout=60) == 1
    else:
        parent.send_signal(number)
        assert parent.wait(timeout=60) == REQUEUE
        assert (tmp_path / "saved0").exists() or (tmp_path / "saved1").exists()


def test_signals_are_given_back(uninterrupted, train_args, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    MoETask.main(cmd=train_args(tmp_path, "--max_epoch", "1"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_checkpoint_falls_back(uninterrupted, train_args, tmp_path, caplog):
    MoETask.main(cmd=train_args(tmp_path, *OPTIONS, "--max_epoch", "2"))
    newest = tmp_path / "checkpoint.pth"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # still loads: only the digest tells
    newest.write_bytes(content)
    MoETask.main(cmd=train_args(tmp_path, *OPTIONS))
    assert "SHA-256" in caplog.text and "going on from" in caplog.text
    assert equal(uninterrupted, tmp_path)
    for name in ("checkpoint.pth", "checkpoint.1.pth"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"checkpoint\.pth cannot be read .*checkpoint\.1\.pth"):
        MoETask.main(cmd=train_args(tmp_path, *OPTIONS))


def test_killed_at_any_moment(uninterrupted, train_args, tmp_path):
    """25 times SIGKILL: no unreadable checkpoint, no leftover, the same weights at the end.

    A server process that has everything imported forks the trainings.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["espnet_moe.task"])

    def start(words):
        process = context.Process(target=MoETask.main, kwargs={"cmd": words})
        process.start()
        return process

    draw = random.Random(0)
    words = train_args(tmp_path, *OPTIONS, "--num_workers", "0")
    whole = start(train_args(tmp_path / "whole", *words[2:]))
    whole.join()  # the server's imports
    began = time.monotonic()
    whole = start(train_args(tmp_path / "whole", *words[2:], "--resume", "false"))
    whole.join()
    assert whole.exitcode == 0
    took = time.monotonic() - began
    kills = 0
    while kills < 25:
        process = start(words)
        process.join(timeout=draw.uniform(0.2, 1.0) * took)
        process.kill()  # nothing where it has ended by itself
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            # Done before the kill: start the training over, with what was counted kept.
            assert same(state(tmp_path, "3epoch.pth"), state(tmp_path / "whole", "3epoch.pth"))
            for path in tmp_path.iterdir():
                if path.name != "whole":
                    path.unlink() if not path.is_dir() else None
            continue
        kills += 1
        for path in tmp_path.glob("*epoch.pth"):
            torch.load(path, weights_only=True)
    last = start(words)
    last.join()
    assert last.exitcode == 0
    assert same(state(tmp_path, "3epoch.pth"), state(tmp_path / "whole", "3epoch.pth"))
    assert not list(tmp_path.glob(".*.tmp"))
