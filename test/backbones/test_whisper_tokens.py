"""Tokens and prompts."""

import pytest
import torch

from espnet_moe.errors import UserError

SENTENCES = ["नमस्ते, दुनिया!", "l'acqua è fredda", "ਇਹ ਇੱਕ ਘਰ ਹੈ", "నమస్కారం", "hello world", "a"]


@pytest.mark.parametrize("text", SENTENCES)
def test_text_survives(backbone, text):
    ids = backbone.tokens.encode(text)
    assert all(i < backbone.tokens.end_id for i in ids)
    assert backbone.tokens.decode(ids) == text


def test_empty_text(backbone):
    assert backbone.tokens.decode(backbone.tokens.encode("")) == ""
    assert backbone.tokens.decode([]) == ""


def test_prompt_has_a_language_a_row(backbone):
    names = backbone.tokens.tokenizer.convert_ids_to_tokens
    rows = backbone.tokens.prompt(["hi", "it"])
    assert names(rows[0].tolist()) == [
        "<|startoftranscript|>",
        "<|hi|>",
        "<|transcribe|>",
        "<|notimestamps|>",
    ]
    assert names([int(rows[1, 1])]) == ["<|it|>"]
    translate = backbone.tokens.prompt(["pa"], "translate")
    assert names([int(translate[0, 2])]) == ["<|translate|>"]
    assert torch.equal(rows[:, [0, 2, 3]][0], rows[:, [0, 2, 3]][1])


def test_unknown_language_and_task(backbone):
    with pytest.raises(UserError, match="no token for language.* xx.*en hi it pa te"):
        backbone.tokens.prompt(["hi", "xx"])
    with pytest.raises(UserError, match="'sing' is unknown.*transcribe, translate"):
        backbone.tokens.prompt(["hi"], "sing")


def test_special_tokens_never_reach_the_text(backbone):
    tokens = backbone.tokens
    ids = tokens.encode("ciao")
    assert (
        tokens.decode([tokens.end_id + 1, *ids, tokens.end_id, len(tokens.tokenizer) - 1]) == "ciao"
    )
    assert tokens.end_id not in tokens.suppressed
    assert len(tokens.suppressed) == len(tokens.tokenizer) - tokens.end_id - 1


def test_special_tokens_in_a_transcript_are_text(backbone):
    # A transcript that spells a special token must not end the target.
    ids = backbone.tokens.encode("ends <|endoftext|> here")
    assert backbone.tokens.end_id not in ids


def test_a_transcript_is_one_line(backbone):
    ids = [
        i for text in ("a\nb", "c\r\n d", "e\x85f", "\u2028g") for i in backbone.tokens.encode(text)
    ]
    assert backbone.tokens.decode(ids) == "a b c d e f g"
