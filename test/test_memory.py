"""Memory in the log, and errors for want of it."""

import logging
import os
import signal

import pytest
import torch

from espnet_moe.memory import BatchSize, OutOfMemoryError, explained, of_job
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
    """Which batch it was making is not known; smaller ones are not what helps."""
    message = "a process that loads data was ended, .* fewer --num_workers"
    with pytest.raises(OutOfMemoryError, match=message) as raised, explained(None, "less", "cpu"):
        list(torch.utils.data.DataLoader(Killed(), num_workers=1))
    assert "batch of" not in str(raised.value)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "cuda:1"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "cuda:1"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), "cuda:1"),
        (MemoryError(), "this machine"),
    ],
)
def test_where_it_ran_out(error, where):
    batch = BatchSize(3, "hi-7", 12.34)
    message = f"^out of memory on {where} at a batch of 3 utterances, the longest hi-7 with 12.3 s"
    with pytest.raises(OutOfMemoryError, match=message), explained(batch, "less", "cuda:1"):
        raise error


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_job(tmp_path, version):
    """SLURM limits the job, and the step below it not always."""
    (tmp_path / "proc/self").mkdir(parents=True)
    groups = {1: "4:memory:/slurm/job_7/step_0\n3:cpu:/\n", 2: "0::/slurm/job_7/step_0\n"}
    (tmp_path / "proc/self/cgroup").write_text(groups[version])
    top = tmp_path / "sys/fs/cgroup" / {1: "memory", 2: ""}[version]
    used, limit = {
        1: ("memory.usage_in_bytes", "memory.limit_in_bytes"),
        2: ("memory.current", "memory.max"),
    }[version]
    for folder, values in {"slurm/job_7/step_0": ("5", "max"), "slurm/job_7": ("6", "100")}.items():
        (top / folder).mkdir(parents=True, exist_ok=True)
        (top / folder / used).write_text(values[0] + "\n")
        (top / folder / limit).write_text(values[1] + "\n")
    assert of_job(tmp_path) == (6, 100)


def test_a_machine_without_control_groups(tmp_path):
    assert of_job(tmp_path) is None
