"""A small experiment, scored by the scorer, with everything that a page is made of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import save_file

from espnet_moe.files import write_manifest
from espnet_moe.scoring import ScoringOptions, score_systems
from espnet_moe.scoring.results import MANIFEST

EXPERTS = ("hi", "it")
HOSTILE = "<script>alert(1)</script>"
TEXTS = {
    "hi": ("नदी के पास घर है", "गीता घर में है", "आज गर्मी है", "किताब कहाँ है", "वह गाँव में है", "पेड़ बड़ा है"),
    "it": ("oggi piove", "la casa è blu", "il gatto dorme", "dove vai", "ho sonno", "è lunedì"),
}  # fmt: skip
WRONG = {"hi": "पानी", "it": "script"}  # what is heard instead of a first word


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")


def ids(language: str) -> list[str]:
    return [f"s{n}-{language}{n}" for n in range(len(TEXTS[language]))]


def write_data(root: Path) -> None:
    for language, texts in TEXTS.items():
        folder = root / "dump/raw" / f"test_{language}"
        tables: dict[str, list[str]] = {}
        for n, (utt_id, text) in enumerate(zip(ids(language), texts)):
            audio = root / "audio" / f"{utt_id}.wav"
            audio.parent.mkdir(exist_ok=True)
            tone = 0.1 * np.sin(2 * np.pi * (200 + 50 * n) * np.arange(8000) / 16000)
            soundfile.write(audio, tone, 16000)
            for name, value in (
                *(("wav.scp", str(audio)), ("text", text), ("utt2spk", f"s{n}")),
                *(("utt2lang", language), ("utt2dur", "0.5"), ("spk2utt", "")),
            ):
                key = f"s{n} {utt_id}" if name == "spk2utt" else f"{utt_id} {value}"
                tables.setdefault(name, []).append(key)
        tables["corpus"] = ["Tones 1.0"]
        for name, lines in tables.items():
            write(folder / name, "".join(f"{line}\n" for line in lines))


def write_system(root: Path, system: str, wrong: int, routed: bool) -> None:
    """Decode folders in which the first ``wrong`` utterances of each set have a wrong word."""
    folder = root / "exp/tiny" / system / "greedy"
    for language, texts in TEXTS.items():
        lines, stats = [], []
        for n, (utt_id, text) in enumerate(zip(ids(language), texts)):
            words = text.split()
            if n < wrong:
                words[0] = WRONG[language]
            lines.append(f"{utt_id} {' '.join(words)}\n")
            entry = {"utt_id": utt_id, "seconds_audio": 0.5, "latency_ms": 10.0, "stop": "eos"}
            if routed:
                gates = {name: 0.9 if name == language else 0.1 for name in EXPERTS}
                route = {"languages": gates, "experts": gates, "gates": gates}
                entry |= {"language": language, "route": route, "route_ms": 0.1}
            stats.append(json.dumps(entry) + "\n")
        write(folder / f"test_{language}/text", "".join(lines))
        write(folder / f"test_{language}/logdir/output.1/stats.jsonl", "".join(stats))
    facts = {"wall_seconds": 1.0, "audio_seconds": 6.0, "peak_memory_mb": 100.0, "params": 1000}
    facts |= {"trainable_params": 100 if routed else 0, "device": "cpu", "batch_size": 2}
    facts |= {"beam_size": 1, "num_jobs": 1, "command": f"decode {system} <now>"}
    write(folder / "logdir/output.1.json", facts)


def write_experts(root: Path) -> None:
    exp = root / "exp/tiny"
    for name in EXPERTS:
        folder = exp / f"expert_{name}/expert"
        metrics = {"epoch": 3, "loss": 0.5, "acc": 90.0, "wer": 12.5}
        options = {"rank": 4, "where": "both"}
        manifest = {"name": name, "kind": "lora", "phase": "expert", "metrics": metrics}
        write(folder / "expert.json", {**manifest, "languages": [name], "options": options})
        layer = np.zeros((4, 8), dtype=np.float32)
        save_file({"a": layer, "b": layer.T.copy()}, folder / "adapter_model.safetensors")
    assigned = {"experts_by": "language", "experts": list(EXPERTS), "notes": ["by hand"]}
    sizes = {name: {"utterances": 10, "hours": 0.1} for name in EXPERTS}
    write(exp / "assign_language/experts.json", {**assigned, "sizes": sizes})
    language = {"confusion": {"hi": {"hi": 9, "it": 1}}, "utterances": 10, "ece": 0.01}
    router = {"network": "linear", "layer": 2, "experts": list(EXPERTS), "temperature": 1.0}
    facts = {"metrics": {"loss": 0.1, "language": language}}
    write(exp / "router/router/router.json", {**router, "facts": facts})


def write_analysis(root: Path) -> None:
    content = {
        "format": 1,
        "name": "probe",
        "title": "A probe <b>of</b> layers",
        "what": "What do layers know?",
        "method": "By hand, on 10 utterances.",
        "sources": ["A paper"],
        "units": {"accuracy": "share"},
        "options": {"seed": 0},
        "results": {
            "layers": {
                "first": {"utterances": 10, "accuracy": 0.5, "interval": [0.25, 0.75]},
                "last": {"utterances": 10, "accuracy": 0.75, "interval": [0.5, 0.875]},
            },
            "cosine": {"names": ["hi", "it"], "values": [[1.0, 0.125], [0.125, 1.0]]},
            "confusions": [{"reference": "नदी", "hypothesis": HOSTILE, "count": 2}],
        },
        "not_available": {"cka": "no backbone was given"},
    }
    write(root / "exp/tiny/analysis/probe.json", content)
    svg = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
    write(root / "exp/tiny/analysis/probe_layers.svg", svg)


def score(root: Path, *systems: str) -> None:
    exp = root / "exp/tiny"
    score_systems(
        ScoringOptions(
            exp=exp,
            data=root / "dump/raw",
            systems=systems,
            test_sets=("test_hi", "test_it"),
            inference_tag="greedy",
            resamples=1000,
            command="score",
        )
    )
    write_manifest(exp / MANIFEST, [exp / "results.json"])


SYSTEMS = {"baseline": (4, False), "oracle": (1, True), "hard": (2, True)}


@pytest.fixture
def make_experiment(tmp_path: Path) -> Callable[..., Path]:
    """Make ``exp/tiny`` and ``dump/raw``: ``make_experiment("baseline", analysis=False)``."""

    def make(*systems: str, analysis: bool = True) -> Path:
        write_data(tmp_path)
        for system in systems:
            write_system(tmp_path, system, *SYSTEMS[system])
        if analysis:
            write_analysis(tmp_path)
        if len(systems) > 1:
            write_experts(tmp_path)
        score(tmp_path, *systems)
        return tmp_path

    return make


@pytest.fixture
def small(make_experiment: Callable[..., Path]) -> Path:
    """The root of a whole experiment."""
    return make_experiment(*SYSTEMS)
