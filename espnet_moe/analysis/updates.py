"""What experts add to the weights of their base, kept as the two small factors of each layer.

The factors alone mean nothing: ``B A = (B R)(R⁻¹ A)`` for every invertible ``R``, so that two
experts with the same update may have factors that look unrelated. Every number here is one of the
update ``scale · B A``, computed from the factors without ever writing the product down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from espnet_moe.errors import UserError
from espnet_moe.experts.expert_files import read_manifest, read_weights

_SHOWN = 3
RANK_TOLERANCE = 1e-6  # of the largest singular value: below it a direction is rounding


@dataclass(frozen=True)
class Update:
    """The update ``up · down`` of one layer's weight ``(out, in)``.

    Attributes:
        up: ``(out, rank)``, ``alpha / rank`` included.
        down: ``(rank, in)``.
    """

    up: np.ndarray
    down: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def rank(self) -> int:
        """Of the factors: the most that the update's rank can be."""
        return self.down.shape[0]

    def inner(self, other: "Update") -> float:
        """Frobenius inner product of two updates of the same layer.

        ``⟨B₁A₁, B₂A₂⟩ = tr((B₂ᵀB₁)(A₁A₂ᵀ))``: two products of ``rank × rank`` results.
        """
        return float(((self.up.T @ other.up) * (self.down @ other.down.T)).sum())

    @cached_property
    def decomposed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left vectors ``(out, k)``, singular values ``(k,)`` and right vectors ``(in, k)``.

        From the QR decompositions of both factors, ``B = Q R`` and ``Aᵀ = P S``: the singular
        values of ``B A`` are those of ``R Sᵀ``, which is ``rank × rank``.
        """
        q, r = np.linalg.qr(self.up)
        p, s = np.linalg.qr(self.down.T)
        left, values, right = np.linalg.svd(r @ s.T, full_matrices=False)
        return q @ left, values, p @ right.T

    @property
    def singular_values(self) -> np.ndarray:
        """``(min(rank, out, in),)``, falling."""
        return self.decomposed[1]

    def bases(self) -> tuple[np.ndarray, np.ndarray]:
        """Orthonormal bases of what it writes ``(out, k)`` and what it reads ``(in, k)``."""
        left, values, right = self.decomposed
        kept = values > RANK_TOLERANCE * max(float(values[0]), np.finfo(float).tiny)
        return left[:, kept], right[:, kept]


@dataclass(frozen=True)
class Place:
    """Where a layer is: ``encoder`` 3 ``self_attn.q_proj``."""

    part: str
    layer: int
    kind: str


@dataclass(frozen=True)
class Experts:
    """Saved experts of one base, with updates in the same layers.

    Attributes:
        names: In the order given.
        languages: Of each, as its manifest tells.
        updates: By expert, then by module name.
        base_digest: Of the base.
    """

    names: tuple[str, ...]
    languages: Mapping[str, tuple[str, ...]]
    updates: Mapping[str, Mapping[str, Update]]
    base_digest: str

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the layers that have updates."""
        return tuple(self.updates[self.names[0]])


def parse_folders(pairs: Sequence[str]) -> dict[str, str]:
    """``["hi=exp/expert_hi/expert", …]`` → folder by name.

    Raises:
        UserError: For malformed or doubled pairs; all at once.
    """
    problems, found = [], dict[str, str]()
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            problems.append(f"'{pair}' is not NAME=FOLDER, e.g. hi=exp/expert_hi/expert")
        elif name in found:
            problems.append(f"'{name}' is named twice")
        found[name] = folder
    if problems:
        raise UserError("; ".join(problems))
    return found


def read_experts(folders: Mapping[str, str | Path], at_least: int = 1) -> Experts:
    """Read experts without loading their base.

    Args:
        folders: Folder by name.
        at_least: How many the analysis needs.

    Raises:
        UserError: For too few experts, those of different bases or with updates in different
            layers, and damaged ones.
    """
    if len(folders) < at_least:
        raise UserError(
            f"{len(folders)} expert(s) given, but this compares at least {at_least}: name more "
            "with --experts NAME=FOLDER …"
        )
    names = tuple(folders)
    manifests = {name: read_manifest(folders[name]) for name in names}
    digests = {name: str(manifest["base_digest"]) for name, manifest in manifests.items()}
    if len(set(digests.values())) > 1:
        told = ", ".join(
            f"{n} of {manifests[n].get('backbone')} [{d[:12]}]" for n, d in digests.items()
        )
        raise UserError(f"experts of different bases cannot be compared: {told}")
    updates = {}
    for name in names:
        options = manifests[name]["options"]
        scale = float(options["alpha"]) / int(options["rank"])
        tensors = read_weights(folders[name], manifests[name])
        modules = sorted(
            {key.rpartition(".")[0] for key in tensors}, key=lambda key: (_natural(key), key)
        )
        updates[name] = {
            module: Update(
                scale * tensors[f"{module}.lora_B"].double().numpy(),
                tensors[f"{module}.lora_A"].double().numpy(),
            )
            for module in modules
        }
    _require_same_modules(updates)
    languages = {n: tuple(manifests[n].get("languages") or ()) for n in names}
    return Experts(names, languages, updates, digests[names[0]])


def _require_same_modules(updates: Mapping[str, Mapping[str, Update]]) -> None:
    first, *others = updates
    wanted = {module: update.shape for module, update in updates[first].items()}
    for name in others:
        own = {module: update.shape for module, update in updates[name].items()}
        if own != wanted:
            apart = sorted(set(own.items()) ^ set(wanted.items()))
            few = ", ".join(dict.fromkeys(module for module, _ in apart[:_SHOWN]))
            raise UserError(
                f"experts {first} and {name} have updates in different layers ({len(own)} and "
                f"{len(wanted)}, e.g. {few}): only experts with the same targets are compared"
            )


def _natural(name: str) -> tuple[int, int]:
    place = place_of(name)
    return ("encoder", "decoder", "").index(place.part), place.layer


def place_of(module: str) -> Place:
    """Where a module is by its name alone, whatever the backbone calls its lists of layers."""
    words = module.split(".")
    for part in ("encoder", "decoder"):
        if part in words:
            rest = words[words.index(part) + 1 :]
            for i, word in enumerate(rest):
                if word.isdigit():
                    return Place(part, int(word), ".".join(rest[i + 1 :]))
    return Place("", 0, module)
