"""Memory in the log, and errors for want of it."""

import logging
import os
import signal

import pytest
import torch

from espnet_moe.memory import BatchSize, OutOfMemoryError, explained
from espnet_moe.model import ESPnetMoEModel
from espnet_moe.task import MoETask


def test_a_training_says_what_it_uses(train_args, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    MoETask.main(cmd=train_args(tmp_path, "--log_interval", "2", "--max_epoch", "1"))
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("memory: ")]
    assert len(lines) == 2  # after two of three training batches, and two of two in validation
    assert "memory: process " in lines[0] and " GiB" in lines[0]
    assert "free on this machine" in lines[0]


@pytest.mark.parametrize("training", [True, False])
def test_a_training_that_needs_too_much(train_args, tmp_path, monkeypatch, training):
    """A real refusal by torch's allocator becomes one line with the batch and what takes less."""
    forward = ESPnetMoEModel.forward

    def greedy(self, **batch):
        if self.training == training:
            torch.empty(2**55)
        return forward(self, **batch)

    monkeypatch.setattr(ESPnetMoEModel, "forward", greedy)
    with pytest.raises(OutOfMemoryError) as raised:
        MoETask.main(cmd=train_args(tmp_path))
    message = str(raised.value)
    assert "out of memory on this machine at a batch of " in message
    assert " utterances, the longest spkhi" in message
    for setting in ("--batch_size", "--gradient_checkpointing true", "--max_wav_duration"):
        assert setting in message
    assert "\n" not in message


def test_of_a_batch():
    """Lengths are samples at 16 kHz."""
    batch = {"speech_lengths": torch.tensor([16000, 40000, 8000])}
    assert BatchSize.of(["a", "b", "c"], batch) == BatchSize(3, "b", 2.5)


def test_a_gpu_is_named():
    with (
        pytest.raises(OutOfMemoryError, match=r"out of memory on cuda:1 before the first batch"),
        explained(lambda: None, "less", "cuda:1"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_other_errors_stay_what_they_are():
    with (
        pytest.raises(RuntimeError, match="^shapes do not match$"),
        explained(BatchSize(1, "a", 1.0), "less", "cpu"),
    ):
        raise RuntimeError("shapes do not match")


class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is short


def test_a_loading_process_that_the_kernel_has_killed():
    with (
        pytest.raises(OutOfMemoryError, match="out of memory on this machine at a batch of 4"),
        explained(BatchSize(4, "a", 1.0), "less", "cpu"),
    ):
        list(torch.utils.data.DataLoader(Killed(), num_workers=1))
