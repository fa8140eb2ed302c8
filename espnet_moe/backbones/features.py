"""Whisper's log-mel features in torch, batched, with padding that changes nothing."""

import torch
import torch.nn.functional as F
from transformers import WhisperFeatureExtractor

SAMPLE_RATE = 16000
N_FFT = 400  # 25 ms
HOP_LENGTH = 160  # 10 ms
CHUNK_SECONDS = 30
MAX_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE
TAIL_FRAMES = 2  # windows that start before the end of the signal but are centred behind it
MAX_FRAMES = MAX_SAMPLES // HOP_LENGTH  # 3000 mel frames in 30 s


class LogMel(torch.nn.Module):
    """Whisper's log-mel spectrogram (openai/whisper ``audio.py``), as transformers has it.

    Args:
        num_mel_bins: 80, or 128 from large-v3 on.
    """

    def __init__(self, num_mel_bins: int) -> None:
        super().__init__()
        filters = WhisperFeatureExtractor(feature_size=num_mel_bins).mel_filters
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)
        self.filters: torch.Tensor
        self.window: torch.Tensor

    def forward(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features; a row's frames do not depend on how far it was padded.

        Args:
            speech: ``(batch, samples)`` at 16 kHz, anything beyond ``lengths`` is ignored.
            lengths: ``(batch,)`` in samples.

        Returns:
            Features ``(batch, mels, frames)`` and lengths ``(batch,)`` in 10 ms frames. There are
            up to two frames more than the longest row has: the tail of its last window.
        """
        with torch.autocast(speech.device.type, enabled=False):
            return self._compute(speech.float(), lengths)

    def _compute(
        self, speech: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What :meth:`forward` returns, always in single precision."""
        inside = torch.arange(speech.size(1), device=speech.device) < lengths.unsqueeze(1)
        speech = speech * inside
        # The extractor pads with zeros to 30 s, so a row's last window sees zeros at its right end,
        # and mirrors both ends of the 30 s: the right one is heard only if speech fills them.
        edge = N_FFT // 2
        frames = min((speech.size(1) + HOP_LENGTH - 1) // HOP_LENGTH + TAIL_FRAMES, MAX_FRAMES)
        if frames == MAX_FRAMES:
            whole = F.pad(speech, (0, MAX_SAMPLES - speech.size(1)))
            padded = F.pad(whole.unsqueeze(1), (edge, edge), mode="reflect").squeeze(1)
        else:
            tail = max((frames - 1) * HOP_LENGTH + edge - speech.size(1), edge + 1)
            padded = F.pad(speech, (0, tail))
            padded = torch.cat([padded[:, 1 : edge + 1].flip(1), padded], dim=1)
        spectrum = torch.stft(
            padded, N_FFT, HOP_LENGTH, window=self.window, center=False, return_complex=True
        )
        power = spectrum[..., :frames].abs() ** 2  # (batch, 201, frames)
        log = torch.einsum("fm,bft->bmt", self.filters, power).clamp(min=1e-10).log10()
        floor = log.amax(dim=(1, 2), keepdim=True) - 8.0
        features = (torch.maximum(log, floor) + 4.0) / 4.0
        return features, (lengths + HOP_LENGTH - 1) // HOP_LENGTH


def pad_to_chunk(features: torch.Tensor) -> torch.Tensor:
    """Pad features ``(batch, mels, frames)`` to 30 s with what digital silence gives.

    Silence is the floor of each row: its loudest value less 8 in log10 power, that is less 2 after
    the division by four.
    """
    missing = MAX_FRAMES - features.size(2)
    floor = _silence(features).expand(-1, features.size(1), missing)
    return torch.cat([features, floor], dim=2)


def silence_behind(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Features ``(batch, mels, frames)`` with silence behind ``lengths`` ``(batch,)`` frames."""
    valid = torch.arange(features.size(2), device=features.device) < lengths.unsqueeze(1)
    return torch.where(valid.unsqueeze(1), features, _silence(features))


def _silence(features: torch.Tensor) -> torch.Tensor:
    """What digital silence gives in each row, ``(batch, 1, 1)``."""
    floor = features.amax(dim=(1, 2), keepdim=True) - 2.0
    return torch.maximum(floor, torch.full_like(floor, (-10.0 + 4.0) / 4.0))
