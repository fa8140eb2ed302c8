"""The model of phase ``finetune``: a base whose own weights are trained, to compare with."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.config import ConfigError
from espnet_moe.model.experts import ESPnetMoEModel

PARTS = ("full", "decoder")


@dataclass(frozen=True)
class FinetuneOptions:
    """What of a base is trained.

    Attributes:
        part: ``full``: all weights that its authors trained; ``decoder``: those of the decoder.
    """

    part: str = "full"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ConfigError(f"part is {' or '.join(PARTS)}, not '{self.part}'")


class FineTunedModel(ESPnetMoEModel):
    """A backbone without experts, of which a part or all is trained.

    Args:
        backbone: As it was loaded: what is frozen in it (sinusoids) stays so.
        finetune: Which part.
        **kwargs: As for :class:`ESPnetMoEModel`.
    """

    def __init__(self, backbone: Backbone, finetune: FinetuneOptions, **kwargs: Any) -> None:
        super().__init__(backbone, None, **kwargs)
        self.finetuned: list[nn.Parameter] = [
            parameter
            for name, parameter in backbone.network.named_parameters()
            if parameter.requires_grad and (finetune.part == "full" or "decoder." in name)
        ]
