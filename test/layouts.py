"""The mini corpus in further layouts: what AI4Bharat's other corpora look like on disk.

Each function turns one language of a mini Kathbath (``make_mini_corpus``, layout ``kathbath``) into
another layout, with its word times. Noisy recordings need nothing of the kind: it has them.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from espnet_moe.data.audio import SAMPLE_RATE, load_audio
from espnet_moe.data.corpora.alignments import ALIGNMENTS, read_alignments, write_alignments
from espnet_moe.data.corpora.kathbath import LANGUAGES, read_kathbath
from espnet_moe.data.extras import Word
from espnet_moe.data.utterance import Utterance

GAP = 0.3  # seconds between the sentences of a recording


def as_hub(source: Path, out: Path, language: str, shards: int = 2) -> Path:
    """Kathbath as the hub has it: ``out/<name>/{train,valid}-*.parquet``, sorted by gender."""
    folder = out / LANGUAGES[language]
    folder.mkdir(parents=True)
    timings = {}
    for split, name in (("train", "train"), ("dev", "valid")):
        members = sorted(_of(source, language, split), key=lambda utt: str(utt.gender))
        words = read_alignments(source, members)
        count = shards if split == "train" else 1
        for number, part in enumerate(np.array_split(np.arange(len(members)), count)):
            path = folder / f"{name}-{number:05d}-of-{count:05d}.parquet"
            rows = [members[index] for index in part]
            pq.write_table(_table(rows, language), path, row_group_size=4)
            for row, utt in enumerate(rows):
                timings[f"{path.name}#row={row}"] = words[utt.utt_id]
    write_alignments(folder / ALIGNMENTS, timings)
    return folder


def _table(utterances: Iterable[Utterance], language: str) -> pa.Table:
    rows = []
    for utt in utterances:
        path = Path(utt.audio)
        content = path.read_bytes()
        rows.append(
            {
                "fname": path.name,
                "text": utt.text,
                "audio_filepath": {"bytes": content, "path": path.name},
                "lang": LANGUAGES[language],
                "duration": round(len(load_audio(path)) / SAMPLE_RATE, 3),
                "gender": "Male" if utt.gender == "m" else "Female",
                "speaker_id": utt.speaker.rsplit("_", 1)[1],
            }
        )
    return pa.Table.from_pylist(rows)


def as_indicvoices(source: Path, out: Path, language: str) -> Path:
    """IndicVoices: some sentences a wav, ``out/<Name>/v1/{train,valid}``.

    Between them are what the reader leaves out: somebody else, a tag alone, too little, too much.
    """
    folder = out / LANGUAGES[language].capitalize() / "v1"
    timings: dict[str, list[Word]] = {}
    for split, name in (("train", "train"), ("dev", "valid")):
        (folder / name).mkdir(parents=True)
        for speaker, members in _together(_of(source, language, split)).items():
            clip = f"{name}/{int(speaker):016x}_0.wav"
            pieces, segments, end = [], [], 0.0
            words = read_alignments(source, members)
            timings[clip] = []
            for utt in members:
                samples = load_audio(utt.audio)
                start, end = end, end + len(samples) / SAMPLE_RATE
                pieces += [samples, np.zeros(round(GAP * SAMPLE_RATE), np.float32)]
                segments.append((start, end, f"{utt.text} [noise]", 0))
                timings[clip] += [
                    Word(start + word.start, word.duration, word.word) for word in words[utt.utt_id]
                ]
                end += GAP
            segments[1:1] = [
                (0.0, 0.5, members[0].text, 1),
                (0.0, 0.5, "[laughter]", 0),
                (0.0, 0.04, members[0].text, 0),
                (0.0, 30.5, members[0].text, 0),
            ]
            soundfile.write(folder / clip, np.concatenate(pieces), SAMPLE_RATE)
            parts = [
                {"start": start, "end": end, "text": text, "speaker_id": number}
                for start, end, text, number in segments
            ]
            document = {
                "speaker_id": f"S{speaker}",
                "gender": "Male" if members[0].gender == "m" else "Female",
                "scenario": "Extempore",
                "verbatim": parts,
                "normalized": parts,
            }
            content = json.dumps(document, ensure_ascii=False)
            (folder / clip).with_suffix(".json").write_text(content, "utf-8")
    write_alignments(folder / ALIGNMENTS, timings)
    return folder


def as_shrutilipi(source: Path, out: Path, language: str) -> Path:
    """Shrutilipi: some sentences a bulletin, in ``out/data`` and ``out/shrutilipi_fairseq``."""
    name = LANGUAGES[language]
    folder, tables = out / "data" / name, out / "shrutilipi_fairseq" / name
    tables.mkdir(parents=True)
    rows, texts, timings = ["/nlsasfs/newsonair_v5/mini"], [], {}
    members = _of(source, language, "train")
    words = read_alignments(source, members)
    for speaker, spoken in _together(members).items():
        bulletin = f"Regional-Mini-{name.capitalize()}-0705-2019{speaker}"
        (folder / bulletin).mkdir(parents=True)
        for number, utt in enumerate(spoken, start=1):
            clip = f"{bulletin}/sent_{number}.wav"
            samples = load_audio(utt.audio)
            soundfile.write(folder / clip, samples, SAMPLE_RATE)
            rows.append(f"{clip}\t{len(samples)}")
            texts.append(utt.text)
            timings[clip] = words[utt.utt_id]
    (tables / "train.tsv").write_text("".join(f"{row}\n" for row in rows), "utf-8")
    (tables / "train.wrd").write_text("".join(f"{text}\n" for text in texts), "utf-8")
    write_alignments(folder / ALIGNMENTS, timings)
    return folder


LAYOUTS: dict[str, Callable[[Path, Path, str], Path]] = {
    "kathbath": as_hub,
    "indicvoices": as_indicvoices,
    "shrutilipi": as_shrutilipi,
}


def _of(source: Path, language: str, split: str) -> list[Utterance]:
    return read_kathbath(source, language, [split])


def _together(utterances: list[Utterance], count: int = 3) -> dict[str, list[Utterance]]:
    """Group sentences, named by the first one's speaker: the mini corpus has many voices."""
    groups = (utterances[n : n + count] for n in range(0, len(utterances), count))
    return {group[0].speaker.rsplit("_", 1)[1]: group for group in groups}
