"""The experts that a loaded model knows of: by name, described, read when they are used."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.decoding.loading import require_same_setting
from espnet_moe.experts.expert_files import read_manifest, require_same_base
from espnet_moe.experts.expert_set import ExpertError
from espnet_moe.inference.model_files import find_expert


@dataclass(frozen=True)
class ExpertFacts:
    """What an expert says of itself.

    Attributes:
        name: In this model.
        folder: Where it is.
        languages: Of its training data.
        kind: ``lora``, or an extension's.
        rank: Of its updates; ``None`` where its kind has none.
        routed: Whether the router chooses it; the others are for those who name them.
        metrics: From its validation.
    """

    name: str
    folder: Path
    languages: tuple[str, ...]
    kind: str
    rank: int | None
    routed: bool
    metrics: Mapping[str, Any]


class Shelf:
    """Experts by name; threads may add and remove them while others read.

    Args:
        base: The backbone that they are for.
        digest: Its digest.
    """

    def __init__(self, base: Backbone, digest: str) -> None:
        self._base, self._digest = base, digest
        self._lock = threading.Lock()
        self._folders: dict[str, Path] = {}

    def add(self, name: str, path: str | Path) -> None:
        """Take an expert in: its description is checked, its weights are not read.

        Raises:
            UserError: For a name that is taken, a damaged expert, or one made for another base.
        """
        folder = find_expert(path)
        manifest = read_manifest(folder)
        if not name.strip():
            raise ExpertError("an expert needs a name")
        require_same_base({name: manifest}, {name: folder}, self._digest)
        require_same_setting(self._base, {name: str(folder)})
        with self._lock:
            if name in self._folders:
                raise ExpertError(
                    f"there is an expert '{name}' already ({self._folders[name]}): unload it "
                    "first, or take another name"
                )
            self._folders[name] = folder

    def remove(self, name: str) -> None:
        """Let an expert go.

        Raises:
            ExpertError: Where there is none of that name.
        """
        with self._lock:
            self._folder(name)
            del self._folders[name]

    def folders(self, names: Sequence[str]) -> dict[str, Path]:
        """Folders by name, in the order of the names.

        Raises:
            ExpertError: For one that is not here (any more).
        """
        with self._lock:
            return {name: self._folder(name) for name in names}

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return name in self._folders

    def languages(self, name: str) -> tuple[str, ...]:
        """Languages of an expert's training data, as far as it tells."""
        manifest = read_manifest(self.folders([name])[name])
        return tuple(manifest.get("languages", ()))

    def facts(self, routed: Sequence[str]) -> list[ExpertFacts]:
        """All of them, in the order in which they came; ``routed`` names those of the router."""
        with self._lock:
            folders = dict(self._folders)
        told = []
        for name, folder in folders.items():
            manifest = read_manifest(folder)
            languages = tuple(manifest.get("languages", ()))
            kind, rank = manifest["kind"], manifest["options"].get("rank")
            metrics = manifest.get("metrics", {})
            told.append(ExpertFacts(name, folder, languages, kind, rank, name in routed, metrics))
        return told

    def _folder(self, name: str) -> Path:
        if name not in self._folders:
            raise ExpertError(
                f"there is no expert '{name}'; experts: {' '.join(self._folders) or 'none'}"
            )
        return self._folders[name]
