"""How many directions of a layer's weight an expert changes, and how strongly."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from espnet_moe.analysis.record import About, Analysis
from espnet_moe.analysis.similarity import groups_of
from espnet_moe.analysis.updates import RANK_TOLERANCE, Experts, place_of

SHARES = (0.5, 0.9, 0.95, 0.99)  # of the energy

SOURCES = (
    "Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007",
    "Rudelson and Vershynin, Sampling from large matrices, Journal of the ACM 54, 2007 (the "
    "numerical or stable rank)",
)


def effective_rank(values: np.ndarray) -> float:
    """``exp`` of the entropy of the singular values as shares of their sum; 0 for none above 0.

    Between 1 (one direction) and the number of values (all alike).
    """
    total = float(values.sum())
    if total <= 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(values: np.ndarray) -> float:
    """Squared Frobenius norm over squared spectral norm; 0 for a zero matrix."""
    top = float(values.max(initial=0.0))
    return float((values**2).sum() / top**2) if top > 0 else 0.0


def energy(values: np.ndarray) -> np.ndarray:
    """Share of the squared norm in the first 1, 2, … directions, ``(n,)``, rising to 1.

    Args:
        values: Singular values, falling.
    """
    squares = values**2
    total = float(squares.sum())
    return np.cumsum(squares) / total if total > 0 else np.zeros(len(values))


def rank_for(values: np.ndarray, share: float) -> int:
    """The fewest directions that hold this share of the squared norm; 0 for a zero matrix."""
    found = energy(values)
    if not len(found) or found[-1] == 0:
        return 0
    return int(np.searchsorted(found, share - 1e-12) + 1)


def describe(values: np.ndarray) -> dict[str, Any]:
    """The numbers of one layer's update from its singular values, falling."""
    top = float(values.max(initial=0.0))
    return {
        "singular_values": values,
        "rank": int((values > RANK_TOLERANCE * top).sum()) if top > 0 else 0,
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        "rank_for_energy": {f"{share:g}": rank_for(values, share) for share in SHARES},
        "norm": float(np.sqrt((values**2).sum())),
        "spectral_norm": top,
    }


ABOUT = About(
    name="spectrum",
    title="Spectrum of the experts' updates",
    what="How many directions of each layer does an expert really use, of the rank it has?",
    method=(
        "Singular values of scale·B·A from the QR decompositions of B and Aᵀ, exactly and "
        "without the product. Effective rank: exp of the entropy of the values' shares. "
        "Stable rank: squared Frobenius over squared spectral norm. Energy: share of the "
        "squared Frobenius norm in the first r directions. Means are over layers, which count "
        "the same. Nothing is drawn at random: there are no intervals."
    ),
    sources=SOURCES,
    units={
        "effective_rank": "directions, 1 to largest_rank",
        "stable_rank": "directions, 1 to largest_rank",
        "rank_for_energy": "directions",
        "energy": "share of the squared Frobenius norm, 0 to 1",
        "norm": "Frobenius norm",
    },
)


def spectrum(experts: Experts) -> Analysis:
    """Describe the singular values of every update of every expert."""
    results: dict[str, Any] = {"modules": len(experts.modules), "experts": {}}
    groups = {"all": list(experts.modules), **groups_of(experts.modules)}
    for name in experts.names:
        rows = {module: _row(experts, name, module) for module in experts.modules}
        results["experts"][name] = {
            "languages": experts.languages[name],
            "modules": list(rows.values()),
            "means": {
                group: _means([rows[module] for module in modules])
                for group, modules in groups.items()
            },
        }
    return Analysis(
        ABOUT,
        results=results,
        options={"energy_shares": SHARES},
    )


def _row(experts: Experts, name: str, module: str) -> dict[str, Any]:
    update, place = experts.updates[name][module], place_of(module)
    return {
        "module": module,
        **vars(place),
        "largest_rank": min(update.rank, *update.shape),
        **describe(update.singular_values),
    }


def _means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over layers; the energy by direction up to the rank of the smallest."""
    shortest = min(len(row["singular_values"]) for row in rows)
    curves = [energy(row["singular_values"])[:shortest] for row in rows]
    keys = ("effective_rank", "stable_rank", "norm")
    return {
        "layers": len(rows),
        **{key: float(np.mean([row[key] for row in rows])) for key in keys},
        "energy": np.mean(curves, axis=0),
    }
