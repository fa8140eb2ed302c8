"""What a training goes on from: the newest checkpoint or the one before, inside an epoch or not."""

import json
import logging
import pickle
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from espnet_moe.errors import UserError
from espnet_moe.files import atomic, remove_leftovers, sha256

NEWEST, BEFORE, MANIFEST = "checkpoint.pth", "checkpoint.1.pth", "checkpoint.json"
UNREADABLE = (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError)


class Checkpoints:
    """The newest checkpoint of a folder and the one before it.

    A checkpoint counts when ``checkpoint.json``, which is written last, has its SHA-256. So a kill
    at any moment leaves one that counts, and one that a disk has damaged is not gone on from. One
    that does not count never takes the place of one that does.

    Args:
        folder: Of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; the newest that counts until now becomes the one before.

        Raises:
            UserError: Where the disk is full; the ones before are kept.
        """
        newest, before = self.folder / NEWEST, self.folder / BEFORE
        digest = self._digest(newest)
        kept = digest or self._digest(before)

        def keep() -> None:
            if digest:
                newest.replace(before)

        with atomic(newest, before_replacing=keep) as path:
            torch.save(state, path)
            written = sha256(path)
        with atomic(self.folder / MANIFEST) as path:
            digests = [written, kept] if kept else [written]
            path.write_text(json.dumps({"sha256": digests}, indent=1) + "\n", encoding="utf-8")

    def load(self, device: str) -> dict[str, Any] | None:
        """The newest checkpoint that is whole; None where there is none at all.

        Raises:
            UserError: Where there are some, and none is whole.
        """
        problems = []
        for path in (self.folder / NEWEST, self.folder / BEFORE):
            if not path.exists():
                continue
            try:
                if not self._digest(path):
                    raise RuntimeError("its SHA-256 is not in checkpoint.json")
                state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
            except UNREADABLE as error:
                problems.append(f"{path} cannot be read ({error})")
                continue
            for problem in problems:
                logging.warning("%s: going on from %s", problem, path)
            return state
        if problems:
            raise UserError(
                f"{'; '.join(problems)}: move {self.folder} away to train from the start"
            )
        return None

    def clean(self) -> None:
        """Remove what killed writes have left."""
        remove_leftovers(self.folder)

    def _digest(self, path: Path) -> str | None:
        """The SHA-256 of a checkpoint that counts; without a manifest each does that is there."""
        if not path.exists():
            return None
        known = self._known()
        digest = sha256(path)
        return digest if known is None or digest in known else None

    def _known(self) -> list[str] | None:
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            digests = manifest["sha256"]
            if isinstance(digests, dict):  # as they were written first
                digests = filter(None, digests.values())
            return [str(digest) for digest in digests]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logging.warning("%s cannot be read (%s)", self.folder / MANIFEST, error)
            return None


@dataclass(frozen=True)
class Position:
    """A place between two steps of an epoch.

    Attributes:
        epoch: The number of the epoch.
        iterations: Batches of it that are done.
        trained: Whether these are all, and the validation comes.
        rank: Of the process; what is below is its own.
        stats: What the epoch's batches have reported: ``(weight or None, value)`` of each figure.
        batching: What decided which utterances were in which batch.
        torch_state, numpy_state, python_state, cuda_state: Of the random generators.
    """

    epoch: int
    iterations: int
    trained: bool
    rank: int
    stats: dict[str, list[tuple[Any, Any]]]
    torch_state: torch.Tensor
    numpy_state: list[Any]
    python_state: list[Any]
    cuda_state: torch.Tensor | None
    batching: str = ""

    @classmethod
    def here(
        cls,
        epoch: int,
        iterations: int,
        trained: bool,
        rank: int,
        stats: dict[str, Any],
        batching: str = "",
    ) -> "Position":
        """With the generators' states as they are now."""
        kind, keys, *rest = np.random.get_state()
        version, words, gauss = random.getstate()
        return cls(
            epoch,
            iterations,
            trained,
            rank,
            stats,
            torch.get_rng_state(),
            [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
            [version, list(words), gauss],
            torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
            batching,
        )

    def restore_generators(self) -> None:
        """Set the random generators as they were."""
        kind, keys, *rest = self.numpy_state
        np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
        version, words, gauss = self.python_state
        random.setstate((version, tuple(words), gauss))
        torch.set_rng_state(self.torch_state.cpu())
        if self.cuda_state is not None:
            torch.cuda.set_rng_state(self.cuda_state.cpu())

    def plain(self) -> dict[str, Any]:
        """As a dictionary that ``weights_only`` loads."""
        return asdict(self)
