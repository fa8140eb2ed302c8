"""Memory: said at intervals of a training, and explained where it is not enough."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from espnet_moe.data.utterance import SAMPLE_RATE
from espnet_moe.errors import UserError

GIB = 2**30
# How torch words it: on a CPU, on a GPU where it is no torch.OutOfMemoryError, and where the kernel
# has killed a process that loads data or refuses it shared memory.
OF_MACHINE = ("can't allocate memory", "not enough memory")
OF_GPU = ("cuda error: out of memory", "cudnn_status_alloc_failed", "cublas_status_alloc_failed")
OF_LOADER = ("is killed by signal: killed", "insufficient shared memory", "out of shared memory")
FOR_TRAINING = (
    "a smaller --batch_size (with --accum_grad for the same effective one; --batch_bins where "
    "--batch_type counts elements), --gradient_checkpointing true, or shorter utterances "
    "(--max_wav_duration of the recipe)"
)
FOR_LOADING = (
    "fewer --num_workers, or more memory for the job (the mem of conf/slurm.conf; --shm-size of a "
    "container)"
)
FOR_DECODING = (
    "a smaller batch_size or beam_size in the configuration of the decoding, or fewer jobs at a "
    "time (--inference_nj of the recipe)"
)
FOR_EMBEDDING = (
    "a smaller --batch_size, fewer jobs at a time (--max_jobs_run of the recipe), or shorter "
    "utterances (--max_wav_duration)"
)


class OutOfMemoryError(UserError):
    """There is not enough memory; says for what, and what takes less."""


@dataclass(frozen=True)
class BatchSize:
    """How large a batch is.

    Attributes:
        utterances: How many.
        longest: Id of the longest one.
        seconds: Its duration.
    """

    utterances: int
    longest: str
    seconds: float

    @classmethod
    def of(cls, ids: list[str], batch: dict[str, torch.Tensor]) -> "BatchSize":
        """Of a batch as ESPnet's collate function makes it."""
        samples = batch["speech_lengths"]
        longest = int(samples.argmax())
        return cls(len(ids), ids[longest], float(samples[longest]) / SAMPLE_RATE)


@contextmanager
def explained(
    size: BatchSize | Callable[[], BatchSize | None] | None, advice: str, device: str
) -> Iterator[None]:
    """Make an error for want of memory one line that names the batch and what takes less.

    Args:
        size: The batch under way, or what tells it after such an error; None: there was none.
        advice: What takes less memory.
        device: What ran out, unless the error is about the machine's own memory.

    Raises:
        OutOfMemoryError: Instead of torch's and Python's own errors.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        words = f"{error} {error.__cause__ or ''}".lower()  # why a loader has ended is its cause
        if any(word in words for word in OF_LOADER):
            raise OutOfMemoryError(
                f"a process that loads data was ended, as happens where memory is short "
                f"({in_use(device)}). What takes less: {FOR_LOADING}"
            ) from error
        of_gpu = isinstance(error, torch.OutOfMemoryError) or any(w in words for w in OF_GPU)
        of_machine = isinstance(error, MemoryError) or any(w in words for w in OF_MACHINE)
        if not of_gpu and not of_machine:
            raise
        where = device if of_gpu else "this machine"
        batch = size() if callable(size) else size
        what = "before the first batch"
        if batch is not None:
            what = (
                f"at a batch of {batch.utterances} utterances, the longest {batch.longest} with "
                f"{batch.seconds:.1f} s"
            )
        raise OutOfMemoryError(
            f"out of memory on {where} {what} ({in_use(device)}). What takes less: {advice}"
        ) from error


class Watched:
    """The batches of an epoch; says at intervals how much memory is in use.

    Args:
        batches: Pairs of ids and tensors.
        interval: Batches between two lines of the log.
        device: Where the model is.

    Attributes:
        size: Of the batch under way.
    """

    def __init__(self, batches: Any, interval: int, device: str) -> None:
        self.batches, self.interval, self.device = batches, interval, device
        self.size: BatchSize | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for number, (ids, batch) in enumerate(self.batches, 1):
            self.size = BatchSize.of(ids, batch)
            yield ids, batch
            if number % self.interval == 0:
                logging.info("memory: %s", in_use(self.device))

    def explained(self) -> Any:
        """See :func:`explained`."""
        return explained(lambda: self.size, FOR_TRAINING, self.device)


def in_use(device: str) -> str:
    """Memory of this process, of those that load its data, of the machine and of the GPU."""
    process = psutil.Process()
    machine = psutil.virtual_memory()
    loading = 0
    for child in process.children(recursive=True):
        try:
            loading += child.memory_info().rss
        except psutil.NoSuchProcess:  # it has ended since
            continue
    parts = [f"process {process.memory_info().rss / GIB:.2f} GiB"]
    if loading:
        parts.append(f"its children {loading / GIB:.2f}")
    parts.append(f"free on this machine {machine.available / GIB:.1f} of {machine.total / GIB:.1f}")
    limit = of_job()
    if limit is not None and limit[1] < machine.total:
        parts.append(f"this job {limit[0] / GIB:.2f} of {limit[1] / GIB:.2f}")
    if device.startswith("cuda") and torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info(device)
        most = torch.cuda.max_memory_allocated(device)
        parts.append(
            f"GPU {torch.cuda.memory_allocated(device) / GIB:.2f}, at most {most / GIB:.2f}, free "
            f"{free / GIB:.1f} of {total / GIB:.1f}"
        )
    return ", ".join(parts)


def of_job(root: Path = Path("/")) -> tuple[int, int] | None:
    """Bytes that this process's control group uses and may use, as SLURM sets them; None: no limit.

    Args:
        root: Where ``proc`` and ``sys`` are.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = []
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            top = root / "sys/fs/cgroup" / controllers
            names = ("memory.current", "memory.max")
            if controllers:
                names = ("memory.usage_in_bytes", "memory.limit_in_bytes")
            # The limit may be that of a group above.
            for folder in [top / path.lstrip("/"), *(top / path.lstrip("/")).parents]:
                if not folder.is_relative_to(top):
                    break
                found += _limit_in(folder, *names)
    return min(found, key=lambda pair: pair[1], default=None)


def _limit_in(folder: Path, used: str, limit: str) -> list[tuple[int, int]]:
    try:
        return [(int((folder / used).read_text()), int((folder / limit).read_text()))]
    except (OSError, ValueError):  # not there, or "max"
        return []
