"""How alike experts are: their updates, the subspaces these act in, and what becomes of speech."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.analysis.cka import Representations, cka_results
from espnet_moe.analysis.distances import (
    MANTEL_SOURCE,
    URIEL_SOURCE,
    language_distances,
    linkage_of,
    mantel,
    uriel_distances,
)
from espnet_moe.analysis.record import About, Analysis, matrix
from espnet_moe.analysis.updates import Experts, Update, place_of
from espnet_moe.errors import UserError

SOURCES = (
    "Hu et al., LoRA, arXiv:2106.09685 (the update scale·BA; section 7.2: subspace similarity)",
    "Björck and Golub, Numerical methods for computing angles between linear subspaces, "
    "Mathematics of Computation 27, 1973",
    "Kornblith et al., Similarity of neural network representations revisited, arXiv:1905.00414 "
    "(linear CKA)",
    "Song et al., Feature selection via dependence maximization, JMLR 13, 2012 (unbiased HSIC)",
    MANTEL_SOURCE,
    URIEL_SOURCE,
)


def cosines(experts: Experts, modules: Sequence[str]) -> np.ndarray:
    """Cosines ``(experts, experts)`` of the updates of these layers, taken as one long vector.

    The cosine with an update that is zero is NaN.
    """
    count = len(experts.names)
    inner = np.zeros((count, count))
    for module in modules:
        own = [experts.updates[name][module] for name in experts.names]
        for i in range(count):
            for j in range(i, count):
                inner[i, j] += own[i].inner(own[j])
    inner = np.triu(inner) + np.triu(inner, 1).T
    norms = np.sqrt(np.clip(np.diag(inner), 0.0, None))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.outer(norms, norms) > 0, inner / np.outer(norms, norms), np.nan)


def principal_cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of the principal angles between the spans of orthonormal columns, falling.

    Args:
        first: ``(dim, k)``.
        second: ``(dim, m)``.

    Returns:
        ``(min(k, m),)`` in [0, 1]; none where a span is empty.
    """
    if not first.shape[1] or not second.shape[1]:
        return np.zeros(0)
    return np.clip(np.linalg.svd(first.T @ second, compute_uv=False), 0.0, 1.0)


def subspace_overlap(first: Update, second: Update) -> dict[str, Any]:
    """How far two updates of a layer write to and read from the same directions.

    Returns:
        For ``written`` (output) and ``read`` (input): ``overlap``, the mean squared cosine of the
        principal angles, 0 to 1 (``φ`` of the LoRA paper); ``chance``, what two random subspaces of
        these sizes have; ``smallest_angle`` and ``median_angle`` in degrees.
    """
    found: dict[str, Any] = {}
    for what, a, b in zip(("written", "read"), first.bases(), second.bases(), strict=True):
        values = principal_cosines(a, b)
        if not len(values):
            found[what] = None
            continue
        angles = np.degrees(np.arccos(values))
        found[what] = {
            "overlap": float((values**2).mean()),
            # E‖UᵀV‖² = k·m / dim for independent random spans; the mean is over min(k, m) angles.
            "chance": max(a.shape[1], b.shape[1]) / a.shape[0],
            "smallest_angle": float(angles.min()),
            "median_angle": float(np.median(angles)),
        }
    return found


ABOUT = About(
    name="similarity",
    title="Similarity of experts",
    what="Do experts change the base alike, and does speech become alike under them?",
    method=(
        "Cosine: of the updates scale·B·A as vectors (they are the same however B and A are "
        "factored). Overlap: mean squared cosine of the principal angles between the column "
        "spaces (written) and row spaces (read) of two updates, mean over layers, beside what "
        "random subspaces have; experts that began from the same random A (the same seed) "
        "still share much of it, which is no likeness of what they learnt. CKA: linear, "
        "debiased, of encoder frames of the same utterances, padding left out; its interval "
        "is a jackknife over groups of utterances (frames of one utterance depend on each "
        "other, which the debiasing does not know). "
        "Language distances: families (0 same language, 1 same family, 2 otherwise), and of URIEL "
        "1 − cosine of what is known of two languages: genetic (branches of Glottolog's trees), "
        "syntactic, inventory (sounds). Their correlations with 1 − similarity are tested "
        "one-sided by permuting experts: with few experts the smallest possible p is large. "
        "p is not corrected for several tests."
    ),
    sources=SOURCES,
    units={
        "cosine": "-1 to 1",
        "overlap": "0 to 1",
        "chance": "overlap of random subspaces of these sizes",
        "angle": "degrees",
        "cka": "1: alike up to rotation and scale; the debiased estimate may fall below 0",
        "norm": "Frobenius norm of all updates together",
    },
)


def similarity(
    experts: Experts,
    tree: str | Path | None = None,
    representations: Mapping[str, Representations] | None = None,
    permutations: int = 9999,
    seed: int = 0,
) -> Analysis:
    """Compare every expert with every other.

    Args:
        experts: At least two, of one base.
        tree: YAML of language families, to correlate with.
        representations: Of the same frames under the base and every expert, by set of utterances;
            ``None`` leaves CKA out.
        permutations: Of the correlation test.
        seed: Of its draws.
    """
    missing: dict[str, str] = {}
    results = _of_updates(experts)
    distances = {"cosine": 1.0 - np.asarray(results["cosine"]["values"])}
    try:
        if not representations:
            raise UserError("no backbone and data were given (--backbone, --data)")
        results["cka"] = cka_results(representations, seed)
        whole = np.asarray(results["cka"]["all"]["layers"][-1]["values"])
        distances["cka"] = 1.0 - whole[1:, 1:]  # without the base
    except UserError as error:
        missing["cka"] = str(error)
    between = _between_languages(experts, tree, missing)
    results["linkage"], results["language_correlation"] = {}, {}
    for what, values in distances.items():
        if not np.isfinite(values).all():
            missing[f"linkage of {what}"] = "an expert's update is zero: it has no direction"
            continue
        results["linkage"][what] = {"names": list(experts.names), "tree": linkage_of(values)}
        for kind, apart in between.items():
            try:
                found = mantel(values, apart, permutations, seed)
                results["language_correlation"].setdefault(what, {})[kind] = found
            except UserError as error:
                missing[f"language_correlation of {what} with {kind}"] = str(error)
    return Analysis(
        ABOUT,
        results=results,
        options={"permutations": permutations, "seed": seed},
        not_available=missing,
    )


def _between_languages(
    experts: Experts, tree: str | Path | None, missing: dict[str, str]
) -> dict[str, np.ndarray]:
    """Distances of the experts' languages by kind; what could not be had is noted."""
    found: dict[str, np.ndarray] = {}
    try:
        if tree is None:
            raise UserError("no family tree was given (--families)")
        found["families"] = language_distances(experts.languages, tree, experts.names)
    except UserError as error:
        missing["language_correlation with families"] = str(error)
    try:
        found |= uriel_distances(experts.languages, experts.names)
    except UserError as error:
        missing["language_correlation with URIEL"] = str(error)
    return found


def _of_updates(experts: Experts) -> dict[str, Any]:
    """What follows from the saved weights alone."""
    names, pairs, sides = experts.names, _pairs(experts), ("written", "read")
    return {
        "experts": {
            name: {
                "languages": experts.languages[name],
                "norm": _norm(experts.updates[name].values()),
                "parameters": sum(u.up.size + u.down.size for u in experts.updates[name].values()),
            }
            for name in names
        },
        "modules": len(experts.modules),
        "cosine": matrix(names, cosines(experts, experts.modules)),
        "cosine_by_place": {
            place: matrix(names, cosines(experts, modules))
            for place, modules in groups_of(experts.modules).items()
        },
        "pairs": pairs,
        "overlap": {side: matrix(names, _overlaps(names, pairs, side)) for side in sides},
        "overlap_chance": {side: _mean_of(pairs, side, "chance") for side in sides},
    }


def groups_of(modules: Sequence[str]) -> dict[str, list[str]]:
    """Modules by part, by layer, and by kind: ``encoder``, ``encoder.3``, ``fc1``."""
    groups: dict[str, list[str]] = {}
    for by in ("part", "layer", "kind"):
        for module in modules:
            place = place_of(module)
            name = {
                "part": place.part or "other",
                "layer": f"{place.part or 'other'}.{place.layer}",
                "kind": place.kind,
            }[by]
            groups.setdefault(name, []).append(module)
    return groups


def _norm(updates: Any) -> float:
    return float(np.sqrt(sum(max(0.0, u.inner(u)) for u in updates)))


def _pairs(experts: Experts) -> list[dict[str, Any]]:
    """Every pair of experts, layer by layer."""
    found = []
    for i, first in enumerate(experts.names):
        for second in experts.names[i + 1 :]:
            rows = []
            for module in experts.modules:
                a, b = experts.updates[first][module], experts.updates[second][module]
                norms = np.sqrt(max(0.0, a.inner(a)) * max(0.0, b.inner(b)))
                cosine = a.inner(b) / norms if norms else float("nan")
                rows.append({"module": module, "cosine": cosine, **subspace_overlap(a, b)})
            found.append({"experts": [first, second], "modules": rows})
    return found


def _overlaps(names: Sequence[str], pairs: Sequence[Mapping[str, Any]], what: str) -> np.ndarray:
    values = np.eye(len(names))
    for pair in pairs:
        i, j = (names.index(name) for name in pair["experts"])
        values[i, j] = values[j, i] = _mean_of([pair], what, "overlap")
    return values


def _mean_of(pairs: Sequence[Mapping[str, Any]], what: str, key: str) -> float:
    values = [row[what][key] for pair in pairs for row in pair["modules"] if row[what]]
    return float(np.mean(values)) if values else float("nan")
