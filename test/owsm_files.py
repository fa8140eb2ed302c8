"""A tiny OWSM with random weights, as files: what an OWSM folder looks like."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import yaml

from samples import random_weights

SYMBOLS = ["<na>", "<nospeech>", "<eng>", "<hin>", "<ita>", "<pan>", "<asr>", "<st_eng>"]
V4_SMALL: dict[str, Any] = {  # espnet/owsm_v4_small_370M, but for its 50,002 tokens
    "frontend_conf": {"n_mels": 128},
    "encoder_conf": {
        "output_size": 768,
        "attention_heads": 12,
        "cgmlp_linear_units": 3072,
        "linear_units": 3072,
        "num_blocks": 9,
        "input_layer": "conv2d8",
    },
    "decoder_conf": {"attention_heads": 12, "linear_units": 3072, "num_blocks": 9},
}
TIMES = [f"<{i * 0.02:.2f}>" for i in range(1501)]


def train_bpe(texts: list[str], size: int = 90) -> tuple[bytes, list[str]]:
    """A SentencePiece model with OWSM's symbols, and the token list in OWSM's order."""
    symbols = [*SYMBOLS, "<notimestamps>", *TIMES]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=size + len(symbols),
        character_coverage=1.0,
        user_defined_symbols=symbols,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    bpe = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [bpe.id_to_piece(i) for i in range(1 + len(symbols), bpe.get_piece_size())]
    return model.getvalue(), ["<blank>", "<unk>", *symbols, *pieces, "<sos>", "<eos>", "<sop>"]


def config(width: int = 32, layers: int = 2, **changes: Any) -> dict[str, Any]:
    """The configuration of an OWSM v3.1 of this width, without tokens; paths as in an archive."""
    made = {
        "frontend": "default",
        "frontend_conf": {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": 160},
        "specaug": "specaug",
        "specaug_conf": {"apply_time_warp": False, "time_mask_width_range": [0, 40]},
        "normalize": "global_mvn",
        "normalize_conf": {"stats_file": "exp/s2t_stats_raw_bpe/train/feats_stats.npz"},
        "encoder": "e_branchformer",
        "encoder_conf": {
            "output_size": width,
            "attention_heads": 4,
            "attention_layer_type": "selfattn",
            "pos_enc_layer_type": "abs_pos",
            "rel_pos_type": "latest",
            "cgmlp_linear_units": 4 * width,
            "cgmlp_conv_kernel": 31,
            "use_linear_after_conv": False,
            "gate_activation": "identity",
            "num_blocks": layers,
            "dropout_rate": 0.1,
            "positional_dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "input_layer": "conv2d",
            "linear_units": 4 * width,
            "use_ffn": True,
            "macaron_ffn": True,
            "merge_conv_kernel": 31,
        },
        "decoder": "transformer",
        "decoder_conf": {"attention_heads": 4, "linear_units": 4 * width, "num_blocks": layers},
        "ctc_conf": {"dropout_rate": 0.0, "ctc_type": "builtin", "reduce": True},
        "model": "espnet",
        "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "length_normalized_loss": False},
        "preprocessor": "s2t",
        "preprocessor_conf": {
            "fs": 16000,
            "speech_length": 30,
            "na_symbol": "<na>",
            "notime_symbol": "<notimestamps>",
            "first_time_symbol": "<0.00>",
            "last_time_symbol": "<30.00>",
        },
        "token_type": "bpe",
        "bpemodel": "data/token_list/bpe/bpe.model",
        "init": None,
        "input_size": None,
    }
    for part, values in changes.items():
        made[part] = {**made[part], **values} if isinstance(values, dict) else values
    return made


def write_owsm(folder: Path, texts: list[str], vocabulary: int = 0, **changes: Any) -> Path:
    """Write config, weights (random), SentencePiece model and statistics.

    Args:
        folder: Where.
        texts: That the SentencePiece model is trained on.
        vocabulary: Tokens in all; those that no text has are filled up with.
        changes: Of the configuration, part by part.
    """
    from espnet_moe.backbones.owsm_loading import build_s2t, read_owsm_config

    folder.mkdir(parents=True, exist_ok=True)
    model, token_list = train_bpe(texts)
    filler = [f"▁filler{i}" for i in range(vocabulary - len(token_list))]
    token_list = [*token_list[:-3], *filler, *token_list[-3:]]
    (folder / "bpe.model").write_bytes(model)
    mels = changes.get("frontend_conf", {}).get("n_mels", 80)
    frames = np.random.default_rng(0).normal(-8.0, 4.0, (500, mels))
    sums = {"sum": frames.sum(0), "sum_square": (frames**2).sum(0)}
    np.savez(folder / "feats_stats.npz", count=np.array(len(frames)), **sums)
    made = config(**changes) | {"token_list": token_list}
    (folder / "config.yaml").write_text(yaml.safe_dump(made, allow_unicode=True), "utf-8")
    s2t = build_s2t(read_owsm_config(folder / "config.yaml"))
    random_weights(s2t, scale=0.12)
    torch.save(s2t.state_dict(), folder / "model.pth")
    return folder
