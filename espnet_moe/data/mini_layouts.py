"""How corpora lie on disk, to be written for the mini corpus: MLS and Kathbath.

Each layout says which sections it has, which audio files, and what stands in its tables. Nothing
here touches the disk or makes a sound. The folders are drawn in the readers, `data/corpora/`.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from espnet_moe.data.mini_recording import share_of
from espnet_moe.data.mini_voices import Voice
from espnet_moe.data.utterance import Seconds


@dataclass(frozen=True)
class Section:
    """A part of a layout.

    Attributes:
        name: As the layout calls it, such as ``valid``.
        split: Split of the mini corpus that its voices and sentences come from.
        size: Number of recordings.
    """

    name: str
    split: str
    size: int


@dataclass(frozen=True)
class Recording:
    """A sentence read by a speaker.

    Attributes:
        section: Name of its section.
        index: Its place in the section, from 0.
        text: The sentence, normalised.
        question: Whether it asks something.
        voice: The speaker.
    """

    section: str
    index: int
    text: str
    question: bool
    voice: Voice


@dataclass(frozen=True)
class Clip:
    """An audio file of a recording.

    Attributes:
        recording: What is heard.
        path: Below the corpus folder; the suffix tells the format.
        rate: Hz.
        street: Whether much noise is added.
    """

    recording: Recording
    path: str
    rate: int
    street: bool = False


Durations = Mapping[Recording, Seconds]


class Layout(Protocol):
    """What a corpus of a certain layout and language consists of."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the language, below the corpus folder; all in them is the layout's own."""

    def sections(self, size: int, dev_size: int, test_size: int) -> list[Section]:
        """List the sections; those of one split share its sentences out in this order."""

    def clips(self, recordings: Sequence[Recording]) -> list[Clip]:
        """List the audio files."""

    def tables(self, recordings: Sequence[Recording], durations: Durations) -> dict[str, str]:
        """Return the content of each text file by its path below the corpus folder."""


@dataclass(frozen=True)
class Mls:
    """Multilingual LibriSpeech: flac or opus, lower case without punctuation.

    Attributes:
        language: ISO 639-1 code.
        audio: ``flac`` or ``opus``.
    """

    language: str
    audio: str = "flac"

    @property
    def folders(self) -> tuple[str, ...]:
        """The language's folder."""
        return ("mls_italian_opus" if self.audio == "opus" else "mls_italian",)

    def sections(self, size: int, dev_size: int, test_size: int) -> list[Section]:
        """The three splits."""
        sizes = {"train": size, "dev": dev_size, "test": test_size}
        return [Section(name, name, count) for name, count in sizes.items()]

    def clips(self, recordings: Sequence[Recording]) -> list[Clip]:
        """A file of each, below its speaker and book: flac at 16 kHz, opus at 48 kHz."""
        rate = 48000 if self.audio == "opus" else 16000
        names = self._names(recordings)
        return [
            Clip(r, f"{self.folders[0]}/{r.section}/audio/{folder}/{name}.{self.audio}", rate)
            for r, (folder, name) in names.items()
        ]

    def tables(self, recordings: Sequence[Recording], durations: Durations) -> dict[str, str]:
        """Speakers, transcripts, segments, and the handles of limited supervision."""
        names = {recording: name for recording, (_, name) in self._names(recordings).items()}
        files = {"metainfo.txt": self._metainfo(durations)}
        for section, members in by_section(recordings).items():
            files[f"{section}/transcripts.txt"] = tsv(*((names[r], r.text) for r in members))
            files[f"{section}/segments.txt"] = self._segments(members, names, durations)
            if section == "train":
                for part, kept in _handles([names[r] for r in members]).items():
                    files[f"train/limited_supervision/{part}/handles.txt"] = tsv(
                        *((name,) for name in kept)
                    )
        return {f"{self.folders[0]}/{name}": content for name, content in files.items()}

    @staticmethod
    def _book(voice: Voice) -> str:
        return str(1000 + int(9000 * share_of("book", voice.speaker)))

    def _names(self, recordings: Sequence[Recording]) -> dict[Recording, tuple[str, str]]:
        """Folder and file name: utterances of a speaker are counted."""
        counts: Counter[str] = Counter()
        names = {}
        for recording in recordings:
            speaker, book = recording.voice.speaker, self._book(recording.voice)
            number = f"{counts[speaker]:06d}"
            names[recording] = (f"{speaker}/{book}", f"{speaker}_{book}_{number}")
            counts[speaker] += 1
        return names

    def _segments(
        self, recordings: Iterable[Recording], names: Mapping[Recording, str], durations: Durations
    ) -> str:
        """Each reader's segments one after the other in a recording of the book."""
        ends: dict[str, Seconds] = defaultdict(float)
        rows = []
        for r in recordings:
            book = self._book(r.voice)
            start = ends[r.voice.speaker]
            end = ends[r.voice.speaker] = start + durations[r]
            url = f"https://example.org/mini/{book}/{book}_01.mp3"
            rows.append((names[r], url, f"{start:.2f}", f"{end:.2f}"))
        return tsv(*rows)

    def _metainfo(self, durations: Durations) -> str:
        seconds: dict[tuple[str, Voice], Seconds] = defaultdict(float)
        for recording, duration in durations.items():
            seconds[recording.section, recording.voice] += duration
        rows = [("SPEAKER", "GENDER", "PARTITION", "MINUTES", "BOOK ID", "TITLE", "CHAPTER")]
        for (section, voice), length in seconds.items():
            minutes, book = f"{length / 60:.3f}", self._book(voice)
            gender = voice.gender.upper()
            rows.append((voice.speaker, gender, section, minutes, book, "Frasi", "Capitolo 1"))
        widths = (11, 12, 12, 12, 12, 32, 31)
        lines = ("|".join(f"{c:^{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
        return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True)
class Kathbath:
    """AI4Bharat Kathbath: m4a, the tests of known and unknown speakers clean and noisy.

    Attributes:
        language: ISO 639-1 code.
        name: The corpus's own name of the language.
    """

    language: str
    name: str

    @property
    def folders(self) -> tuple[str, ...]:
        """The language's folders of clean and of noisy recordings."""
        return (f"kb_data_clean_m4a/{self.name}", f"kb_data_noisy_m4a/{self.name}")

    def sections(self, size: int, dev_size: int, test_size: int) -> list[Section]:
        """The splits; known speakers read new sentences of the training split."""
        return [
            Section("train", "train", size),
            Section("valid", "dev", dev_size),
            Section("test_known", "train", test_size),
            Section("test", "test", test_size),
        ]

    def clips(self, recordings: Sequence[Recording]) -> list[Clip]:
        """An m4a of each, at 16 or 44.1 kHz by the speaker's telephone; a noisy one of tests."""
        clips = []
        for r in recordings:
            file = f"{r.section}/audio/{self._file(r)}"
            rate = 44100 if share_of("telephone", r.voice.speaker) < 0.3 else 16000
            clips.append(Clip(r, f"{self.folders[0]}/{file}", rate))
            if r.section.startswith("test"):
                clips.append(Clip(r, f"{self.folders[1]}/{file}", rate, street=True))
        return clips

    def tables(self, recordings: Sequence[Recording], durations: Durations) -> dict[str, str]:
        """The transcripts, some with a no-break space."""
        files = {}
        for section, members in by_section(recordings).items():
            rows = tsv(*((self._file(r), self._transcript(r)) for r in members))
            for folder in self.folders[: 2 if section.startswith("test") else 1]:
                files[f"{folder}/{section}/transcription_n2w.txt"] = rows
        return files

    def _file(self, recording: Recording) -> str:
        names = [section.name for section in self.sections(1, 1, 1)]
        number = 100_000 * names.index(recording.section) + recording.index
        voice = recording.voice
        return f"844424930{number:06d}-{voice.speaker}-{voice.gender}.m4a"

    @staticmethod
    def _transcript(recording: Recording) -> str:
        if share_of("no-break", recording.text) < 0.07:
            return recording.text.replace(" ", "\u00a0", 1)
        return recording.text


def _handles(names: Sequence[str]) -> dict[str, list[str]]:
    """The limited sets: nine hours and six times ten minutes, of a fifth of the training set.

    They have nothing in common, unless there are fewer utterances than sets.
    """
    ten_minutes = max(1, len(names) // 300)
    nine_hours = max(1, len(names) // 5 - 6 * ten_minutes)
    turn = itertools.cycle(names)
    parts = {f"1hr/{part}": list(itertools.islice(turn, ten_minutes)) for part in range(6)}
    return {"9hr": list(itertools.islice(turn, nine_hours)), **parts}


def by_section(recordings: Iterable[Recording]) -> dict[str, list[Recording]]:
    """Group recordings by the name of their section."""
    sections: dict[str, list[Recording]] = {}
    for recording in recordings:
        sections.setdefault(recording.section, []).append(recording)
    return sections


def tsv(*rows: Sequence[str]) -> str:
    """Join fields with tabs and end rows with line feeds; nothing is quoted."""
    return "".join("\t".join(row) + "\n" for row in rows)
