"""Which backbone a path, an archive or a name means, and how it is used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_moe.backbones import owsm_loading, whisper_loading
from espnet_moe.backbones.owsm import max_target_length as owsm_target_length
from espnet_moe.backbones.protocol import Backbone, Tokens
from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.errors import UserError

FINETUNED = "finetuned.json"  # beside a base that was fine-tuned here: of what, on what


@dataclass(frozen=True)
class BackboneOptions:
    """Which foundation model, and how it is used.

    Attributes:
        path: Whisper: a hub name, a transformers folder, or an openai-whisper ``.pt`` file. OWSM: a
            hub name, an espnet_model_zoo archive, or a folder with ``config.yaml``.
        context: ``variable`` encodes an utterance at its own length; ``padded`` pads to 30 s.
    """

    path: str = ""
    context: str = "variable"

    def build(self) -> Backbone:
        """Load it."""
        if not self.path:
            raise UserError("backbone_conf needs path: a folder, a file or a hub name")
        return load_backbone(self.path, self.context)


def load_backbone(path: str, context: str = "variable") -> Backbone:
    """Load a foundation model, in single precision.

    Raises:
        UserError: Where nothing loadable is found at ``path``.
    """
    if owsm_loading.is_owsm(path):
        return owsm_loading.load_owsm(path, context)
    return WhisperBackbone.from_pretrained(path, context)


def load_tokens(path: str) -> Tokens:
    """Load the tokens alone; what :func:`load_backbone` takes, and its errors."""
    if owsm_loading.is_owsm(path):
        return owsm_loading.load_owsm_tokens(path)
    return whisper_loading.load_tokens(path)


def read_finetuned(path: str) -> dict[str, Any]:
    """What is noted beside a base that was fine-tuned here; nothing of others."""
    note = Path(path) / FINETUNED
    return dict(json.loads(note.read_text("utf-8"))) if note.is_file() else {}


def max_target_length(path: str) -> int:
    """Longest token sequence of a model, prompt included, without loading its weights."""
    if owsm_loading.is_owsm(path):
        config = owsm_loading.read_owsm_config(owsm_loading.find_config(path))
        return owsm_target_length(config)
    return whisper_loading.max_target_length(path)
