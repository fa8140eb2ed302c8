"""Common Voice's layout, any release from 11 on, to be written for the mini corpus.

The folders are drawn in the reader, `data/corpora/commonvoice.py`.
"""

import csv
import hashlib
import io
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from espnet_moe.data.corpora.commonvoice import LOCALES, columns_of
from espnet_moe.data.mini_layouts import Clip, Durations, Recording, Section, by_section, tsv
from espnet_moe.data.mini_recording import share_of

RELEASES = {
    "11.0": "2022-09-21",
    "12.0": "2022-12-07",
    "13.0": "2023-03-09",
    "14.0": "2023-06-23",
    "15.0": "2023-09-08",
    "16.0": "2023-12-06",
    "16.1": "2023-12-06",
    "17.0": "2024-03-15",
    "18.0": "2024-06-14",
    "19.0": "2024-09-13",
    "20.0": "2024-12-06",
    "21.0": "2025-03-14",
    "22.0": "2025-06-20",
    "23.0": "2025-09-05",
    "24.0": "2025-12-05",
    "25.0": "2026-03-09",
    "26.0": "2026-06-12",
    "27.0": "2026-09-11",
}
FIRST_TELUGU_RELEASE = 16

# Composed letters that Unicode's NFC takes apart; written by code so that no editor does it here.
_NUKTA_LETTERS = tuple(map(chr, [*range(0x958, 0x960), 0xA33, 0xA36, 0xA59, 0xA5A, 0xA5B, 0xA5E]))
_EXTRA_SHARE = 50  # one sentence in so many is a further one that no split uses


@dataclass(frozen=True)
class CommonVoice:
    """Common Voice: mp3, sentences as one reads them, clip tables of any release from 11 on.

    Attributes:
        language: ISO 639-1 code.
        release: One of ``RELEASES``.
    """

    language: str
    release: str

    @property
    def folders(self) -> tuple[str, ...]:
        """The locale's folder."""
        return (f"cv-corpus-{self.release}-{RELEASES[self.release]}/{LOCALES[self.language]}",)

    @property
    def _version(self) -> int:
        return int(self.release.split(".")[0])

    def sections(self, size: int, dev_size: int, test_size: int) -> list[Section]:
        """Splits, and a few clips and sentences that are in none."""
        extra = max(1, size // _EXTRA_SHARE)
        return [
            Section("train", "train", size),
            Section("dev", "dev", dev_size),
            Section("test", "test", test_size),
            Section("invalidated", "train", extra),
            Section("other", "train", extra),
            Section("unvalidated", "train", extra),  # sentences that nobody has read
        ]

    def clips(self, recordings: Sequence[Recording]) -> list[Clip]:
        """An mp3 of each: 48 kHz, and 32 kHz in newer releases."""
        rate = 48000 if self._version < 17 else 32000
        return [
            Clip(recording, f"{self.folders[0]}/clips/{self._name(recording)}", rate)
            for recording in recordings
            if recording.section != "unvalidated"
        ]

    def tables(self, recordings: Sequence[Recording], durations: Durations) -> dict[str, str]:
        """The clip tables, unquoted, and the release's further tables."""
        sections = by_section(recordings)
        unread = sections.pop("unvalidated")
        validated = [*sections["train"], *sections["dev"], *sections["test"]]
        clip_tables = {**sections, "validated": validated}
        files = {f"{name}.tsv": self._clip_table(rows) for name, rows in clip_tables.items()}
        reported = sections["other"][:1]
        files["reported.tsv"] = tsv(
            ("sentence", "sentence_id", "locale", "reason"),
            *((self._sentence(r), self._sentence_id(r), self._locale, "other") for r in reported),
        )
        lengths = [(self._name(r), str(round(durations[r] * 1000))) for r in durations]
        if self._version in (14, 15):
            files["times.txt"] = tsv(*lengths)
        if self._version >= 15:
            files["clip_durations.tsv"] = tsv(("clip", "duration[ms]"), *lengths)
        if self._version >= 17:
            spoken = list(itertools.chain.from_iterable(sections.values()))
            files |= self._sentence_tables(spoken, unread)
        return {f"{self.folders[0]}/{name}": content for name, content in files.items()}

    @property
    def _locale(self) -> str:
        return LOCALES[self.language]

    def _name(self, recording: Recording) -> str:
        names = [section.name for section in self.sections(1, 1, 1)]
        number = 40_000_000 + 1_000_000 * names.index(recording.section) + recording.index
        return f"common_voice_{self._locale}_{number}.mp3"

    def _sentence(self, recording: Recording) -> str:
        return written(recording, self.language)

    def _sentence_id(self, recording: Recording) -> str:
        return hashlib.sha256(self._sentence(recording).encode()).hexdigest()

    def _clip_table(self, recordings: Iterable[Recording]) -> str:
        columns = columns_of(self._version)
        rows = [self._row(recording) for recording in recordings]
        rows.sort(key=lambda row: (row["client_id"], row["path"]))
        return tsv(columns, *([row.get(column, "") for column in columns] for row in rows))

    def _row(self, recording: Recording) -> dict[str, str]:
        speaker = recording.voice.speaker
        words = {"m": "male", "f": "female"}
        if self._version >= 17:
            words = {"m": "male_masculine", "f": "female_feminine"}
        tells = share_of("tells gender", speaker) < 0.8
        ages = ("", "teens", "twenties", "thirties", "fourties", "fifties")
        votes = {"invalidated": ("0", "2"), "other": ("0", "0")}
        ups, downs = votes.get(recording.section, ("2", "0"))
        return {
            "client_id": hashlib.sha512(f"mini {speaker}".encode()).hexdigest(),
            "path": self._name(recording),
            "sentence_id": self._sentence_id(recording),
            "sentence": self._sentence(recording),
            "up_votes": ups,
            "down_votes": downs,
            "age": ages[int(len(ages) * share_of("age", speaker))],
            "gender": words[recording.voice.gender] if tells else "",
            "locale": self._locale,
        }

    def _sentence_tables(
        self, spoken: Sequence[Recording], unread: Sequence[Recording]
    ) -> dict[str, str]:
        """Unlike the clip tables these are quoted."""
        columns = ["sentence_id", "sentence", "sentence_domain", "source"]
        validated = [[self._sentence_id(r), self._sentence(r), "", "mini"] for r in spoken]
        waiting = [[self._sentence_id(r), f'"{self._sentence(r)}"', "", "mini"] for r in unread]
        return {
            "validated_sentences.tsv": _quoted_tsv(
                [*columns, "is_used", "clips_count"], *([*row, "1", "1"] for row in validated)
            ),
            "unvalidated_sentences.tsv": _quoted_tsv(columns, *waiting),
        }


def written(recording: Recording, language: str) -> str:
    """Write a sentence as Common Voice shows it to its readers.

    With its final mark and, in Italian, a capital; one in twenty stands in double quotes, and one
    in ten is not in Unicode's composed form (NFC), as is found there.
    """
    text = recording.text
    if language == "it":
        text = text[0].upper() + text[1:]
    danda = language in ("hi", "pa")
    text += "?" if recording.question else "।" if danda else "."
    if share_of("quoted", recording.text) < 0.05:
        text = f'"{text}"'
    if share_of("not composed", recording.text) < 0.1:
        text = unicodedata.normalize("NFD", text)
        # Letters with a nukta are the other way about: composed, they are not NFC.
        for letter in _NUKTA_LETTERS:
            text = text.replace(unicodedata.normalize("NFD", letter), letter)
    return text


def _quoted_tsv(*rows: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter="\t", lineterminator="\n").writerows(rows)
    return buffer.getvalue()
