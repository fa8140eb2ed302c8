"""The model that ESPnet trains: backbone, experts and router behind loss, stats and weight."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jiwer
import torch
import torch.nn.functional as F
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.torch_utils.device_funcs import force_gatherable
from espnet2.train.abs_espnet_model import AbsESPnetModel

from espnet_moe.backbones.whisper import Encoded, WhisperBackbone
from espnet_moe.config import ConfigError
from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.routing.oracle import OracleRouter

IGNORE = -100
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class ESPnetMoEModel(AbsESPnetModel):
    """A frozen backbone with experts, trained by cross-entropy on the transcript.

    Its ``state_dict`` holds what is trained and nothing else: a checkpoint is as small as its
    experts, and the base weights are never written.

    Args:
        backbone: The foundation model; the experts are inside already.
        experts: The experts inside the backbone.
        router: Says which experts a row gets.
        specaug: ESPnet's SpecAugment, or ``None``.
        split_layer: Encoder layer ``k`` below which the router reads and no expert acts.
        label_smoothing: Of the cross-entropy, in [0, 1).
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic; the parameters stay fp32.
        gradient_checkpointing: Recompute layers in backward instead of keeping their activations.
    """

    def __init__(
        self,
        backbone: WhisperBackbone,
        experts: ExpertSet,
        router: OracleRouter,
        specaug: AbsSpecAug | None = None,
        split_layer: int = 0,
        label_smoothing: float = 0.0,
        precision: str = "fp32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            legal = ", ".join(PRECISIONS)
            raise ConfigError(f"precision '{precision}' is unknown: choose one of {legal}")
        self.backbone = backbone
        self.experts = experts
        self.router = router
        self.specaug = specaug
        self.split_layer = split_layer
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model_conf: label_smoothing is in [0, 1), not {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.precision = precision
        self.measure_wer = False
        backbone.gradient_checkpointing = gradient_checkpointing

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        language: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Loss of a batch.

        Args:
            speech: ``(batch, samples)`` at 16 kHz.
            speech_lengths: ``(batch,)`` samples.
            text: ``(batch, tokens)`` ids of the transcript, without prompt and end.
            text_lengths: ``(batch,)``.
            language: ``(batch, 1)`` index into the backbone's languages.

        Returns:
            Loss, statistics (``loss``, ``acc`` in percent, in validation also ``wer`` where it is
            measured), and the number of utterances.
        """
        codes = [self.backbone.tokens.languages[i] for i in language[:, 0].tolist()]
        prompt = self.backbone.tokens.prompt(codes).to(speech.device)
        tokens, target = self._targets(prompt, text, text_lengths)
        gates = self.router.gates(codes, self.experts.names, speech.device)
        with self._autocast(speech.device):
            encoded = self.encode(speech, speech_lengths, gates)
            with use_gates(gates):
                logits = self.backbone.decode(tokens, encoded)[:, prompt.size(1) - 1 :]
        logits = logits.float()
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            ignore_index=IGNORE,
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
        counted = target != IGNORE
        right = (logits.argmax(-1) == target) & counted
        stats = {"loss": loss.detach(), "acc": 100.0 * right.sum() / counted.sum()}
        if self.measure_wer and not self.training:
            wer = self._wer(encoded, prompt, gates, text, text_lengths)
            stats["wer"] = torch.tensor(wer, device=loss.device)
        gathered: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]
        gathered = force_gatherable((loss, stats, speech.size(0)), loss.device)
        return gathered

    def encode(self, speech: torch.Tensor, lengths: torch.Tensor, gates: Gates) -> Encoded:
        """Encode with experts from the split layer on; SpecAugment in training."""
        augment = self.specaug if self.training else None
        lower = self.backbone.encode_lower(speech, lengths, self.split_layer, augment)
        with use_gates(gates):
            return self.backbone.encode_upper(lower, self.split_layer)

    def _targets(
        self, prompt: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoder input ``(batch, prompt + tokens)`` and target ``(batch, tokens + 1)``."""
        end = self.backbone.tokens.end_id
        text = text[:, : int(lengths.max())]
        room = self.backbone.max_target_length - prompt.size(1)
        if text.size(1) > room:
            raise ConfigError(
                f"a transcript has {text.size(1)} tokens, this backbone takes {room}: "
                "leave such utterances out (the train command line does)"
            )
        valid = torch.arange(text.size(1), device=text.device) < lengths.unsqueeze(1)
        text = text.masked_fill(~valid, end)
        target = F.pad(text.masked_fill(~valid, IGNORE), (0, 1), value=IGNORE)
        target.scatter_(1, lengths.unsqueeze(1), end)
        return torch.cat([prompt, text], dim=1), target

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype)

    @torch.no_grad()
    def _wer(
        self,
        encoded: Encoded,
        prompt: torch.Tensor,
        gates: Gates,
        text: torch.Tensor,
        lengths: torch.Tensor,
    ) -> float:
        """Greedy word error rate of the batch in percent."""
        tokens = self.backbone.tokens
        longest = 2 * int(lengths.max()) + 10
        with self._autocast(prompt.device):
            found = search(self.backbone, encoded, prompt, SearchOptions(max_tokens=longest), gates)
        references = [
            tokens.decode(row[:n]) for row, n in zip(text.tolist(), lengths.tolist(), strict=True)
        ]
        return 100.0 * jiwer.wer(references, [tokens.decode(h.tokens) for h in found])

    def collect_feats(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Not used: shapes are collected without a model (stage 4)."""
        raise ConfigError("--collect_stats is not needed here: use espnet_moe.bin.collect_shapes")

    # -- checkpoints hold what is trained ---------------------------------------------------------

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Parameters that are trained; frozen ones are left out."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        full = super().state_dict(*args, **kwargs)
        return {name: value for name, value in full.items() if name in trained}

    def load_state_dict(  # type: ignore[override]
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what :meth:`state_dict` gave; a missing or unexpected name is an error."""
        trained = {name for name, p in self.named_parameters() if p.requires_grad}
        missing, extra = sorted(trained - state_dict.keys()), sorted(state_dict.keys() - trained)
        if strict and (missing or extra):
            raise ConfigError(
                f"the checkpoint does not fit: {len(missing)} parameters are missing "
                f"{_few(missing)}, {len(extra)} have no place {_few(extra)}"
            )
        own = dict(self.named_parameters())
        shapes = [n for n, v in state_dict.items() if n in own and v.shape != own[n].shape]
        if shapes:
            raise ConfigError(
                f"the checkpoint does not fit: {len(shapes)} parameters have another shape "
                f"{_few(shapes)}; with other options use another --output_dir"
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def _few(names: Sequence[str]) -> str:
    return f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else ""
