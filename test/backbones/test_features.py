"""Features against transformers' extractor."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from espnet_moe.backbones.features import MAX_FRAMES, LogMel, pad_to_chunk


@pytest.mark.parametrize("bins", [80, 128])
def test_equal_to_transformers_extractor(bins, batch_of):
    speech, lengths = batch_of(1.0, 0.317, 2.5)
    waves = [x[:n].numpy() for x, n in zip(speech, lengths)]
    extractor = WhisperFeatureExtractor(feature_size=bins)
    want = extractor(waves, sampling_rate=16000, return_tensors="pt").input_features
    mel, frames = LogMel(bins)(speech, lengths)
    got = pad_to_chunk(mel)
    assert got.shape == want.shape == (3, bins, MAX_FRAMES)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-4)
    assert frames.tolist() == [100, 32, 250]


def test_thirty_seconds(speak):
    wave = speak(30.0, 3)
    want = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt").input_features
    mel, frames = LogMel(80)(torch.from_numpy(wave)[None], torch.tensor([480000]))
    assert mel.size(2) == MAX_FRAMES and frames.tolist() == [MAX_FRAMES]
    torch.testing.assert_close(mel, want, rtol=0, atol=2e-4)


def test_digital_silence():
    wave = np.zeros(8000, np.float32)
    want = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt").input_features
    mel, _ = LogMel(80)(torch.zeros(1, 8000), torch.tensor([8000]))
    torch.testing.assert_close(pad_to_chunk(mel), want, rtol=0, atol=1e-5)


def test_padding_and_what_stands_in_it_change_nothing(batch_of):
    speech, lengths = batch_of(0.5, 1.3)
    log_mel = LogMel(80)
    alone, frames = log_mel(speech[:1, :8000], lengths[:1])
    dirty = speech.clone()
    dirty[0, 8000:] = 3.0
    together, _ = log_mel(dirty, lengths)
    torch.testing.assert_close(together[:1, :, : frames[0]], alone[..., : frames[0]])


@pytest.mark.parametrize("samples", [1, 100, 159, 160, 161, 400])
def test_very_short_signals(samples, speak):
    wave = speak(0.1, 1)[:samples]
    want = WhisperFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt").input_features
    mel, _ = LogMel(80)(torch.from_numpy(wave)[None], torch.tensor([samples]))
    torch.testing.assert_close(pad_to_chunk(mel), want, rtol=0, atol=2e-4)
