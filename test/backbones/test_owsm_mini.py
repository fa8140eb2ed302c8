"""The tiny OWSM of the mini recipe, decoded here and by ESPnet's own inference."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from espnet_moe.backbones.loading import load_backbone
from espnet_moe.data.mini_text import sentences
from espnet_moe.data.mini_voices import Synthesizer, voices
from espnet_moe.decoding.search import SearchOptions, search

OWSM_MINI = Path(__file__).parents[2] / "egs2" / "mini" / "base1" / "owsm_mini"
EACH = {"hi": 8, "it": 8, "pa": 4, "te": 4}
SYMBOLS = {"hi": "<hin>", "it": "<ita>", "pa": "<pan>", "te": "<tel>"}


@pytest.fixture(scope="module")
def spoken():
    """``(language, samples)`` of unseen voices and sentences."""
    speak, people = Synthesizer(), voices("dev")
    found = []
    for code, count in EACH.items():
        for i, sentence in enumerate(sentences("dev", count)):
            wave = speak.at(16000, sentence.texts[code], code, people[i % len(people)])
            found.append((code, wave.astype(np.float32)))
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
            maxlenratio=1.0,
            task_sym="<asr>",
            lang_sym="<ita>",
        )

    return make


def decoded(spoken, options):
    backbone = load_backbone(str(OWSM_MINI), "padded").eval()
    lengths = torch.tensor([len(wave) for _, wave in spoken])
    waves = [torch.from_numpy(wave) for _, wave in spoken]
    speech = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.inference_mode():
        encoded = backbone.encode_upper(backbone.encode_lower(speech, lengths, 0), 0)
        prompt = backbone.tokens.prompt([code for code, _ in spoken])
        found = search(backbone, encoded, prompt, options)
    return [(h.tokens, backbone.tokens.decode(h.tokens)) for h in found]


@pytest.mark.parametrize(("beam", "ctc_weight"), [(1, 0.0), (5, 0.3)])
def test_decodes_as_espnet(spoken, espnet, beam, ctc_weight):
    """Greedy the same tokens, the joint search the same text, in one batch here, alone there."""
    ours = decoded(spoken, SearchOptions(beam, ctc_weight=ctc_weight))
    theirs = espnet(beam, ctc_weight)
    wrong = []
    for (code, wave), (tokens, text) in zip(spoken, ours, strict=True):
        said, _, ids, plain, _ = theirs(wave, lang_sym=SYMBOLS[code])[0]
        if beam == 1 and tokens != list(ids[3:]):
            wrong.append((code, ids, tokens))
        elif text.split() != plain.split():
            wrong.append((code, plain, text))
    assert not wrong, f"{len(wrong)} of {len(spoken)}: {wrong[:3]}"
