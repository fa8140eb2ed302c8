"""SpecAugment of voices that were never recorded: other vocal tracts, microphones and rooms."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from espnet2.asr.specaug.specaug import SpecAug

from espnet_moe.config import ConfigError
from espnet_moe.routing.pooling import valid_frames

KNOTS = 6  # of a spectral envelope, from the lowest to the highest mel bin


class VTLPSpecAug(SpecAug):
    """Vocal tract length perturbation and a random spectral envelope, then ESPnet's SpecAugment.

    A network that has heard few speakers takes the speaker for the language. Vocal tract length
    perturbation (Jaitly and Hinton, 2013) stretches each row's mel axis by a factor of its own; the
    envelope raises and lowers each row's bands as another voice, microphone or room would.

    Args:
        vtlp_range: The factors are drawn from ``[1 - vtlp_range, 1 + vtlp_range]``; 0 for none.
        envelope: Standard deviation of the envelope, in standard deviations of the row's own
            features, so that it means the same to every backbone; 0 for none.
        apply_time_warp, apply_freq_mask, freq_mask_width_range, num_freq_mask, apply_time_mask,
        time_mask_width_range, time_mask_width_ratio_range, num_time_mask, replace_with_zero:
            As in ESPnet's ``SpecAug``.

    Raises:
        ConfigError: For a range outside [0, 1) or a negative envelope.
    """

    def __init__(
        self,
        vtlp_range: float = 0.2,
        envelope: float = 0.4,
        apply_time_warp: bool = True,
        time_warp_window: int = 5,
        time_warp_mode: str = "bicubic",
        apply_freq_mask: bool = True,
        freq_mask_width_range: int | Sequence[int] = (0, 20),
        num_freq_mask: int = 2,
        apply_time_mask: bool = True,
        time_mask_width_range: int | Sequence[int] | None = None,
        time_mask_width_ratio_range: float | Sequence[float] | None = None,
        num_time_mask: int = 2,
        replace_with_zero: bool = True,
    ) -> None:
        wrong = []
        if not 0 <= vtlp_range < 1:
            wrong.append(f"vtlp_range is in [0, 1), not {vtlp_range}")
        if envelope < 0:
            wrong.append(f"envelope is 0 or more, not {envelope}")
        if wrong:
            raise ConfigError(f"specaug_conf: {'; '.join(wrong)}")
        options: dict[str, Any] = {
            "apply_time_warp": apply_time_warp,
            "time_warp_window": time_warp_window,
            "time_warp_mode": time_warp_mode,
            "apply_freq_mask": apply_freq_mask,
            "freq_mask_width_range": freq_mask_width_range,
            "num_freq_mask": num_freq_mask,
            "apply_time_mask": apply_time_mask,
            "time_mask_width_range": time_mask_width_range,
            "time_mask_width_ratio_range": time_mask_width_ratio_range,
            "num_time_mask": num_time_mask,
            "replace_with_zero": replace_with_zero,
        }
        super().__init__(**options)
        self.vtlp_range = vtlp_range
        self.envelope = envelope

    def forward(
        self, x: torch.Tensor, x_lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Augment features ``(batch, frames, mels)``; what is behind a row's end stays as it is."""
        lengths = x.new_full((len(x),), x.size(1), dtype=torch.long)
        inside = valid_frames(lengths if x_lengths is None else x_lengths, x.size(1)).unsqueeze(2)
        changed = x
        if self.vtlp_range > 0:
            low, high = 1 - self.vtlp_range, 1 + self.vtlp_range
            changed = stretch(changed, x.new_empty(len(x)).uniform_(low, high))
        if self.envelope > 0:
            knots = torch.randn(len(x), 1, KNOTS, device=x.device, dtype=x.dtype)
            curve = F.interpolate(knots, size=x.size(2), mode="linear", align_corners=True)
            changed = changed + self.envelope * _deviation(x, inside) * curve
        return super().forward(torch.where(inside, changed, x), x_lengths)


def stretch(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Read each row's mel axis at ``factor`` times the bin, linearly between bins.

    Args:
        x: ``(batch, frames, mels)``.
        factors: ``(batch,)``, above 0; above 1, bins that would lie over the last one repeat it.

    Returns:
        The same shape.
    """
    last = x.size(2) - 1
    places = torch.arange(last + 1, device=x.device, dtype=x.dtype)
    places = (places * factors.to(x.dtype).unsqueeze(1)).clamp(max=last).unsqueeze(1)
    below = places.floor().clamp(max=last - 1)  # (batch, 1, mels)
    at = below.long().expand(-1, x.size(1), -1)
    return torch.lerp(x.gather(2, at), x.gather(2, at + 1), places - below)


def _deviation(x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Standard deviation ``(batch, 1, 1)`` of each row's valid frames, over frames and bins."""
    count = (inside.sum((1, 2), keepdim=True) * x.size(2)).clamp(min=1)
    mean = x.masked_fill(~inside, 0.0).sum((1, 2), keepdim=True) / count
    squares = (x - mean).square().masked_fill(~inside, 0.0)
    return (squares.sum((1, 2), keepdim=True) / count).sqrt()
