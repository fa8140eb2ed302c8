"""Copies of a backbone that share its weights: other experts in each, a thread each.

Modules may keep things while they run (ESPnet's attention keeps its weights for a moment, and reads
them back), so no two threads use the same ones. A copy has modules of its own and all tensors in
common: it costs kilobytes a layer, whatever the model's size.
"""

import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.experts.expert_files import load_experts
from espnet_moe.experts.expert_set import ExpertSet

Copied = TypeVar("Copied")
Equipped = tuple[Backbone, ExpertSet | None]


def share(backbone: Any, copied: Copied) -> Copied:
    """Copy ``copied``, which holds the backbone, with all of the backbone's tensors in common."""
    kept: list[Any] = [backbone.tokens, getattr(backbone, "espnet_config", None)]
    for module in backbone.modules():
        own = {**vars(module), **module._parameters, **module._buffers}
        # ESPnet's positional encodings are tensors that are no buffers.
        kept += [value for value in own.values() if isinstance(value, torch.Tensor)]
    return copy.deepcopy(copied, {id(value): value for value in kept})


class _Set:
    """One choice of experts: made when it is first borrowed, copied for every further thread."""

    def __init__(self, base: Backbone, digest: str, folders: Mapping[str, Path]) -> None:
        self._base, self._digest, self._folders = base, digest, dict(folders)
        self._lock = threading.Lock()
        self._idle: list[Equipped] = []
        # Never lent: what runs is not a thing to copy.
        self._original: Equipped | None = None

    def take(self) -> Equipped:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            if self._original is None:
                backbone, experts = share(self._base, self._base), None
                if self._folders:
                    experts = load_experts(backbone, self._folders, self._digest)
                self._original = backbone, experts
            return share(self._original[0], self._original)

    def give_back(self, equipped: Equipped) -> None:
        with self._lock:
            self._idle.append(equipped)


class Replicas:
    """Lends the backbone with any experts in it; those that were used last stay in memory.

    Args:
        base: The backbone without experts; it is never lent and never changed.
        digest: Its digest.
        keep: Choices of experts that stay in memory.
    """

    def __init__(self, base: Backbone, digest: str, keep: int = 16) -> None:
        self._base, self._digest, self._keep = base, digest, keep
        self._lock = threading.Lock()
        self._sets: OrderedDict[tuple[tuple[str, Path], ...], _Set] = OrderedDict()

    @contextmanager
    def borrow(self, folders: Mapping[str, Path]) -> Iterator[Equipped]:
        """The backbone with these experts, name by folder; nobody else has it meanwhile.

        Raises:
            UserError: For an expert that cannot be loaded.
        """
        key = tuple(folders.items())
        with self._lock:
            chosen = self._sets.setdefault(key, _Set(self._base, self._digest, folders))
            self._sets.move_to_end(key)
            while len(self._sets) > self._keep:
                self._sets.popitem(last=False)
        equipped = chosen.take()
        try:
            yield equipped
        finally:
            chosen.give_back(equipped)

    def forget(self, name: str) -> None:
        """Let go of what holds an expert; runs that have it go on with it."""
        with self._lock:
            for key in [key for key in self._sets if any(own == name for own, _ in key)]:
                del self._sets[key]
