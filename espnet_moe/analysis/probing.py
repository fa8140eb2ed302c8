"""What frames tell a linear probe, layer by layer, under the base and under an expert."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espnet_moe.analysis.passes import BASE, Subject, make_batches
from espnet_moe.analysis.phones import features
from espnet_moe.analysis.record import About, Analysis
from espnet_moe.analysis.timings import PHONES, Span, spans_of
from espnet_moe.analysis.tokens import ONSET, Tokens, collect, frame_spans, onsets
from espnet_moe.data.datadir import load_datadir
from espnet_moe.data.extras import Word
from espnet_moe.data.files import listed
from espnet_moe.data.utterance import SAMPLE_RATE, Utterance
from espnet_moe.errors import UserError
from espnet_moe.scoring.error_rates import bootstrap_rates, interval

WORD = "word"
FEATURES = ("kind", "voiced", "place", "manner", "height", "backness", "rounded")
LAYERS = 5  # at most, beside the output
LEAST_PER_CLASS, LEAST_TOKENS = 5, 40  # of a task in training; fewer make no probe
TEST_SHARE = 0.3  # of the speakers

# What features are of, by the kind of spans.
_LABELS = {
    "phones": "frames, by the times of phones",
    "onsets": f"the first {ONSET:g} s of words, by the phone that their spelling begins with",
}

SOURCES = (
    "Hewitt and Liang, Designing and interpreting probes with control tasks, arXiv:1909.03368 "
    "(control tasks, selectivity)",
    "Pasad et al., Layer-wise analysis of a self-supervised speech representation model, "
    "arXiv:2107.04734 (phones and words by layer)",
    "Pedregosa et al., Scikit-learn: machine learning in Python, JMLR 12, 2011 (logistic "
    "regression)",
)


@dataclass(frozen=True)
class Task:
    """Tokens with labels, of utterances of one language.

    Attributes:
        name: ``word`` or a feature of phones.
        rows: Of the representations, ``(tokens,)``.
        labels: ``(tokens,)``.
        types: What each label belongs to, ``(tokens,)``: a phone has one value of a feature.
    """

    name: str
    rows: np.ndarray
    labels: np.ndarray
    types: np.ndarray


def word_task(tokens: Tokens, classes: int) -> Task:
    """Which of the most frequent words a span holds."""
    counts = Counter(span.label for span in tokens.spans)
    kept = {word for word, _ in counts.most_common(classes)}
    rows = np.array([i for i, s in enumerate(tokens.spans) if s.label in kept], dtype=np.int64)
    labels = np.array([tokens.spans[i].label for i in rows], dtype=np.str_)
    return Task(WORD, rows, labels, labels)


def feature_tasks(
    tokens: Tokens, table: Mapping[str, Mapping[str, str]] | None = None
) -> list[Task]:
    """Features of the phones that spans hold; each of the phones that have it.

    Args:
        tokens: Their labels are phones.
        table: Features by phone; without, those of the IPA.
    """
    told = [_features_of(span.label, table) for span in tokens.spans]
    names = dict.fromkeys(k for own in table.values() for k in own) if table else FEATURES
    found = []
    for name in names:
        rows = np.array([i for i, own in enumerate(told) if name in own], dtype=np.int64)
        labels = np.array([told[i][name] for i in rows], dtype=np.str_)
        types = np.array([tokens.spans[i].label for i in rows], dtype=np.str_)
        found.append(Task(name, rows, labels, types))
    return found


def _features_of(symbol: str, table: Mapping[str, Mapping[str, str]] | None) -> Mapping[str, str]:
    return features(symbol) if table is None else table.get(symbol, {})


def control_labels(task: Task, seed: int) -> np.ndarray:
    """Labels that only memory can learn: each type gets one at random, words are shuffled.

    For features, as in Hewitt and Liang: every phone has a random value, always the same, drawn
    as often as the true ones are. Where the type is the label itself (words) that would change
    names only: there the labels are shuffled over the tokens.
    """
    generator = np.random.default_rng(seed)
    if task.name == WORD:
        return generator.permutation(task.labels)
    types = np.unique(task.types)
    drawn = dict(zip(types.tolist(), generator.choice(task.labels, len(types)), strict=True))
    return np.array([drawn[name] for name in task.types.tolist()])


def split_speakers(speakers: np.ndarray, seed: int) -> np.ndarray:
    """Which tokens are for testing, ``(tokens,)``: those of a part of the speakers.

    Raises:
        UserError: For a single speaker.
    """
    names = np.unique(speakers)
    if len(names) < 2:
        raise UserError(f"{len(names)} speaker(s) cannot be split into training and test")
    order = np.random.default_rng(seed).permutation(len(names))
    test = names[order[: max(1, round(TEST_SHARE * len(names)))]]
    return np.isin(speakers, test)


def probe(
    x: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Fit multinomial logistic regression on some tokens, and read the others.

    Args:
        x: ``(tokens, dim)``, standardised by the training tokens.
        labels: ``(tokens,)``.
        test: Mask ``(tokens,)``.
        seed: Of the solver.

    Returns:
        Whether each test token is read right, and whether the most frequent label would be.

    Raises:
        UserError: For a single label in training, or where scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise UserError(
            "probing needs scikit-learn: it comes with espnet_moe[train], or install it"
        ) from None
    if len(np.unique(labels[~test])) < 2:
        raise UserError("the training tokens have one label only: there is nothing to learn")
    # Accuracy settles long before the weights do.
    solver = LogisticRegression(max_iter=300, tol=1e-2, random_state=seed)
    model = make_pipeline(StandardScaler(), solver)
    model.fit(x[~test], labels[~test])
    names, counts = np.unique(labels[~test], return_counts=True)
    return model.predict(x[test]) == labels[test], names[counts.argmax()] == labels[test]


def probe_task(
    task: Task, tokens: Tokens, draws: int = 1000, seed: int = 0
) -> list[dict[str, Any]]:
    """Probe one task in every layer and condition, beside its control task.

    Returns:
        A row each; ``accuracy`` with its interval (test utterances are drawn), ``majority`` (of the
        most frequent label), ``control``, and ``selectivity``, the difference of both tasks.

    Raises:
        UserError: For too few tokens, labels or speakers.
    """
    if not len(task.rows):
        raise UserError("no token has it")
    test = split_speakers(tokens.speakers[task.rows], seed)
    often = Counter(task.labels[~test].tolist())
    kept = np.array([often[label] >= LEAST_PER_CLASS for label in task.labels.tolist()], dtype=bool)
    task = Task(task.name, task.rows[kept], task.labels[kept], task.types[kept])
    test = test[kept]
    if int((~test).sum()) < LEAST_TOKENS or not test.any() or len(np.unique(task.labels)) < 2:
        raise UserError(
            f"{int((~test).sum())} training and {int(test.sum())} test tokens of "
            f"{len(np.unique(task.labels))} labels with {LEAST_PER_CLASS} or more each: too few"
        )
    control = control_labels(task, seed)
    utterances = tokens.utterances[task.rows][test]
    rows, known = [], dict[bytes, dict[str, Any]]()
    for (condition, layer), values in tokens.values.items():
        x = values[task.rows]
        # Below the first expert layer conditions do not differ: one fit serves both.
        key = x.tobytes()
        if key not in known:
            right, majority = probe(x, task.labels, test, seed)
            of_control, _ = probe(x, control, test, seed)
            known[key] = {
                "accuracy": float(right.mean()),
                "interval": _interval(right, utterances, draws, seed),
                "majority": float(majority.mean()),
                "control": float(of_control.mean()),
                "selectivity": float(right.mean() - of_control.mean()),
            }
        rows.append(
            {
                "task": task.name,
                "condition": condition,
                "layer": layer,
                "classes": len(np.unique(task.labels)),
                "train": int((~test).sum()),
                "test": int(test.sum()),
                "test_utterances": len(np.unique(utterances)),
                **known[key],
            }
        )
    return rows


def _interval(
    right: np.ndarray, utterances: np.ndarray, draws: int, seed: int
) -> tuple[float, float]:
    _, owner = np.unique(utterances, return_inverse=True)
    hits, sizes = np.bincount(owner, weights=right), np.bincount(owner)
    low, high = interval(bootstrap_rates(hits, sizes, draws, seed))
    return low / 100, high / 100


def read_timings(
    folders: Sequence[str | Path],
) -> tuple[dict[str, tuple[Word, ...]], dict[str, tuple[Word, ...]]]:
    """Words and phones of data directories by utterance, from ``words.ctm`` and ``phones.ctm``."""
    words: dict[str, tuple[Word, ...]] = {}
    phones: dict[str, tuple[Word, ...]] = {}
    for folder in folders:
        data = load_datadir(folder)
        words |= data.timings
        phones |= data.phones
    return words, phones


ABOUT = About(
    name="probing",
    title="What frames tell a linear probe",
    what="In which layers can phones and words be read, and does an expert make it easier?",
    method=(
        "Logistic regression on encoder states (means over the frames of a span), fitted on "
        "some speakers and tested on others. Words: the most frequent ones of the language. "
        "Features: of phones, frame by frame where phone timings are there, otherwise of the "
        f"first phone of words in their first {ONSET:g} s. Control: the same probe on labels "
        "that only memory can learn (a random value for every phone; shuffled labels for "
        "words). Selectivity is accuracy less that of the control: where it is small, the "
        "probe could tell the phones apart and have learnt their values by heart. Labels with "
        f"fewer than {LEAST_PER_CLASS} training tokens are left out. Layer 0 is what enters "
        "the first encoder layer. Intervals: 95 %, bootstrap over test utterances."
    ),
    sources=SOURCES,
    units={
        "accuracy": "0 to 1, on test tokens",
        "majority": "0 to 1, of the most frequent training label",
        "control": "0 to 1",
        "selectivity": "accuracy less control",
        "train": "tokens",
        "test": "tokens",
    },
)


def probing(
    subject: Subject,
    utterances: Mapping[str, Sequence[Utterance]],
    languages: Mapping[str, Sequence[str]],
    words: Mapping[str, Sequence[Word]],
    phones: Mapping[str, Sequence[Word]],
    classes: int = 20,
    max_tokens: int = 3000,
    batch_size: int = 16,
    draws: int = 1000,
    seed: int = 0,
    table: Mapping[str, Mapping[str, str]] | None = None,
) -> Analysis:
    """Probe the base and the language's own expert for phones and words.

    Args:
        subject: Backbone and experts.
        utterances: By language.
        languages: Of every expert.
        words: By utterance id.
        phones: By utterance id: labels of frames, where they are known.
        classes: Most frequent words that are told apart.
        max_tokens: Spans of each kind a language, at most.
        batch_size: Utterances at once.
        draws: Of the bootstrap over test utterances.
        seed: Of everything drawn.
        table: Features by phone; without, those of the IPA.
    """
    missing: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    labels: dict[str, str] = {}
    numbers = np.linspace(0, subject.backbone.num_encoder_layers, LAYERS).round()
    layers = sorted({int(number) for number in numbers})
    for language, own in utterances.items():
        experts = [e for e, codes in languages.items() if language in codes]
        if not experts:
            missing[language] = "no expert is of this language"
            continue
        batches = make_batches(subject, own, batch_size)
        step = subject.backbone.frame_samples / SAMPLE_RATE
        for source, spans in _sources(language, own, words, phones, step).items():
            drawn = _drawn(spans, max_tokens, seed)
            if not drawn:
                missing[f"{source} of {language}"] = (
                    "no word timings (words.ctm), or spelling does not tell phones"
                    if source == "onsets"
                    else "no word timings (words.ctm)"
                )
                continue
            if source != "words":
                labels[language] = _LABELS[source]
                if unknown := _unknown(drawn, table):
                    missing[f"features of {language}"] = unknown
            if source == "onsets":
                missing[f"phones of {language}"] = f"no {PHONES}: features are of {_LABELS[source]}"
            tokens = collect(subject, batches, drawn, (BASE, experts[0]), layers)
            tasks = (
                [word_task(tokens, classes)] if source == "words" else feature_tasks(tokens, table)
            )
            for task in tasks:
                try:
                    found = probe_task(task, tokens, draws, seed)
                except UserError as error:
                    missing[f"{task.name} of {language}"] = str(error)
                    continue
                rows += [{"language": language, "source": source, **row} for row in found]
    if not rows:
        raise UserError("nothing to probe: " + "; ".join(f"{k}: {v}" for k, v in missing.items()))
    return Analysis(
        ABOUT,
        results={"layers": [*map(str, layers), "output"], "rows": rows},
        options={
            "features of": labels,
            **{"classes": classes, "max_tokens": max_tokens, "draws": draws, "seed": seed},
        },
        not_available=missing,
    )


def _unknown(
    spans: Mapping[str, Sequence[Span]], table: Mapping[str, Mapping[str, str]] | None
) -> str:
    """Which phones have no features, and how often they are there; empty where all have."""
    counts = Counter(span.label for own in spans.values() for span in own)
    unknown = [s for s, _ in counts.most_common() if not _features_of(s, table)]
    share = sum(counts[symbol] for symbol in unknown) / counts.total()
    where = "the IPA's chart" if table is None else "the table"
    if not unknown:
        return ""
    return f"{share:.1%} of the tokens are phones that are not in {where}: {listed(unknown, ', ')}"


def _sources(
    language: str,
    own: Sequence[Utterance],
    words: Mapping[str, Sequence[Word]],
    phones: Mapping[str, Sequence[Word]],
    step: float,
) -> dict[str, dict[str, list[Span]]]:
    """Spans of words, and of phones: their frames, or else the beginnings of words."""
    ids = {utt.utt_id for utt in own}
    heard = {key: value for key, value in words.items() if key in ids}
    timed = {key: value for key, value in phones.items() if key in ids}
    if timed:
        return {"words": spans_of(heard), "phones": frame_spans(spans_of(timed), step)}
    return {"words": spans_of(heard), "onsets": onsets(heard, language)}


def _drawn(spans: Mapping[str, Sequence[Span]], count: int, seed: int) -> dict[str, list[Span]]:
    """At most so many spans of all utterances together, drawn with a seed."""
    every = [(key, span) for key in sorted(spans) for span in spans[key]]
    if len(every) > count:
        chosen = np.random.default_rng(seed).choice(len(every), count, replace=False)
        every = [every[i] for i in np.sort(chosen)]
    found: dict[str, list[Span]] = {}
    for key, span in every:
        found.setdefault(key, []).append(span)
    return found
