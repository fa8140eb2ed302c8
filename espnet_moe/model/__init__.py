"""What ESPnet trains: a model for each phase, behind loss, stats and weight."""

from espnet_moe.model.experts import ESPnetMoEModel
from espnet_moe.model.finetuned import FineTunedModel, FinetuneOptions
from espnet_moe.model.joint import JointModel, JointOptions
from espnet_moe.model.router import AugmentOptions, RouterModel
from espnet_moe.model.trained import PRECISIONS, TrainedModel, precision_for

__all__ = [
    "PRECISIONS",
    "AugmentOptions",
    "ESPnetMoEModel",
    "FineTunedModel",
    "FinetuneOptions",
    "JointModel",
    "JointOptions",
    "RouterModel",
    "TrainedModel",
    "precision_for",
]
