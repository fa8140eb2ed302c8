"""OWSM's tokens against ESPnet's preprocessor and tokenizer."""

import numpy as np
import pytest

from espnet_moe.backbones.owsm_loading import load_owsm_tokens
from espnet_moe.backbones.owsm_tokens import OwsmTokens
from espnet_moe.errors import UserError
from samples import TEXTS


@pytest.fixture(scope="module")
def tokens(owsm_folder):
    return load_owsm_tokens(str(owsm_folder))


@pytest.fixture(scope="module")
def espnets(owsm_folder, tokens):
    from espnet2.train.preprocessor import S2TPreprocessor

    return S2TPreprocessor(
        train=False,
        token_type="bpe",
        token_list=list(tokens.token_list),
        bpemodel=str(owsm_folder / "bpe.model"),
    )


def prompted(tokens, code, text):
    """What the decoder is to say: prompt without <sos>, transcript."""
    return tokens.prompt([code])[0, 1:].tolist() + tokens.encode(text)


@pytest.mark.parametrize(("code", "symbol"), [("hi", "<hin>"), ("it", "<ita>"), ("pa", "<pan>")])
def test_targets_are_espnets(tokens, espnets, code, symbol):
    for text in TEXTS[code]:
        line = f"{symbol}<asr><notimestamps> {text}"
        data = {"speech": np.zeros(16000, np.float32), "text": line}
        theirs = espnets("a", data)["text"].tolist()
        assert prompted(tokens, code, text) == theirs
        assert tokens.decode(theirs) == text


def test_notimestamps_never_doubles(tokens, espnets):
    """ESPnet's training preprocessor inserts the symbol into a text that holds it already."""
    espnets.train = True
    espnets.time_apply_prob = 0.0
    line = f"<hin><asr><notimestamps> {TEXTS['hi'][0]}"
    theirs = espnets("a", {"speech": np.zeros(16000, np.float32), "text": line})["text"].tolist()
    espnets.train = False
    assert theirs.count(tokens.notime_id) == 2, "what is worked around"
    assert prompted(tokens, "hi", TEXTS["hi"][0]).count(tokens.notime_id) == 1
    spelt_out = tokens.encode("<notimestamps> ciao <eos>")
    assert tokens.notime_id not in spelt_out
    assert tokens.end_id not in spelt_out


def test_prompt_a_row(tokens):
    rows = tokens.prompt(["it", "hi"]).tolist()
    names = [[tokens.token_list[i] for i in row] for row in rows]
    assert names == [
        ["<sos>", "<ita>", "<asr>", "<notimestamps>"],
        ["<sos>", "<hin>", "<asr>", "<notimestamps>"],
    ]
    assert [tokens.token_list[i] for i in tokens.prompt(["hi"], "st_eng")[0]][2] == "<st_eng>"


def test_a_language_without_a_symbol_lists_the_symbols(tokens):
    with pytest.raises(UserError, match=r"language\(s\) te; it has: en=<eng> hi=<hin> it=<ita>"):
        tokens.prompt(["hi", "te"])
    with pytest.raises(UserError, match="'st_fra' is unknown.*asr, st_eng"):
        tokens.prompt(["hi"], "st_fra")


def test_predict_time(tokens):
    """Off by default; on, the model may say timestamps, which stay out of the text."""
    timed = OwsmTokens(tokens.token_list, tokens.bpe, predict_time=True)
    assert timed.prompt(["it"]).size(1) == 3
    assert set(timed.timestamps) & set(tokens.suppressed) == set(timed.timestamps)
    assert not set(timed.timestamps) & set(timed.suppressed)
    ids = [timed.timestamps[0], *timed.encode("ciao mondo"), timed.timestamps[90]]
    assert timed.decode(ids) == "ciao mondo"
    assert len(timed.timestamps) == 1501


def test_nothing_special_in_a_transcript(tokens):
    for symbol in ("<blank>", "<unk>", "<sos>", "<sop>", "<na>", "<hin>", "<asr>", "<0.00>"):
        assert tokens.token_list.index(symbol) in tokens.suppressed
    assert tokens.end_id not in tokens.suppressed
    assert not set(tokens.encode(" ".join(TEXTS["it"]))) & set(tokens.suppressed)


def test_another_token_list(tokens):
    with pytest.raises(UserError, match=r"lacks <asr> <notimestamps>.*not that of an OWSM"):
        OwsmTokens(
            [t for t in tokens.token_list if t not in ("<asr>", "<notimestamps>")], tokens.bpe
        )
