"""SpecAugment of other voices: what it changes, and what it leaves."""

import inspect

import numpy as np
import pytest
import torch
from espnet2.asr.specaug.specaug import SpecAug

from espnet_moe.config import ConfigError
from espnet_moe.vtlp import VTLPSpecAug, stretch

MASKS = {"apply_time_warp": False, "num_freq_mask": 2, "time_mask_width_range": (0, 4)}
UNMASKED = {"apply_time_warp": False, "freq_mask_width_range": (0, 1), "apply_time_mask": False}


@pytest.fixture
def features():
    torch.manual_seed(3)
    return torch.randn(4, 25, 80)


def augment(seed, features, lengths=None, **options):
    torch.manual_seed(seed)
    return VTLPSpecAug(**options)(features, lengths)[0]


def test_stretch_reads_between_the_bins(features):
    factors = torch.tensor([0.8, 1.0, 1.13, 1.2])
    found = stretch(features, factors).numpy()
    bins = np.arange(80)
    for row, factor, got in zip(features.numpy(), factors.tolist(), found, strict=True):
        wanted = [np.interp(bins * factor, bins, frame) for frame in row]
        assert np.allclose(got, wanted, atol=1e-4)
    assert np.array_equal(found[1], features[1].numpy())


def test_without_other_voices_it_is_espnets(features):
    own, espnets = (inspect.signature(kind).parameters for kind in (VTLPSpecAug, SpecAug))
    assert {name: own[name].default for name in espnets} == {
        name: option.default for name, option in espnets.items()
    }
    lengths = torch.tensor([25, 20, 9, 25])
    torch.manual_seed(5)
    wanted = SpecAug(**MASKS)(features.clone(), lengths)[0]
    found = augment(5, features.clone(), lengths, vtlp_range=0, envelope=0, **MASKS)
    assert torch.equal(found, wanted)


def test_an_envelope_lasts_for_the_whole_row_and_is_as_large_as_the_row_is(features):
    features = features * torch.tensor([1.0, 3.0, 10.0, 0.1]).view(4, 1, 1)
    added = augment(7, features, vtlp_range=0, envelope=0.5, **UNMASKED) - features
    assert torch.allclose(added, added[:, :1].expand_as(added), atol=1e-4)
    curves = added[:, 0] / features.flatten(1).std(1, correction=0).unsqueeze(1)
    assert torch.all(curves.std(0) > 0.01)  # each row its own
    large = torch.cat(
        [augment(s, features, vtlp_range=0, envelope=0.5, **UNMASKED) - features for s in range(99)]
    )
    knots = large.view(99, 4, 25, 80)[:, :, 0, [0, -1]] / added.new_tensor([1, 3, 10, 0.1])[:, None]
    assert 0.4 < knots.std() < 0.6
    # Smooth: no bin is far from the mean of its neighbours.
    bends = curves[:, 1:-1] - (curves[:, 2:] + curves[:, :-2]) / 2
    assert bends.abs().max() < 0.15 < curves.abs().max()


def test_padding_neither_changes_nor_counts(features):
    lengths = torch.tensor([25, 20, 9, 1])
    padded = features.clone()
    for row, n in zip(padded, lengths.tolist(), strict=True):
        row[n:] = 1e4
    found = augment(9, padded, lengths, **UNMASKED)
    clean = augment(9, features, lengths, **UNMASKED)
    for n, a, b, before in zip(lengths.tolist(), found, clean, padded, strict=True):
        assert torch.allclose(a[:n], b[:n], atol=1e-4)
        assert torch.equal(a[n:], before[n:])


def test_values_out_of_range_are_told_together():
    with pytest.raises(ConfigError, match=r"vtlp_range is in \[0, 1\), not 1.*envelope is 0 or"):
        VTLPSpecAug(vtlp_range=1, envelope=-1)
