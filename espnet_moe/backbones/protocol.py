"""What the rest of the house asks of a foundation model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from espnet_moe.backbones.attention import DecoderState, Encoded

CONTEXTS = ("variable", "padded")
IGNORE = -100  # in a target: no loss here
Augment = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Tokens(Protocol):
    """Text to ids and back, and the decoder's prompt."""

    @property
    def end_id(self) -> int:
        """Id of the token that ends a transcript; also what targets are padded with."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes (ISO-639-1 where there is one) of the languages that a prompt can name."""

    @property
    def target_prompt(self) -> int:
        """Tokens at the end of the prompt that are targets in training, too."""

    def prompt(self, languages: Sequence[str]) -> torch.Tensor:
        """Decoder prompts ``(rows, prompt tokens)``, a language a row."""

    def encode(self, text: str) -> list[int]:
        """Ids of a transcript, without prompt and end."""

    def decode(self, ids: Sequence[int]) -> str:
        """Transcript of ids in one line."""

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Ids with no place in a transcript."""

    @property
    def suppressed_first(self) -> tuple[int, ...]:
        """Ids that no transcript begins with."""

    def digest(self) -> str:
        """SHA-256 over all tokens and their ids."""

    def with_timestamps(self) -> Tokens:
        """The same tokens, asking for timestamps; an error where there is no such thing."""


class DecodingBackbone(Protocol):
    """What search needs of a backbone."""

    tokens: Any

    @property
    def max_target_length(self) -> int:
        """Longest token sequence, prompt included."""

    def start(
        self, encoded: Encoded, beams: int, max_length: int, record_attention: bool = False
    ) -> DecoderState:
        """Caches for ``beams`` rows an utterance."""

    def step(self, tokens: torch.Tensor, state: DecoderState) -> torch.Tensor:
        """Logits ``(rows, vocabulary)`` of the next token."""

    def ctc_log_probs(self, encoded: Encoded) -> tuple[torch.Tensor, int]:
        """CTC's log-probabilities ``(batch, frames, vocabulary)`` and the blank's id."""


class Backbone(DecodingBackbone, Protocol):
    """A foundation model of speech, a torch module: encoder layers, decoder, tokens, losses."""

    context: str
    gradient_checkpointing: bool
    default_targets: tuple[str, ...]

    @property
    def network(self) -> torch.nn.Module:
        """The model that experts go into; their layers are named from here."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dim(self) -> int:
        """Width of the encoder's frames."""

    @property
    def frame_samples(self) -> int:
        """Samples from one encoder frame to the next."""

    @property
    def max_seconds(self) -> float:
        """Longest utterance the encoder takes in one piece."""

    @property
    def num_encoder_layers(self) -> int:
        """Number of encoder layers ``n``; a split ``k`` is in ``0..n``."""

    @property
    def token_mean(self) -> bool:
        """Whether the attention loss is a mean over tokens; otherwise over utterances."""

    @property
    def ctc_weight(self) -> float:
        """Share of a CTC branch in the loss."""

    def layer_of(self, name: str) -> tuple[str, int] | None:
        """Part and layer number of a module name: ``("encoder", 3)``; ``None`` outside layers."""

    def digest(self) -> str:
        """SHA-256 of the base weights, experts excluded."""

    def encode_lower(
        self,
        speech: torch.Tensor,
        lengths: torch.Tensor,
        layer: int,
        augment: Augment | None = None,
    ) -> Encoded:
        """Features and the encoder layers below ``layer``."""

    def encode_upper(self, lower: Encoded, layer: int) -> Encoded:
        """The encoder layers from ``layer`` on; experts act here."""

    def decode(self, tokens: torch.Tensor, encoded: Encoded) -> torch.Tensor:
        """Teacher-forced logits ``(batch, tokens, vocabulary)``."""

    def attention_loss(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        smoothing: float | None = None,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The decoder's loss; ``None`` smooths as the model was trained."""

    def ctc_loss(
        self,
        encoded: Encoded,
        text: torch.Tensor,
        lengths: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The CTC branch's loss; rows without a transcript are left out."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, its tokens and settings as a folder that loads again."""

    def train(self, mode: bool = True) -> Any:
        """Training or evaluation mode."""

    def eval(self) -> Any:
        """Evaluation mode."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move to a device."""
