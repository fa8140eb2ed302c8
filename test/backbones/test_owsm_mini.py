"""The tiny OWSM of the mini recipe, decoded here and by ESPnet's own inference."""

from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch
import yaml

from espnet_moe.backbones.loading import load_backbone
from espnet_moe.data.mini_text import sentences
from espnet_moe.data.mini_voices import Synthesizer, voices
from espnet_moe.decoding import search as searching
from espnet_moe.decoding.ctc_prefix import CtcPrefixScorer
from espnet_moe.decoding.search import SearchOptions, search

OWSM_MINI = Path(__file__).parents[2] / "egs2" / "mini" / "base1" / "owsm_mini"
EACH = {"hi": 8, "it": 8, "pa": 4, "te": 4}
SYMBOLS = {"hi": "<hin>", "it": "<ita>", "pa": "<pan>", "te": "<tel>"}


@pytest.fixture(scope="module")
def spoken():
    """``(language, samples, text)`` of unseen voices and sentences."""
    speak, people = Synthesizer(), voices("dev")
    found = []
    for code, count in EACH.items():
        for i, sentence in enumerate(sentences("dev", count)):
            text = sentence.texts[code]
            wave = speak.at(16000, text, code, people[i % len(people)])
            found.append((code, wave.astype(np.float32), text))
    return found


@pytest.fixture(scope="module")
def espnet(tmp_path_factory):
    """ESPnet's inference on the same files: ``espnet(beam, ctc_weight)``."""
    from espnet2.bin.s2t_inference import Speech2Text

    config = yaml.safe_load((OWSM_MINI / "config.yaml").read_text("utf-8"))
    config["token_list"] = str(OWSM_MINI / "tokens.txt")
    config["bpemodel"] = str(OWSM_MINI / "bpe.model")
    config["normalize_conf"]["stats_file"] = str(OWSM_MINI / "feats_stats.npz")
    absolute = tmp_path_factory.mktemp("espnet") / "config.yaml"
    absolute.write_text(yaml.safe_dump(config), "utf-8")

    def make(beam, ctc_weight):
        return Speech2Text(
            s2t_train_config=str(absolute),
            s2t_model_file=str(OWSM_MINI / "model.pth"),
            device="cpu",
            beam_size=beam,
            ctc_weight=ctc_weight,
            maxlenratio=0.9,  # at 1.0 ESPnet's CTC scores break where a hypothesis gets that long
            task_sym="<asr>",
            lang_sym="<ita>",
        )

    return make


def decoded(spoken, options):
    backbone = load_backbone(str(OWSM_MINI)).eval()
    lengths = torch.tensor([len(wave) for _, wave, _ in spoken])
    waves = [torch.from_numpy(wave) for _, wave, _ in spoken]
    speech = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.inference_mode():
        encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
        prompt = backbone.tokens.prompt([code for code, _, _ in spoken])
        found = search(backbone, encoded, prompt, options)
    return [(h.tokens, backbone.tokens.decode(h.tokens)) for h in found]


def espnets(spoken, speech2text):
    """Tokens and text of every utterance, alone.

    ESPnet pads to the ``speech_length`` of its config; the tiny base has never heard 30 s, so that
    every utterance gets its own.
    """
    found = []
    for code, wave, _ in spoken:
        speech2text.preprocessor_conf |= {"fs": 1, "speech_length": len(wave)}  # in samples
        _, _, ids, text, _ = speech2text(wave, lang_sym=SYMBOLS[code])[0]
        found.append((list(ids[3:]), " ".join(text.split())))
    return found


def test_greedy_search_is_espnets(spoken, espnet):
    theirs = espnets(spoken, espnet(1, 0.0))
    assert decoded(spoken, SearchOptions(1)) == theirs
    assert sum(text == said for (_, text), (_, _, said) in zip(theirs, spoken, strict=True)) > 4


def test_joint_search_is_espnets(spoken, espnet, monkeypatch):
    """The same text where CTC scores count the prompt as spoken, as there; fewer errors if not."""
    theirs = [text for _, text in espnets(spoken, espnet(5, 0.3))]
    options = SearchOptions(5, ctc_weight=0.3)
    said = [text for _, _, text in spoken]
    ours = [text for _, text in decoded(spoken, options)]
    assert jiwer.wer(said, ours) < jiwer.wer(said, theirs)

    monkeypatch.setattr(searching, "CtcPrefixScorer", lambda *a: CtcPrefixScorer(*a, lead=3))
    ours = [text for _, text in decoded(spoken, options)]
    different = [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]]
    assert not different, f"{len(different)} of {len(spoken)} differ: {different[:3]}"
