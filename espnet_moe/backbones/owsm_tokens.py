"""OWSM's tokens: text to ids and back, and the decoder's prompt, one row an utterance.

A transcript's target is ``<ita><asr><notimestamps> ciao<eos>`` behind ``<sos>`` (Peng et al.,
arXiv:2309.13876; espnet2 ``S2TPreprocessor``). Languages are ISO-639-3 there, ISO-639-1 here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import langcodes
import sentencepiece
import torch

from espnet_moe.errors import UserError

SPACE = "▁"
# Symbols of three letters that are no languages.
_NOT_LANGUAGES = {"<asr>", "<sos>", "<eos>", "<sop>", "<unk>"}
_TIME = re.compile(r"<\d+\.\d+>")


class OwsmTokens:
    """A SentencePiece model and the numbering of its pieces, with OWSM's symbols.

    Args:
        token_list: All tokens in the order of the model's outputs.
        bpe: SentencePiece model.
        symbols: Names of special symbols by role, where they are not OWSM's own: ``blank``,
            ``sos``, ``eos``, ``sop``, ``na``, ``notime``.
        predict_time: Ask for timestamps: the prompt ends with the task.
    """

    def __init__(
        self,
        token_list: Sequence[str],
        bpe: sentencepiece.SentencePieceProcessor,
        symbols: Mapping[str, str] | None = None,
        predict_time: bool = False,
    ) -> None:
        self.token_list = tuple(token_list)
        self.bpe = bpe
        self.predict_time = predict_time
        self._ids = {token: i for i, token in enumerate(self.token_list)}
        names = {
            "blank": "<blank>",
            "unk": "<unk>",
            "sos": "<sos>",
            "eos": "<eos>",
            "sop": "<sop>",
            "na": "<na>",
            "notime": "<notimestamps>",
        } | dict(symbols or {})
        if missing := sorted(n for n in {*names.values(), "<asr>"} if n not in self._ids):
            raise UserError(
                f"the token list lacks {' '.join(missing)}: it is not that of an OWSM model"
            )
        self.blank_id, self.unk_id = self._ids[names["blank"]], self._ids[names["unk"]]
        self.start_id, self.end_id = self._ids[names["sos"]], self._ids[names["eos"]]
        self.previous_id, self.na_id = self._ids[names["sop"]], self._ids[names["na"]]
        self.notime_id = self._ids[names["notime"]]
        if not self.languages:
            raise UserError("the token list has no language symbols such as <ita>")

    @cached_property
    def symbols(self) -> dict[str, str]:
        """Language symbols by ISO-639-1 code (639-3 where a language has no other)."""
        found = {}
        for token in self.token_list:
            if re.fullmatch(r"<[a-z]{3}>", token) and token not in _NOT_LANGUAGES:
                code = langcodes.standardize_tag(token[1:-1])
                # Two symbols may mean one language by today's standard (<tgl>, <fil>).
                found[token[1:-1] if code in found else code] = token
        return dict(sorted(found.items()))

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model has a symbol for."""
        return tuple(self.symbols)

    @property
    def target_prompt(self) -> int:
        """Tokens at the end of the prompt that are targets in training: all but ``<sos>``."""
        return 2 if self.predict_time else 3

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """``asr`` and the translations ``st_…`` that the model has a symbol for."""
        found = [t[1:-1] for t in self.token_list if re.fullmatch(r"<(asr|st_[a-z]{3})>", t)]
        return tuple(found)

    def prompt(self, languages: Sequence[str], task: str = "asr") -> torch.Tensor:
        """Decoder prompts ``(rows, 4)``: start, language, task, no timestamps; a language a row.

        With ``predict_time`` the last is left out, and the model begins with a timestamp.

        Raises:
            UserError: For a language or a task that the model has no symbol for.
        """
        if task not in self.tasks:
            legal = ", ".join(self.tasks)
            raise UserError(f"task '{task}' is unknown to the backbone: choose one of {legal}")
        if unknown := sorted(set(languages) - set(self.languages)):
            known = " ".join(f"{code}={symbol}" for code, symbol in self.symbols.items())
            raise UserError(
                f"the backbone has no symbol for language(s) {', '.join(unknown)}; it has: {known}"
            )
        ends = [self._ids[f"<{task}>"]] + ([] if self.predict_time else [self.notime_id])
        return torch.tensor(
            [[self.start_id, self._ids[self.symbols[code]], *ends] for code in languages]
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a transcript, without prompt and end.

        A special symbol spelt out in a text is text: ``<notimestamps>`` comes from the prompt
        alone, where ESPnet's preprocessor, given a text that holds it, adds another.
        """
        pieces = self.bpe.encode(" ".join(text.split()), out_type=str)
        return [self._text_ids.get(piece, self.unk_id) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        """Transcript of ids in one line; special symbols and timestamps are left out."""
        pieces = [self.token_list[i] for i in ids if i not in self._special]
        return " ".join("".join(pieces).replace(SPACE, " ").split())

    @cached_property
    def _special(self) -> frozenset[int]:
        """All symbols ``<…>``, which is how ESPnet's inference tells them, too."""
        return frozenset(
            i
            for i, t in enumerate(self.token_list)
            if len(t) > 2 and t.startswith("<") and t.endswith(">")
        )

    @cached_property
    def _text_ids(self) -> dict[str, int]:
        return {t: i for t, i in self._ids.items() if i not in self._special}

    @cached_property
    def timestamps(self) -> tuple[int, ...]:
        """Ids of ``<0.00>`` … ``<30.00>``."""
        return tuple(i for i in sorted(self._special) if _TIME.fullmatch(self.token_list[i]))

    def with_timestamps(self) -> OwsmTokens:
        """The same tokens, asking for timestamps."""
        made = copy.copy(self)
        made.__dict__.pop("suppressed", None)
        made.predict_time = True
        return made

    @cached_property
    def suppressed(self) -> tuple[int, ...]:
        """Ids with no place in a transcript: symbols; timestamps unless they are asked for."""
        kept = {self.end_id} | (set(self.timestamps) if self.predict_time else set())
        return tuple(sorted(self._special - kept))

    @property
    def suppressed_first(self) -> tuple[int, ...]:
        """Ids that no transcript begins with: none by OWSM's configuration."""
        return ()

    def digest(self) -> str:
        """SHA-256 over all tokens in order: experts trained with other ids say other words."""
        return hashlib.sha256(json.dumps(self.token_list).encode()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``tokens.txt`` and ``bpe.model``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokens.txt").write_text("\n".join(self.token_list) + "\n", encoding="utf-8")
        (folder / "bpe.model").write_bytes(self.bpe.serialized_model_proto())
