"""Whisper's tokens: text to ids and back, and the decoder's prompt, one row an utterance.

The prompt is built here and nowhere else: generation configs with stale ``forced_decoder_ids``
broke language choice again and again (huggingface/transformers 21937, 37172, 38232).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from transformers import WhisperTokenizer

from espnet_moe.errors import UserError

START = "<|startoftranscript|>"
END = "<|endoftext|>"
TASKS = ("transcribe", "translate")


class WhisperTokens:
    """A tokenizer with Whisper's special tokens.

    Args:
        tokenizer: transformers' tokenizer of the model.
        suppress: Further ids that the model's generation config never lets it say (Whisper's are
            those of what is no speech: brackets, notes, …).
        suppress_first: Ids that it does not let a transcript begin with.
    """

    def __init__(
        self,
        tokenizer: WhisperTokenizer,
        suppress: Sequence[int] = (),
        suppress_first: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._suppress, self._suppress_first = suppress, suppress_first

    @cached_property
    def end_id(self) -> int:
        """Id of the token that ends a transcript; also what targets are padded with."""
        return self._id(END)

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """ISO-639-1 codes that the model has a token for."""
        special = self.tokenizer.get_added_vocab()
        codes = {t[2:-2] for t in special if t.startswith("<|") and t.endswith("|>")}
        words = {"startoftranscript", "endoftext", "startoflm", "startofprev", "nospeech"}
        words |= {"nocaptions", "notimestamps", *TASKS}
        return tuple(sorted(c for c in codes - words if c.isalpha()))

    def with_timestamps(self) -> WhisperTokens:
        """Refused: not built for Whisper."""
        raise UserError("predict_time is for OWSM: Whisper is prompted without timestamps here")

    @property
    def target_prompt(self) -> int:
        """Tokens at the end of the prompt that are targets in training, too: none."""
        return 0

    def _id(self, token: str) -> int:
        found = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(found, int) or self.tokenizer.convert_ids_to_tokens(found) != token:
            raise UserError(f"the tokenizer has no token {token}: it is not a Whisper tokenizer")
        return found

    def prompt(self, languages: Sequence[str], task: str = "transcribe") -> torch.Tensor:
        """Decoder prompts ``(rows, 4)``: start, language, task, no timestamps; a language a row.

        Raises:
            UserError: For a language or a task that the model has no token for.
        """
        if task not in TASKS:
            raise UserError(f"task '{task}' is unknown: choose one of {', '.join(TASKS)}")
        unknown = sorted(set(languages) - set(self.languages))
        if unknown:
            raise UserError(
                f"the backbone has no token for language(s) {', '.join(unknown)}; "
                f"it has: {' '.join(self.languages)}"
            )
        ends = (self._id(f"<|{task}|>"), self._id("<|notimestamps|>"))
        start = self._id(START)
        return torch.tensor([[start, self._id(f"<|{code}|>"), *ends] for code in languages])

    def encode(self, text: str) -> list[int]:
        """Ids of a transcript, without prompt and end.

        Text begins with a space, as in Whisper's own training data (openai/whisper ``decode()``
        gives ``" text"`` back), so that a first word has the tokens of any other word. A special
        token spelt out in a text is text: it must not end the target.
        """
        return self.tokenizer.encode(
            " " + text.strip(), add_special_tokens=False, split_special_tokens=True
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Transcript of ids in one line; special tokens and timestamps are left out."""
        text = self.tokenizer.decode([i for i in ids if i < self.end_id], skip_special_tokens=True)
        # A model may well produce a line break, which would cut a Kaldi text file's line in two.
        return " ".join(text.split())

    @cached_property
    def suppressed(self) -> tuple[int, ...]:
        """Ids with no place in a transcript without timestamps.

        All special ones but the end, and what the model's generation config rules out.
        """
        size = len(self.tokenizer)
        own = {i for i in self._suppress if 0 <= i < size and i != self.end_id}
        return tuple(sorted(own | set(range(self.end_id + 1, size))))

    @cached_property
    def suppressed_first(self) -> tuple[int, ...]:
        """Ids that no transcript begins with, by the model's generation config."""
        return tuple(i for i in self._suppress_first if 0 <= i < len(self.tokenizer))

    def digest(self) -> str:
        """SHA-256 over all tokens and their ids: experts trained with other ids say other words."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        # Asked for with every expert that is loaded, and Whisper's has 51,865 tokens.
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return hashlib.sha256(vocabulary.encode()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)


def special_tokens(languages: Sequence[str]) -> list[str]:
    """Whisper's special tokens in order (openai/whisper ``tokenizer.py``), timestamps included."""
    timestamps = [f"<|{i * 0.02:.2f}|>" for i in range(1501)]
    return [
        END,
        START,
        *(f"<|{code}|>" for code in languages),
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *timestamps,
    ]
