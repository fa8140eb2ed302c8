"""Distances between experts, and whether they go with those between their languages."""

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.data.files import read_lines
from espnet_moe.errors import UserError
from espnet_moe.routing.families import family_of, load_families

URIEL = Path(__file__).with_name("uriel.tsv")
URIEL_SOURCE = (
    "Littell et al., URIEL and lang2vec: representing languages as typological, geographical, and "
    "phylogenetic vectors, EACL 2017 (distances of languages; CC BY-SA 4.0)"
)
MANTEL_SOURCE = "Mantel, The detection of disease clustering, Cancer Research 27, 1967 (the test)"


def language_distances(
    languages: Mapping[str, Sequence[str]], tree: str | Path, names: Sequence[str]
) -> np.ndarray:
    """Distances of experts by the family tree of their languages.

    0 for the same language, 1 within a family, 2 across families: half the edges between the
    leaves of the tree.

    Args:
        languages: Of each expert.
        tree: YAML of families.
        names: The experts, in the order of the matrix.

    Returns:
        ``(experts, experts)``.

    Raises:
        UserError: For an expert of no or several languages, or one that the tree lacks.
    """
    own = _language_of_each(languages, names)
    family = family_of(load_families(tree), own)
    count = len(names)
    return np.array(
        [
            [
                0.0 if own[i] == own[j] else 1.0 if family[i] == family[j] else 2.0
                for j in range(count)
            ]
            for i in range(count)
        ]
    )


def uriel_distances(
    languages: Mapping[str, Sequence[str]], names: Sequence[str], path: Path = URIEL
) -> dict[str, np.ndarray]:
    """Distances of experts by what linguists have written of their languages.

    Args:
        languages: Of each expert.
        names: The experts, in the order of the matrices.
        path: Table of pairs of languages, ISO 639-1; its comments say what the columns are.

    Returns:
        ``(experts, experts)``, 0 to 1, by ``genetic``, ``syntactic`` and ``inventory``.

    Raises:
        UserError: For an expert of no or several languages, or one that the table lacks.
    """
    own = _language_of_each(languages, names)
    lines = [line for _, line in read_lines(path) if not line.startswith("#")]
    _, _, *kinds = lines[0].split("\t")
    table = {}
    for line in lines[1:]:
        first, second, *values = line.split("\t")
        table[first, second] = table[second, first] = [float(value) for value in values]
    known = {code for pair in table for code in pair}
    if lacking := sorted(set(own) - known):
        raise UserError(
            f"{path.name} lacks {', '.join(lacking)}; it has {', '.join(sorted(known))}"
        )
    zeros = [0.0] * len(kinds)
    whole = np.array([[zeros if a == b else table[a, b] for b in own] for a in own])
    return {kind: whole[:, :, i] for i, kind in enumerate(kinds)}


def _language_of_each(languages: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    several = [name for name in names if len(languages.get(name, ())) != 1]
    if several:
        raise UserError(f"expert(s) {', '.join(several)} are not of one language each")
    return [languages[name][0] for name in names]


def mantel(
    first: np.ndarray, second: np.ndarray, draws: int = 9999, seed: int = 0
) -> dict[str, Any]:
    """Correlate two distance matrices; test it by permuting the rows and columns of one.

    Pearson's correlation over the pairs; one-sided: how often it is as large by chance. Where there
    are no more orders than ``draws``, all of them are tried, and the smallest p that the number of
    experts allows is told.

    Args:
        first: ``(n, n)``, symmetric.
        second: ``(n, n)``, symmetric.
        draws: Random permutations, at most.
        seed: Of the draws.

    Returns:
        ``correlation``, ``p``, ``permutations``, ``exact``, ``smallest_p``, ``pairs``.

    Raises:
        UserError: For fewer than three experts, or distances that are all the same.
    """
    count = len(first)
    if count < 3:
        raise UserError(f"{count} experts make no correlation of distances: at least 3 do")
    upper = np.triu_indices(count, 1)
    a, b = first[upper], second[upper]
    if np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        raise UserError("all distances are the same: there is nothing to correlate")
    a = (a - a.mean()) / a.std()

    def correlation(order: Sequence[int] | np.ndarray) -> float:
        moved = second[np.array(order)][:, np.array(order)][upper]
        return float((a * (moved - b.mean())).mean() / b.std())

    observed = correlation(range(count))
    exact = math.factorial(count) <= draws
    if exact:
        found = np.array([correlation(order) for order in permutations(range(count))])
    else:
        generator = np.random.default_rng(seed)
        drawn = [correlation(generator.permutation(count)) for _ in range(draws)]
        found = np.array([observed, *drawn])
    as_large = int((found >= observed - 1e-12).sum())
    best = int((found >= found.max() - 1e-12).sum())
    return {
        "correlation": observed,
        "p": as_large / len(found),
        "permutations": len(found),
        "exact": exact,
        "smallest_p": best / len(found) if exact else 1 / len(found),
        "pairs": len(b),
    }


def linkage_of(distances: np.ndarray) -> np.ndarray:
    """Average linkage of a distance matrix ``(n, n)``, as scipy writes it ``(n - 1, 4)``."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    symmetric = np.clip((distances + distances.T) / 2, 0.0, None)
    np.fill_diagonal(symmetric, 0.0)
    return np.asarray(linkage(squareform(symmetric, checks=False), "average"))
