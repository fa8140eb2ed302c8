"""Layers that are switched off, and planted experts whose layers are known to matter."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from espnet_moe.analysis.layers import ALL, NONE, conditions_of, importance, layers, measure
from espnet_moe.analysis.passes import (
    Subject,
    draw_utterances,
    encode,
    load_subject,
    make_batches,
    token_loss,
    transcribe,
)
from espnet_moe.errors import UserError
from espnet_moe.experts.expert_set import ExpertError, ExpertSet, LoRAOptions
from espnet_moe.experts.gates import Gates, use_gates

TARGETS = ("q_proj", "fc1")


@pytest.fixture
def plant(make_backbone):
    """A backbone with an expert that changes only what it is told to: ``plant("encoder.1")``."""

    def make(*places: str, backbone=None) -> Subject:
        backbone = backbone or make_backbone()
        targets = TARGETS if hasattr(backbone, "hf") else ()
        experts = ExpertSet(backbone, LoRAOptions(targets, rank=4), ["hi", "it"])
        torch.manual_seed(1)
        with torch.no_grad():
            for name, layer in experts.layers.items():
                part, number = backbone.layer_of(name)
                if not places or f"{part}.{number}" in places:
                    layer.B(0).normal_(std=0.3)
        return Subject(backbone, experts)

    return make


@pytest.fixture(scope="module")
def data(make_datadir, tmp_path_factory):
    return make_datadir(tmp_path_factory.mktemp("layers") / "test_hi", {"hi": 5, "it": 3})


def run(subject: Subject, batch, gates):
    return token_loss(subject, batch, encode(subject, batch, gates), gates)


def test_switching_off_is_the_update_set_to_zero(plant, data):
    subject, drawn = plant(), draw_utterances([data], 0, 30.0)["hi"]
    batch = make_batches(subject, drawn, 8)[0]
    gates = subject.gates("hi", 5)
    before, base = run(subject, batch, gates), run(subject, batch, None)
    some = [n for n in subject.experts.layers if "encoder.layers.0" in n or "fc1" in n]
    found = run(subject, batch, subject.experts.without(gates, some))
    every = subject.experts.without(gates, list(subject.experts.layers))
    assert np.array_equal(run(subject, batch, every), base), "to the bit"
    assert np.array_equal(run(subject, batch, gates), before), "nothing is left behind"
    with torch.no_grad():
        for name in some:
            subject.experts.layers[name].B(0).zero_()
    np.testing.assert_allclose(run(subject, batch, gates), found, rtol=1e-5)
    assert np.abs(found - before).max() > 0.1
    with pytest.raises(ExpertError, match="no expert layer is called nowhere"):
        subject.experts.without(gates, ["nowhere"])
    with pytest.raises(ExpertError, match="not a frame"):
        subject.experts.without(Gates.of(torch.ones(5, 7, 2)), some)


def test_gates_that_are_selected_stay_off(plant):
    subject = plant()
    name = next(iter(subject.experts.layers))
    gates = subject.experts.without(subject.gates("hi", 3), [name])
    layer, x = subject.experts.layers[name], torch.randn(2, 4, 32)
    with torch.no_grad(), use_gates(gates.select(torch.tensor([0, 2]))):
        assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("make", ["make_backbone", "make_owsm"])
def test_the_loss_is_the_backbones(plant, data, make, request):
    subject = plant(backbone=request.getfixturevalue(make)())
    drawn = draw_utterances([data], 0, 30.0)["hi"]
    (batch,) = make_batches(subject, drawn, 8)
    gates = subject.gates("hi", 5)
    sums = run(subject, batch, gates)
    with torch.no_grad(), use_gates(gates):
        encoded = encode(subject, batch, gates)
        logits = subject.backbone.decode(batch.tokens, encoded)[:, -batch.target.size(1) :]
        want = subject.backbone.attention_loss(logits.float(), batch.target, smoothing=0.0)
    count = batch.counts.sum() if subject.backbone.token_mean else len(sums)
    assert sums.sum() / count == pytest.approx(float(want), rel=1e-4)
    # Alone as in a batch.
    single = np.concatenate(
        [run(subject, b, subject.gates("hi", 1)) for b in make_batches(subject, drawn, 1)]
    )
    np.testing.assert_allclose(single, sums, rtol=1e-3)


@pytest.mark.parametrize("place", ["encoder.1", "decoder.0"])
def test_the_layer_that_matters_is_found(plant, data, place):
    subject, drawn = plant(place), draw_utterances([data], 0, 30.0)["hi"]
    losses = measure(subject, "hi", make_batches(subject, drawn, 2))
    groups = ["encoder.0", "encoder.1", "decoder.0", "decoder.1", "encoder", "decoder", "fc1"]
    found = importance(losses, groups, 1000, 0)
    total = found["loss"][NONE] - found["loss"][ALL]
    assert abs(total) > 0.01
    for group in ("encoder.0", "encoder.1", "decoder.0", "decoder.1", "encoder", "decoder"):
        row, matters = found["groups"][group], place.startswith(group)
        assert row["off"]["change"] == pytest.approx(total if matters else 0, abs=1e-5)
        assert row["alone"]["gain"] == pytest.approx(total if matters else 0, abs=1e-5)
    low, high = found["gain"]["interval"]
    assert low <= total <= high and found["tokens"] == losses.tokens.sum()


def test_passes_are_shared_but_not_mixed_up(plant, data):
    subject, drawn = plant(), draw_utterances([data], 0, 30.0)["hi"]
    batches = make_batches(subject, drawn, 3)
    losses = measure(subject, "hi", batches)
    for name, off in conditions_of(list(subject.experts.layers)).items():
        found = []
        for batch in batches:
            gates = subject.experts.without(subject.gates("hi", len(batch.utterances)), off)
            found.append(run(subject, batch, gates))
        np.testing.assert_allclose(losses.sums[name], np.concatenate(found), rtol=1e-5)


def test_word_error_rates_of_layers(plant, data):
    subject = plant("decoder.0")
    drawn = draw_utterances([data], 2, 30.0)
    content = layers(subject, drawn, {"hi": ("hi",), "it": ("de",)}, with_wer=True).content()
    own = content["results"]["experts"]["hi"]
    (batch,) = make_batches(subject, drawn["hi"], 2)
    want = transcribe(subject, batch, encode(subject, batch, None), None).rate
    assert own["groups"]["decoder.0"]["off"]["wer"]["wer"] == pytest.approx(want)
    assert own["wer"]["none"] == pytest.approx(want)
    assert own["groups"]["encoder.0"]["off"]["wer"]["change"] == 0
    assert "no utterance of it (de)" in content["not_available"]["it"]


def test_draws(data, tmp_path, make_datadir):
    drawn = draw_utterances([data], 2, 30.0, seed=1)
    assert {code: len(own) for code, own in drawn.items()} == {"hi": 2, "it": 2}
    assert drawn == draw_utterances([data], 2, 30.0, seed=1)
    assert [u.duration for u in drawn["hi"]] == sorted(
        (u.duration for u in drawn["hi"]), reverse=True
    )
    with pytest.raises(UserError, match="at most 0.1 s"):
        draw_utterances([data], 2, 0.1)
    with pytest.raises(UserError, match="0 .all. or more"):
        draw_utterances([data], -1, 30.0)


def test_transcripts_that_are_too_long_are_left_out(plant, data, caplog):
    subject, drawn = plant(), draw_utterances([data], 0, 30.0)["hi"]
    long = replace(drawn[1], text=drawn[1].text * 20)
    batches = make_batches(subject, [drawn[0], long, *drawn[2:]], 8)
    assert [u.utt_id for u in batches[0].utterances] == [u.utt_id for u in drawn if u != drawn[1]]
    assert "1 of 5 transcripts are too long" in caplog.text
    with pytest.raises(UserError, match="every transcript has more than the"):
        make_batches(subject, [long], 8)


def test_experts_that_cannot_be_run(tiny_folder, save_random):
    folders = save_random("hi", "it")
    with pytest.raises(UserError, match="called 'base'"):
        load_subject(str(tiny_folder), "variable", {"base": folders["hi"]}, "cpu")
    with pytest.raises(UserError, match="no expert given"):
        load_subject(str(tiny_folder), "variable", {}, "cpu")
    subject = load_subject(str(tiny_folder), "variable", folders, "cpu")
    assert subject.conditions == ("base", "hi", "it")
