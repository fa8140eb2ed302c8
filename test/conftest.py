"""What several tests share: a small random Whisper, random speech, and a data directory."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samples import TEXTS, random_weights

WHISPER_MINI = Path(__file__).parents[1] / "egs2" / "mini" / "base1" / "whisper_mini"
LANGUAGES = ["en", "hi", "it", "pa", "te"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder: 2 + 2 layers, width 32, bytes as tokens, random weights."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from espnet_moe.backbones.whisper_loading import build_tokenizer
    from espnet_moe.backbones.whisper_tokens import WhisperTokens, special_tokens

    ranks = {bytes([b]): b for b in range(256)}
    ranks |= {b"\xe0\xa4": 256, b"\xe0\xa8": 257, b" \xe0": 258, b"ia": 259}
    tokenizer = build_tokenizer(ranks, special_tokens(LANGUAGES))
    end = WhisperTokens(tokenizer).end_id
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_target_positions=96,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    random_weights(model)
    folder = tmp_path_factory.mktemp("tiny") / "whisper"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def _tiny(tiny_folder: Path) -> Any:
    from espnet_moe.backbones.whisper import WhisperBackbone

    return WhisperBackbone.from_pretrained(str(tiny_folder)).eval()


@pytest.fixture
def make_backbone(_tiny: Any) -> Callable[..., Any]:
    """Make a fresh backbone with the small random weights: ``make_backbone("padded")``."""
    from espnet_moe.backbones.whisper import WhisperBackbone

    def make(context: str = "variable") -> Any:
        return WhisperBackbone(copy.deepcopy(_tiny.hf), _tiny.tokens, context).eval()

    return make


@pytest.fixture
def backbone(make_backbone: Callable[..., Any]) -> Any:
    """A fresh small backbone that encodes at the utterance's own length."""
    return make_backbone()


@pytest.fixture(scope="session")
def whisper_mini() -> Path:
    """The pre-trained base that ships with the repository."""
    return WHISPER_MINI


def tones(seconds: float, seed: int) -> np.ndarray:
    """A sum of gliding tones with noise, ``(samples,)`` float32 at 16 kHz."""
    draw = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16000)) / 16000
    waves = [np.sin(2 * np.pi * (f + 40 * t) * t) for f in draw.uniform(100, 3000, size=4)]
    return (0.1 * sum(waves) + 0.02 * draw.standard_normal(len(t))).astype(np.float32)


@pytest.fixture(scope="session")
def speak() -> Callable[[float, int], np.ndarray]:
    """Make a random waveform: ``speak(seconds, seed)``."""
    return tones


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., Any]:
    """Make a zero-padded batch: ``batch_of(1.0, 0.4)`` → speech, lengths."""
    import torch

    def make(*seconds: float, seed: int = 0) -> Any:
        rows = [tones(s, seed + i) for i, s in enumerate(seconds)]
        lengths = torch.tensor([len(r) for r in rows])
        speech = torch.zeros(len(rows), int(lengths.max()))
        for row, x in zip(speech, rows, strict=True):
            row[: len(x)] = torch.from_numpy(x)
        return speech, lengths

    return make


@pytest.fixture(scope="session")
def make_datadir() -> Callable[..., Path]:
    """Write a formatted data directory and its statistics by hand.

    ``make_datadir(folder, {"hi": 3, "it": 2})`` makes 3 Hindi and 2 Italian utterances.
    """
    import soundfile

    def make(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
        rows = []
        (folder / "wavs").mkdir(parents=True)
        for code, count in counts.items():
            for i in range(count):
                utt = f"spk{code}{seed}-{i:03d}"
                speech = tones(0.4 + 0.13 * ((i * 7 + seed) % 5), 1000 * seed + i)
                soundfile.write(folder / "wavs" / f"{utt}.wav", speech, 16000)
                rows.append((utt, code, TEXTS[code][i % 4], len(speech)))
        rows.sort()
        spk = {u: u.split("-")[0] for u, *_ in rows}
        files = {
            "wav.scp": [f"{u} {folder / 'wavs' / u}.wav" for u, *_ in rows],
            "text": [f"{u} {t}" for u, _, t, _ in rows],
            "utt2spk": [f"{u} {spk[u]}" for u, *_ in rows],
            "utt2lang": [f"{u} {c}" for u, c, *_ in rows],
            "utt2num_samples": [f"{u} {n}" for u, _, _, n in rows],
            "utt2dur": [f"{u} {n / 16000:.4f}" for u, _, _, n in rows],
            "speech_shape": [f"{u} {n}" for u, _, _, n in rows],
            "spk2utt": [
                " ".join([s, *(u for u in spk if spk[u] == s)]) for s in sorted(set(spk.values()))
            ],
        }
        for name, lines in files.items():
            (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def train_args(
    tiny_folder: Path, make_datadir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., list[str]]:
    """Command line of a training that takes a second: ``train_args(output_dir, *more)``."""
    folder = tmp_path_factory.mktemp("training")
    train = make_datadir(folder / "train_hi", {"hi": 9}, seed=1)
    valid = make_datadir(folder / "dev_hi", {"hi": 4}, seed=2)

    def make(output: Path, *more: str) -> list[str]:
        options = f"""
            --output_dir {output} --backbone_conf path={tiny_folder} --experts hi
            --expert_conf rank=4 --train_dir {train} --valid_dir {valid} --train_stats {train}
            --valid_stats {valid} --batch_type sorted --batch_size 2 --num_workers 0 --ngpu 0
            --num_iters_per_epoch 3 --max_epoch 2 --seed 3 --use_matplotlib false
            --use_tensorboard false --optim_conf lr=0.02 --scheduler_conf warmup_steps=2
            --scheduler_conf total_steps=20"""
        return [*options.split(), *more]

    return make


@pytest.fixture(scope="session")
def owsm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an OWSM of 2 + 2 layers, width 32, random weights."""
    from owsm_files import write_owsm

    texts = [text for rows in TEXTS.values() for text in rows]
    return write_owsm(tmp_path_factory.mktemp("tiny_owsm"), texts)


@pytest.fixture
def make_owsm(owsm_folder: Path) -> Callable[..., Any]:
    """Load the random OWSM anew: ``make_owsm("padded")``."""
    from espnet_moe.backbones.owsm_loading import load_owsm

    def make(context: str = "variable") -> Any:
        return load_owsm(str(owsm_folder), context).eval()

    return make


@pytest.fixture(scope="session")
def recordings() -> list[np.ndarray]:
    """Eight recordings of 0.1 to 2 s."""
    from mixtures import tones

    return [tones(s, i) for i, s in enumerate((0.9, 0.35, 1.4, 0.1, 2.0, 1.1, 0.7, 1.6))]


@pytest.fixture(scope="session")
def mixture(
    tiny_folder: Path, recordings: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """Paths of backbone, experts, router, and a router over clusters; options that end soon."""
    from espnet_moe.backbones.loading import load_backbone
    from mixtures import write_mixture

    folder, backbone = tmp_path_factory.mktemp("mixture"), load_backbone(str(tiny_folder)).eval()
    return write_mixture(folder, str(tiny_folder), backbone, recordings)


@pytest.fixture(scope="session")
def owsm_mixture(
    owsm_folder: Path, recordings: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """The same on a small OWSM."""
    from espnet_moe.backbones.loading import load_backbone
    from mixtures import write_mixture

    folder, backbone = tmp_path_factory.mktemp("mixture"), load_backbone(str(owsm_folder)).eval()
    return write_mixture(folder, str(owsm_folder), backbone, recordings)


@pytest.fixture
def make_model(mixture: SimpleNamespace) -> Callable[..., Any]:
    """Load the small mixture anew: ``make_model(router=None)``."""
    from espnet_moe import Speech2Text

    def make(parts: SimpleNamespace = mixture, **changes: Any) -> Any:
        given = {"experts": parts.experts, "router": parts.router, "options": parts.options}
        return Speech2Text(parts.backbone, device="cpu", **{**given, **changes})

    return make
