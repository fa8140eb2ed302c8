"""Linear CKA, debiased: how alike frames are under different experts, whatever their rotation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_moe.errors import UserError

_GROUPS = 10  # of utterances, for the jackknife
_LEAST_FRAMES = 50  # far fewer than the width of the frames say nothing
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Representations:
    """The same frames at some layers, under the base and under every expert.

    Attributes:
        conditions: ``base`` and the experts.
        layers: Names of the layers, the encoder's output last.
        frames: By layer name ``(conditions, frames, dim)``.
        owners: Number of the utterance that each frame is of, ``(frames,)``.
    """

    conditions: tuple[str, ...]
    layers: tuple[str, ...]
    frames: Mapping[str, np.ndarray]
    owners: np.ndarray

    def select(self, chosen: np.ndarray) -> "Representations":
        """Of a mask ``(frames,)`` or of indices."""
        frames = {name: values[:, chosen] for name, values in self.frames.items()}
        return Representations(self.conditions, self.layers, frames, self.owners[chosen])


def join(parts: Sequence[Representations]) -> Representations:
    """The frames of several sets of utterances, which stay apart."""
    first, owners, start = parts[0], [], 0
    for part in parts:
        owners.append(part.owners + start)
        start += int(part.owners.max()) + 1
    frames = {
        name: np.concatenate([part.frames[name] for part in parts], axis=1) for name in first.layers
    }
    return Representations(first.conditions, first.layers, frames, np.concatenate(owners))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased linear CKA of the same examples in two spaces.

    HSIC by the unbiased estimator of Song et al. (JMLR 13, 2012), in the space of the features as
    in Kornblith et al. (arXiv:1905.00414): with centred ``X (n, p)`` and ``Y (n, q)``, and ``s``
    the squared norms of rows, ``‖XᵀY‖² − n/(n−2) · s_x·s_y + Σs_x Σs_y / ((n−1)(n−2))``: the
    unbiased HSIC times a factor that the ratio drops. It is the same for ``X Q`` with ``Q``
    orthogonal and for ``c X``, and about 0 for independent ``X`` and ``Y`` however wide they are.

    Args:
        x: ``(n, p)``, at least 4 examples.
        y: ``(n, q)``.

    Raises:
        UserError: For fewer than 4 examples, or numbers of them that differ.
    """
    if len(x) != len(y) or len(x) < 4:
        raise UserError(
            f"CKA compares the same 4 or more examples; these are {len(x)} and {len(y)}"
        )
    x = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    y = y.astype(np.float64) - y.mean(axis=0, dtype=np.float64)
    both, own_x, own_y = _hsic(x, y), _hsic(x, x), _hsic(y, y)
    if own_x <= 0 or own_y <= 0:
        return float("nan")
    return both / float(np.sqrt(own_x * own_y))


def _hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased HSIC of centred features, times ``n (n − 3)``."""
    n = len(x)
    rows_x, rows_y = (np.einsum("np,np->n", z, z) for z in (x, y))
    cross = float(((x.T @ y) ** 2).sum())
    middle = n / (n - 2) * float(rows_x @ rows_y)
    return cross - middle + float(rows_x.sum() * rows_y.sum()) / ((n - 1) * (n - 2))


def cka_matrix(values: np.ndarray) -> np.ndarray:
    """CKA of every pair of conditions: ``(conditions, frames, dim)`` → ``(conditions, same)``."""
    count = len(values)
    x = values.astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    found = np.zeros((count, count))
    for i in range(count):
        for j in range(i, count):
            found[i, j] = found[j, i] = _hsic(x[i], x[j])
    own = np.diag(found)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(np.outer(own, own))
        return np.where(np.outer(own > 0, own > 0), found / scale, np.nan)


def cka_results(sets: Mapping[str, Representations], seed: int) -> dict[str, Any]:
    """CKA of every pair of conditions at every layer, for each set and for all together.

    Returns:
        By set ``frames``, ``utterances``, and by layer the matrix; of the last layer also the
        95 % ``interval`` of every pair, by a delete-a-group jackknife over utterances.

    Raises:
        UserError: For a set of fewer frames than an unbiased estimate needs.
    """
    if few := [name for name, own in sets.items() if len(own.owners) < _LEAST_FRAMES]:
        raise UserError(f"{', '.join(few)}: CKA needs {_LEAST_FRAMES} frames or more")
    found = {}
    for name, own in {**sets, "all": join(list(sets.values()))}.items():
        layers: list[dict[str, Any]] = [
            {"layer": layer, "values": cka_matrix(own.frames[layer])} for layer in own.layers
        ]
        error = _jackknife(own, seed)
        if error is not None:
            values = layers[-1]["values"]
            layers[-1]["interval"] = np.stack(
                [values - _NORMAL_95 * error, values + _NORMAL_95 * error], axis=-1
            )
        found[name] = {
            "names": own.conditions,
            "frames": len(own.owners),
            "utterances": len(np.unique(own.owners)),
            "layers": layers,
        }
    return found


def _jackknife(own: Representations, seed: int) -> np.ndarray | None:
    """Standard error of the last layer's matrix; ``None`` for too few utterances."""
    utterances = np.unique(own.owners)
    if len(utterances) < _GROUPS:
        return None
    order = np.random.default_rng(seed).permutation(len(utterances))
    group = dict(zip(utterances.tolist(), (order % _GROUPS).tolist(), strict=True))
    groups = np.array([group[owner] for owner in own.owners.tolist()])
    values = own.frames[own.layers[-1]]
    left = np.stack([cka_matrix(values[:, groups != g]) for g in range(_GROUPS)])
    spread = ((left - left.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(np.sqrt((_GROUPS - 1) / _GROUPS * spread))
