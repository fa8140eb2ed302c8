"""Stage 6: from data sets, and their embeddings, to experts and the sets that train them.

Everything that can be wrong with options and inputs is found before anything is clustered, and
before anything is written.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from espnet_moe.clustering.assignment import AssignmentError, AssignOptions, SplitOptions, assign
from espnet_moe.clustering.expert_sets import describe, join_sets, plan_sets, write_sets
from espnet_moe.clustering.statistics import cluster_report, format_report
from espnet_moe.config import build_options
from espnet_moe.data.datadir import DataDir
from espnet_moe.data.files import listed, write_text
from espnet_moe.errors import UserError

if TYPE_CHECKING:  # experts by language need none of it
    from espnet_moe.clustering.clusterers import ClustererOptions
    from espnet_moe.clustering.embeddings import Embeddings
    from espnet_moe.clustering.reduction import Reduction
    from espnet_moe.clustering.selection import SelectionOptions

FORMAT = 1  # of experts.json
LANGUAGE = "language"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AssignRequest:
    """What is to be assigned.

    Attributes:
        experts_by: ``language``, or the name of a clusterer.
        train: Formatted data directories.
        dev: Formatted data directories.
        test: Formatted data directories, for utt2experts only.
        embeddings: Folder with the embeddings of each set under the set's name.
        base_digest: Of the backbone that the embeddings are to be of; ``None`` checks nothing.
        layer: Encoder layer that they are to be of; ``None`` checks nothing.
    """

    experts_by: str
    train: Sequence[str]
    dev: Sequence[str]
    test: Sequence[str] = ()
    embeddings: str | None = None
    base_digest: str | None = None
    layer: int | None = None


@dataclass(frozen=True)
class _Clustering:
    """How to cluster, all options checked."""

    clusterer: "ClustererOptions"
    reduction: "Reduction"
    selection: "SelectionOptions | None"


@dataclass(frozen=True)
class _Inputs:
    """All that is read before anything is clustered, checked."""

    options: SplitOptions
    train: DataDir
    dev: DataDir
    test: DataDir
    clustering: _Clustering | None
    embeddings: "Embeddings | None"


@dataclass(frozen=True)
class _Clusters:
    memberships: np.ndarray  # (n, C)
    values: np.ndarray  # (n, dims), what was clustered
    scores: Mapping[int, float]  # silhouette by number of clusters


def assign_experts(
    request: AssignRequest, conf: Mapping[str, Any], out: str | Path
) -> dict[str, Any]:
    """Make experts, write the sets that train them, and ``experts.json`` last.

    Args:
        request: What is to be assigned.
        conf: Options: keys of ``SplitOptions`` for languages, of ``AssignOptions`` for clusters.
        out: Folder to write into, such as ``exp/assign_kmeans``.

    Returns:
        What ``experts.json`` holds.

    Raises:
        UserError: For options that are unknown or do not fit together, data or embeddings that are
            missing or do not match (all at once), and results that leave an expert without data.
    """
    inputs = _checked(request, conf)
    sets = (inputs.train, inputs.dev, inputs.test)
    utterances = [utt for data in sets for utt in data.utterances]
    ids, languages = [u.utt_id for u in utterances], [u.language for u in utterances]
    trained = np.arange(len(ids)) < len(inputs.train.utterances)
    clusters = _cluster(inputs, ids, trained)
    made = assign(
        ids,
        languages,
        None if clusters is None else clusters.memberships,
        inputs.options,
        None if clusters is None else clusters.values,
        trained,
    )
    table = {
        key: {made.experts[column]: float(row[column]) for column in np.flatnonzero(row)}
        for key, row in zip(ids, made.weights, strict=True)
    }
    dropped = {key for key, drop in zip(ids, made.dropped, strict=True) if drop}
    plan = plan_sets(inputs.train, inputs.dev, made.experts, table, dropped, inputs.options)
    sizes, shares = describe(inputs.train, made.experts, table, dropped)
    strongest = np.where(made.dropped, -1, made.weights.argmax(axis=1))[trained]
    manifest = {
        "format": FORMAT,
        "experts": list(made.experts),
        "experts_by": request.experts_by,
        "languages": list(dict.fromkeys(languages)),
        "settings": asdict(inputs.options),
        **_facts(inputs.embeddings),
        "sizes": sizes,
        "language_shares": shares,
        "fractions": {name: round(share, 4) for name, share in plan.fractions.items()},
        "dropped": len(dropped),
        "notes": [*made.notes, *plan.notes],
        "report": _report("experts", inputs.train, strongest, made.experts),
        **_cluster_facts(clusters, inputs.train, trained),
    }
    for name, size in sizes.items():
        logger.info("expert %s: %s; languages %s", name, size, shares[name])
    out = Path(out)
    (out / "experts.json").unlink(missing_ok=True)  # until the new sets are whole
    write_sets(out, plan, table)
    write_text(out / "experts.json", json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
    return manifest


def _checked(request: AssignRequest, conf: Mapping[str, Any]) -> _Inputs:
    problems: list[str] = []
    options, clustering = _check_options(request, conf, problems)
    train, dev, test = (_joined(paths, problems) for paths in _paths(request).values())
    _check_disjoint(train, dev, test, problems)
    embeddings = None
    if request.experts_by != LANGUAGE and request.embeddings is not None:
        embeddings = _read_embeddings(request, problems)
    if problems or options is None:
        raise AssignmentError("\n".join(dict.fromkeys(problems)))
    return _Inputs(options, train, dev, test, clustering, embeddings)


def _paths(request: AssignRequest) -> dict[str, Sequence[str]]:
    return {"train": request.train, "dev": request.dev, "test": request.test}


def _check_options(
    request: AssignRequest, conf: Mapping[str, Any], problems: list[str]
) -> tuple[SplitOptions | None, _Clustering | None]:
    """Build all options; what is wrong is added to ``problems``."""
    cls = SplitOptions if request.experts_by == LANGUAGE else AssignOptions
    options = clustering = None
    try:
        options = build_options(cls, conf, f"options of experts by {request.experts_by}")
        if isinstance(options, AssignOptions):
            clustering = _check_clustering(request.experts_by, options)
    except UserError as error:
        problems.append(str(error))
    if request.experts_by != LANGUAGE and request.embeddings is None:
        problems.append(f"experts by {request.experts_by} need --embeddings (stage 5 makes them)")
    problems += [f"--{name} names no set" for name in ("train", "dev") if not _paths(request)[name]]
    return options, clustering


def _check_clustering(name: str, options: AssignOptions) -> _Clustering:
    from espnet_moe.clustering.clusterers import CLUSTERERS
    from espnet_moe.clustering.reduction import ReductionOptions
    from espnet_moe.clustering.selection import SelectionOptions

    if name not in CLUSTERERS:
        raise AssignmentError(
            f"--experts_by {name} is unknown: choose one of {LANGUAGE}, {', '.join(CLUSTERERS)}"
        )
    problems: list[str] = []
    counted = hasattr(CLUSTERERS[name], "count")
    if not counted and (options.count or options.candidates):
        problems.append(f"{name} finds the number of clusters itself: leave count, candidates out")
    conf = {"seed": options.seed, **options.clusterer}
    if counted and options.count:
        conf["count"] = options.count
    clusterer = selection = reduction = None
    try:
        clusterer = build_options(CLUSTERERS[name], conf, "clusterer")
    except UserError as error:
        problems.append(str(error))
    try:
        conf = {"seed": options.seed, **options.reduction}
        reduction = build_options(ReductionOptions, conf, "reduction").build()
    except UserError as error:
        problems.append(str(error))
    if options.candidates:
        selection = SelectionOptions(candidates=options.candidates, seed=options.seed)
    if problems or clusterer is None or reduction is None:
        raise AssignmentError("\n".join(problems))
    return _Clustering(clusterer, reduction, selection)


def _joined(paths: Sequence[str], problems: list[str]) -> DataDir:
    try:
        return join_sets(paths)
    except UserError as error:
        problems.append(str(error))
    return DataDir(())


def _check_disjoint(train: DataDir, dev: DataDir, test: DataDir, problems: list[str]) -> None:
    sets = {"train": train, "dev": dev, "test": test}
    ids = {name: {utt.utt_id for utt in data.utterances} for name, data in sets.items()}
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if shared := sorted(ids[one] & ids[other]):
            problems.append(f"in both --{one} and --{other}: {listed(shared, ', ')}")


def _read_embeddings(request: AssignRequest, problems: list[str]) -> "Embeddings | None":
    """Read the embeddings of all sets, and check that they are of these sets and of one base."""
    from espnet_moe.clustering.embeddings import (
        data_digest,
        join_embeddings,
        read_embedding_manifest,
        read_embeddings,
        require_embeddings,
    )

    parts = []
    for path in (path for paths in _paths(request).values() for path in paths):
        folder = Path(request.embeddings or "") / Path(path).name
        try:
            part = read_embeddings(folder)
            parts.append(part)
            require_embeddings(part, request.base_digest, request.layer)
            ids = {utt.utt_id for utt in join_sets([path]).utterances}
        except UserError as error:
            problems.append(str(error))
            continue
        found = set(part.ids)
        differences = [
            f"{len(keys)} {what}: {listed(sorted(keys), ', ')}"
            for what, keys in {
                f"unknown ids, which {path} has not": found - ids,
                f"utterances of {path} have no embedding": ids - found,
            }.items()
            if keys
        ]
        if not differences and read_embedding_manifest(folder)["data_digest"] != data_digest(path):
            differences.append(f"the audio of {path} is another than was embedded")
        if differences:
            problems.append(f"{folder}: {'; '.join(differences)}; extract it again (stage 5)")
    try:
        return join_embeddings(parts) if parts else None
    except UserError as error:
        problems.append(str(error))
    return None


def _cluster(inputs: _Inputs, ids: Sequence[str], trained: np.ndarray) -> _Clusters | None:
    """Reduce and cluster the embeddings of the training rows, then place all rows."""
    if inputs.clustering is None or inputs.embeddings is None:
        return None
    from espnet_moe.clustering.selection import select_count

    how, x = inputs.clustering, inputs.embeddings.rows(ids)
    fitted = how.reduction.fit_transform(x[trained])
    values = np.empty((len(x), fitted.shape[1]))
    values[trained] = fitted
    if not trained.all():
        values[~trained] = how.reduction.transform(x[~trained])
    scores: Mapping[int, float] = {}
    if how.selection is not None:
        chosen = select_count(fitted, how.clusterer, how.selection)
        clusterer, scores = chosen.clusterer, chosen.scores
    else:
        clusterer = how.clusterer.build().fit(fitted)
    return _Clusters(clusterer.memberships(values), values, scores)


def _facts(embeddings: "Embeddings | None") -> dict[str, Any]:
    names = ("base_digest", "layer", "pooling", "context")
    return {} if embeddings is None else {name: getattr(embeddings, name) for name in names}


def _cluster_facts(
    clusters: _Clusters | None, train: DataDir, trained: np.ndarray
) -> dict[str, Any]:
    """What clusters held before any was merged, and the scores that chose their number."""
    if clusters is None:
        return {}
    from espnet_moe.clustering.clusterers import labels_of

    found = clusters.memberships[trained]
    names = [f"cluster {number}" for number in range(found.shape[1])]
    return {
        "clusters": _report("clusters", train, labels_of(found), names),
        "silhouette": {str(count): score for count, score in clusters.scores.items()},
    }


def _report(what: str, train: DataDir, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What experts or clusters hold, each utterance counted for its strongest one."""
    languages = [utt.language for utt in train.utterances]
    speakers = [utt.speaker for utt in train.utterances]
    report = cluster_report(labels, languages, speakers, names)
    logger.info("%s of the training data:\n%s", what, format_report(report))
    return report
