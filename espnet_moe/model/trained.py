"""What the models of all phases share: precision, exact means, checkpoints of what trains."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from espnet2.train.abs_espnet_model import AbsESPnetModel
from torch import nn

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.config import ConfigError
from espnet_moe.routing.losses import global_sum

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Instructions that multiply in bf16, by torch's names for them: AVX-512, AMX, ARM.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")


def precision_for(wanted: str, device: torch.device) -> str:
    """The precision to train in: what is wanted, where that is ``auto`` the fastest safe one.

    A processor without bf16 instructions emulates them: an expert's step took nine times that of
    fp32 on an AVX2 processor (torch 2.11, EPYC 7003).

    Args:
        wanted: ``auto`` or one of :data:`PRECISIONS`.
        device: What trains.

    Returns:
        One of :data:`PRECISIONS`; for ``auto`` ``bf16`` where the device multiplies in it,
        elsewhere ``fp32``.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = torch.cpu.get_capabilities()
        native = any(has.get(name, False) for name in _BF16_INSTRUCTIONS)
    if wanted == "auto":
        chosen = "bf16" if native else "fp32"
        logging.info("precision: %s, the fastest of fp32 and bf16 on this %s", chosen, device.type)
        return chosen
    if wanted == "bf16" and not native:
        logging.warning(
            "precision: this %s has no bf16 instructions and emulates them, which takes several "
            "times what fp32 takes: choose fp32, or auto",
            device.type,
        )
    return wanted


class TrainedModel(AbsESPnetModel):
    """A frozen backbone with something in it or beside it that is trained.

    Its ``state_dict`` holds what is trained and nothing else: a checkpoint is as small as its
    experts and router, and the base weights are never written.

    Args:
        backbone: The foundation model.
        label_smoothing: Of the cross-entropy in training, in [0, 1); ``None`` leaves it to the
            backbone.
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic; the parameters stay fp32.
    """

    def __init__(self, backbone: Backbone, label_smoothing: float | None, precision: str) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            legal = ", ".join(PRECISIONS)
            raise ConfigError(f"precision '{precision}' is unknown: choose one of {legal}")
        if label_smoothing is not None and not 0 <= label_smoothing < 1:
            raise ConfigError(f"model_conf: label_smoothing is in [0, 1), not {label_smoothing}")
        self.backbone = backbone
        self.label_smoothing = label_smoothing
        self.precision = precision
        self.measure_wer = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The arithmetic of the options."""
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    @property
    def smoothing(self) -> float | None:
        """Label smoothing that holds now: what is set holds in training, not in validation."""
        return self.label_smoothing if self.training or self.label_smoothing is None else 0.0

    def collect_feats(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Not used: shapes are collected without a model (stage 4)."""
        raise ConfigError("--collect_stats is not needed here: use espnet_moe.bin.collect_shapes")

    def watches(self) -> dict[str, Any]:
        """What was observed over many batches, for a checkpoint; numbers and lists only."""
        return {}

    def load_watches(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`watches` gave."""

    # -- checkpoints hold what is trained ---------------------------------------------------------

    def _kept(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds: trained parameters, and the buffers of modules with any."""
        kept: dict[str, torch.Tensor] = {
            n: p for n, p in self.named_parameters() if p.requires_grad
        }
        router = getattr(self, "router", None)
        if isinstance(router, nn.Module):
            own = nn.Module.state_dict(router)
            buffers = dict(router.named_buffers())
            kept |= {f"router.{name}": buffers[name] for name in own if name in buffers}
        return kept

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters that are trained; frozen ones are left out."""
        kept = self._kept()
        full = super().state_dict(*args, **kwargs)
        return {name: value for name, value in full.items() if name in kept}

    def load_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what :meth:`state_dict` gave; a missing or unexpected name is an error."""
        own = self._kept()
        missing, extra = sorted(own.keys() - state_dict.keys()), sorted(state_dict.keys() - own)
        if strict and (missing or extra):
            raise ConfigError(
                f"the checkpoint does not fit: {len(missing)} parameters are missing "
                f"{_few(missing)}, {len(extra)} have no place {_few(extra)}"
            )
        shapes = [n for n, v in state_dict.items() if n in own and v.shape != own[n].shape]
        if shapes:
            raise ConfigError(
                f"the checkpoint does not fit: {len(shapes)} parameters have another shape "
                f"{_few(shapes)}; with other options use another --output_dir"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def share_of_mean(local: torch.Tensor, rows: int) -> torch.Tensor | float:
    """What a process multiplies its mean with, so that ESPnet's average is the global mean.

    ESPnet averages the processes' losses by their rows, but a mean may be over something else
    (tokens, frames), of which equal rows have unequal numbers. With the factor

    ``local / global · global rows / local rows``

    the average over processes is the mean over all of it, in value and in gradient.

    Args:
        local: Scalar count of this process.
        rows: Rows of this process.

    Returns:
        The factor; exactly 1 in a single process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1.0
    counts = global_sum(torch.stack([local.float(), local.new_tensor(rows).float()]))
    return local / counts[0].clamp(min=1) * counts[1] / rows


def _few(names: Sequence[str]) -> str:
    return f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
