"""Which pieces of which utterances make a code-switched set: the plan, without any audio.

Three kinds, after where the language changes:

- ``inter``: between sentences; two or three whole utterances.
- ``intra``: within a sentence; two or three stretches of a few words, cut at word boundaries.
- ``rapid``: two languages in turn, word by word, each piece shorter than a second.

The plan follows from the seed and the utterances alone, not from the order they are given in. All
utterances are used about equally often, and neighbouring pieces are of different languages.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from espnet_moe.config import build_options
from espnet_moe.data.extras import Word
from espnet_moe.data.utterance import Seconds, Utterance, safe_id
from espnet_moe.errors import UserError

KINDS = ("inter", "intra", "rapid")
SPEAKERS = ("same", "different", "any")

_MIN_PIECE: Seconds = 0.1
_TRIES = 20_000  # pieces looked at for one utterance before it is given up


class CodeSwitchError(UserError):
    """Options or data that no code-switched set can be made of."""


@dataclass(frozen=True)
class Sizes:
    """Number of utterances of each kind; 0 makes no such set."""

    inter: int = 100
    intra: int = 50
    rapid: int = 50


@dataclass(frozen=True)
class CodeSwitchOptions:
    """What to make.

    Attributes:
        seed: Of all that is drawn.
        sizes: Utterances by kind.
        name: Beginning of the sets' names: ``<name>_<kind>`` and ``<name>_<kind>_parts``.
        pieces: Fewest and most pieces of an utterance, ``inter`` and ``intra``.
        words: Fewest and most words of a piece, ``intra``.
        rapid_pieces: Fewest and most pieces of an utterance, ``rapid``.
        rapid_words: Fewest and most words of a piece, ``rapid``.
        rapid_seconds: A piece is shorter, ``rapid`` (its overlaps not counted).
        speakers: Of an utterance's pieces: ``same`` for all, ``different`` for neighbours, or
            ``any``. Names that differ in their language only (``cv_hi_0f01``, ``cv_it_0f01``) are
            one person.
        cross_fade: Shortest and longest overlap of two pieces, seconds.
        gap: Shortest and longest silence between whole utterances (``inter``), seconds; without
            one they overlap.
        level: Root mean square of each piece, dB below full scale (a negative number).
        max_seconds: An utterance is not longer.
        min_utterances: Of a language, for its pieces not to be the same again and again.

    Raises:
        CodeSwitchError: Naming everything that is wrong.
    """

    seed: int = 0
    sizes: Sizes = field(default_factory=Sizes)
    name: str = "test_cs"
    pieces: tuple[int, int] = (2, 3)
    words: tuple[int, int] = (2, 4)
    rapid_pieces: tuple[int, int] = (4, 6)
    rapid_words: tuple[int, int] = (1, 2)
    rapid_seconds: Seconds = 1.0
    speakers: str = "any"
    cross_fade: tuple[Seconds, Seconds] = (0.02, 0.05)
    gap: tuple[Seconds, Seconds] = (0.0, 0.0)
    level: float = -26.0
    max_seconds: Seconds = 28.0
    min_utterances: int = 5

    def __post_init__(self) -> None:
        problems = []
        limits = {"pieces": 2, "words": 1, "rapid_pieces": 2, "rapid_words": 1}
        for name, least in {**limits, "cross_fade": 0, "gap": 0}.items():
            value = getattr(self, name)
            numbers = all(isinstance(v, int | float) for v in value) and len(value) == 2
            if name in limits:
                numbers = numbers and all(isinstance(v, int) for v in value)
            if not numbers or not least <= value[0] <= value[1]:
                kind = "whole numbers" if name in limits else "numbers"
                problems.append(f"{name} is two {kind} from {least} on, the lower first: {value}")
        sizes = [getattr(self.sizes, kind) for kind in KINDS]
        if min(sizes) < 0 or not any(sizes):
            problems.append("sizes must not be negative, and one must be above 0")
        if self.speakers not in SPEAKERS:
            problems.append(f"no speakers '{self.speakers}'; legal are {', '.join(SPEAKERS)}")
        if not self.name.startswith("test") or safe_id(self.name) != self.name:
            problems.append(f"name is '{self.name}', but must be a word that begins with test")
        if self.level >= 0:
            problems.append(f"level is {self.level:g} dB, but must be below 0")
        if not 2 * _MIN_PIECE < self.max_seconds <= 30:
            problems.append(f"max_seconds is {self.max_seconds:g}; legal is up to 30")
        if self.rapid_seconds <= _MIN_PIECE:
            problems.append(f"rapid_seconds is {self.rapid_seconds:g}, but must be above 0.1")
        if self.min_utterances < 1:
            problems.append("min_utterances must be at least 1")
        if problems:
            raise CodeSwitchError("; ".join(problems))


def set_names(options: CodeSwitchOptions) -> list[str]:
    """Names of the sets that the options ask for, each followed by that of its parts."""
    kinds = [kind for kind in KINDS if getattr(options.sizes, kind) > 0]
    return [f"{options.name}_{kind}{end}" for kind in kinds for end in ("", "_parts")]


def codeswitch_options(conf: Mapping[str, object] | None) -> CodeSwitchOptions:
    """Make the options from a mapping as read from YAML, ``sizes`` being a mapping itself.

    Raises:
        ConfigError: For unknown keys or values of another type.
        CodeSwitchError: For values that are not legal.
    """
    conf = dict(conf or {})
    if "sizes" in conf:
        sizes = conf["sizes"]
        if not isinstance(sizes, Mapping):
            raise CodeSwitchError(f"sizes is a number by kind ({', '.join(KINDS)}), not {sizes!r}")
        conf["sizes"] = build_options(Sizes, sizes, "sizes")
    return build_options(CodeSwitchOptions, conf, "code-switching")


@dataclass(frozen=True)
class Piece:
    """A stretch of an utterance.

    Attributes:
        source: The utterance it is of.
        start: Seconds from the beginning of the utterance.
        end: Seconds from the beginning of the utterance.
        text: What is said.
        words: Those in it, at their times in the utterance; empty where not known.
    """

    source: Utterance
    start: Seconds
    end: Seconds
    text: str
    words: tuple[Word, ...] = ()

    @property
    def seconds(self) -> Seconds:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True)
class Plan:
    """A code-switched utterance to make.

    Attributes:
        utt_id: Its name; the speaker's before the ``-``.
        speaker: A name for all its speakers together.
        pieces: In their order.
        cross_fades: Overlap of each two neighbours, seconds.
        gaps: Silence between each two neighbours, seconds; 0 where they overlap.
    """

    utt_id: str
    speaker: str
    pieces: tuple[Piece, ...]
    cross_fades: tuple[Seconds, ...]
    gaps: tuple[Seconds, ...]


def person(utt: Utterance) -> str:
    """Return the speaker's name without the language in it."""
    return "_".join(part for part in utt.speaker.split("_") if part != utt.language)


def plan_codeswitch(
    kind: str,
    utterances: Sequence[Utterance],
    timings: Mapping[str, Sequence[Word]],
    options: CodeSwitchOptions,
) -> list[Plan]:
    """Choose the pieces of a set.

    Args:
        kind: One of ``KINDS``.
        utterances: Of at least two languages, with durations.
        timings: Words by utterance id; what has none is not used but for ``inter``.
        options: What to make.

    Raises:
        CodeSwitchError: When the utterances are too few, too long, or not of speakers as asked for.
    """
    if kind != "inter":
        utterances = [utt for utt in utterances if timings.get(utt.utt_id)]
    planner = _Planner(kind, utterances, timings, options)
    return [planner.plan(number) for number in range(getattr(options.sizes, kind))]


class _Planner:
    """Hands out utterances evenly: the least used language, and of it the least used utterance."""

    def __init__(
        self,
        kind: str,
        utterances: Sequence[Utterance],
        timings: Mapping[str, Sequence[Word]],
        options: CodeSwitchOptions,
    ) -> None:
        self.kind, self.options, self.timings = kind, options, timings
        self.draw = _draw_of(options.seed, kind)
        self.pool: dict[str, list[Utterance]] = defaultdict(list)
        ordered = sorted(utterances, key=lambda utt: utt.utt_id.encode())
        for index in self.draw.permutation(len(ordered)):
            self.pool[ordered[index].language].append(ordered[index])
        self.pool = {language: self.pool[language] for language in sorted(self.pool)}
        # No piece is shorter: what a piece must leave room for.
        self.shortest = _MIN_PIECE
        if kind == "inter":
            self.shortest = min((utt.duration or 0.0 for utt in ordered), default=0.0)
        self.tries = 0
        self.used: Counter[str] = Counter()
        self.used_of: Counter[str] = Counter()

    def plan(self, number: int) -> Plan:
        """Choose the pieces of one utterance, and how they are joined."""
        rapid = self.kind == "rapid"
        fewest, most = self.options.rapid_pieces if rapid else self.options.pieces
        count = int(self.draw.integers(fewest, most + 1))
        pieces = None
        while pieces is None and count >= fewest:
            self.tries = 0
            pieces, count = self._chain([], count), count - 1
        if pieces is None:
            raise CodeSwitchError(
                f"no {fewest} {'utterances' if self.kind == 'inter' else 'pieces'} go together for "
                f"the kind {self.kind}: languages must differ, speakers be "
                f"{self.options.speakers}, and all last {self.options.max_seconds:g} s at most"
            )
        for piece in pieces:
            self.used[piece.source.utt_id] += 1
            self.used_of[piece.source.language] += 1
        joins = len(pieces) - 1
        gap = self.options.gap if self.kind == "inter" else (0.0, 0.0)
        speakers = "/".join(piece.source.speaker for piece in pieces)
        speaker = f"cs_{hashlib.sha256(speakers.encode()).hexdigest()[:12]}"
        return Plan(
            utt_id=f"{speaker}-{self.kind}_{number:05d}",
            speaker=speaker,
            pieces=tuple(pieces),
            cross_fades=tuple(self.draw.uniform(*self.options.cross_fade, joins).tolist()),
            gaps=tuple(self.draw.uniform(*gap, joins).tolist()),
        )

    def _chain(self, chosen: list[Piece], count: int) -> list[Piece] | None:
        """Add pieces until there are so many; ``None`` where that cannot be."""
        if len(chosen) == count:
            return chosen
        for piece in self._candidates(chosen, count - len(chosen) - 1):
            self.tries += 1
            if self.tries > _TRIES:
                return None
            if (whole := self._chain([*chosen, piece], count)) is not None:
                return whole
        return None

    def _candidates(self, chosen: list[Piece], left: int) -> Iterator[Piece]:
        """What may come next, the least used first; so many pieces are to follow it."""
        # Between any two pieces there may be a gap; an overlap only shortens the whole.
        longest = self.options.max_seconds - sum(piece.seconds for piece in chosen)
        longest -= self.options.gap[1] * (len(chosen) + left) + self.shortest * left
        present = {piece.source.utt_id for piece in chosen}
        for language in self._languages([piece.source.language for piece in chosen]):
            for utt in sorted(self.pool[language], key=lambda utt: self.used[utt.utt_id]):
                if utt.utt_id in present or not self._suits(utt, chosen):
                    continue
                piece = self._piece(utt)
                if piece is not None and piece.seconds <= longest:
                    yield piece

    def _languages(self, chosen: list[str]) -> list[str]:
        """Which languages may come next, the least used (for its size) first."""
        if self.kind == "rapid" and len(chosen) > 1:
            return [chosen[-2]]
        names = [name for name in self.pool if not chosen or name != chosen[-1]]
        share = {name: self.used_of[name] / len(self.pool[name]) for name in names}
        ties = dict(zip(names, self.draw.random(len(names)), strict=True))
        return sorted(names, key=lambda name: (share[name], ties[name]))

    def _suits(self, utt: Utterance, chosen: list[Piece]) -> bool:
        if not chosen or self.options.speakers == "any":
            return True
        one_person = person(utt) == person(chosen[-1].source)
        return one_person == (self.options.speakers == "same")

    def _piece(self, utt: Utterance) -> Piece | None:
        """Cut a stretch out of an utterance at random; ``None`` where it has none that is legal."""
        words = tuple(self.timings.get(utt.utt_id, ()))
        shortest = max(_MIN_PIECE, 2 * self.options.cross_fade[1])
        if self.kind == "inter":
            seconds = utt.duration or 0.0
            return Piece(utt, 0.0, seconds, utt.text, words) if seconds >= shortest else None
        rapid = self.kind == "rapid"
        fewest, most = self.options.rapid_words if rapid else self.options.words
        stretches = [
            words[first : first + count]
            for count in range(fewest, most + 1)
            for first in range(len(words) - count + 1)
        ]
        legal = [
            stretch
            for stretch in stretches
            if stretch[-1].end - stretch[0].start >= shortest
            and all(word.duration > 0 for word in stretch)
            and (not rapid or stretch[-1].end - stretch[0].start < self.options.rapid_seconds)
        ]
        if not legal:
            return None
        chosen = legal[int(self.draw.integers(len(legal)))]
        text = " ".join(word.word for word in chosen)
        return Piece(utt, chosen[0].start, chosen[-1].end, text, chosen)


def check_pool(
    utterances: Sequence[Utterance],
    timings: Mapping[str, Sequence[Word]],
    options: CodeSwitchOptions,
) -> None:
    """Check that code-switched sets can be made of utterances.

    Raises:
        CodeSwitchError: Naming everything that is in the way.
    """
    problems = []
    counts = Counter(utt.language for utt in utterances)
    if len(counts) < 2:
        problems.append(
            f"all utterances are of one language ({', '.join(counts) or 'there are none'}); give "
            "sets of two languages or more"
        )
    timed = Counter(utt.language for utt in utterances if timings.get(utt.utt_id))
    wanting = [kind for kind in KINDS[1:] if getattr(options.sizes, kind)]
    for language, count in sorted(counts.items()):
        if wanting and not timed[language]:
            problems.append(
                f"no utterance of {language} has word times, which {' and '.join(wanting)} need; "
                "the mini corpus has them, for others lay a forced alignment beside the corpus "
                "(data/corpora/alignments.py) and run stages 1 to 3 again, or set sizes: "
                f"{{{', '.join(f'{kind}: 0' for kind in wanting)}}}"
            )
        few = min(count, timed[language]) if wanting and timed[language] else count
        if few < options.min_utterances:
            problems.append(
                f"{language} has {few} usable utterances, but {options.min_utterances} are needed "
                "(min_utterances)"
            )
    if options.speakers == "same" and len(counts) > 1:
        languages: dict[str, set[str]] = defaultdict(set)
        for utt in utterances:
            languages[person(utt)].add(utt.language)
        if all(len(spoken) < 2 for spoken in languages.values()):
            problems.append(
                "speakers is same, but nobody speaks two of the languages (names that differ in "
                "the language only are one person); say speakers: any"
            )
    if problems:
        raise CodeSwitchError("no code-switched set can be made:\n  " + "\n  ".join(problems))


def _draw_of(*key: object) -> np.random.Generator:
    """Return random numbers that follow from a key alone, on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
