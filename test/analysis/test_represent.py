"""Frames of the same utterances under every expert."""

import numpy as np
import torch

from espnet_moe.analysis.passes import (
    draw_utterances,
    encode,
    load_subject,
    make_batches,
    represent,
    spread_layers,
)


def test_frames_are_the_encoders_and_never_padding(
    tiny_folder, save_random, make_datadir, tmp_path
):
    subject = load_subject(str(tiny_folder), "variable", save_random("hi", "it"), "cpu")
    data = make_datadir(tmp_path / "test_hi", {"hi": 5})
    drawn = draw_utterances([data], 0, 30.0)["hi"]
    batches = make_batches(subject, drawn, 3)
    found = represent(subject, batches, max_frames=10**6)
    assert found.layers == ("1", "2", "output") and spread_layers(subject) == [1, 2]
    frames = []
    for batch in batches:
        encoded = encode(subject, batch, subject.gates("it", len(batch.utterances)))
        frames += [row[:n] for row, n in zip(encoded.hidden, encoded.spoken)]
    np.testing.assert_allclose(found.frames["output"][2], torch.cat(frames).numpy(), atol=1e-5)
    assert np.bincount(found.owners).tolist() == [len(x) for x in frames]
    # Drawn frames are the same ones under every condition: those of the base, with other values.
    few = represent(subject, batches, max_frames=30, seed=2)
    assert abs(len(few.owners) - 30) <= 2
    whole = found.frames["output"]
    places = [np.abs(whole[0] - x).sum(axis=1).argmin() for x in few.frames["output"][0]]
    np.testing.assert_allclose(few.frames["output"][1], whole[1][places], atol=1e-5)
