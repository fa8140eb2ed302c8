"""The model of phase ``joint``: the task loss trains experts and router together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_moe.backbones.protocol import Backbone
from espnet_moe.config import ConfigError
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.model.experts import ESPnetMoEModel
from espnet_moe.model.router import LanguageIndex, routing_loss
from espnet_moe.routing.losses import balance_loss, entropy_loss, z_loss
from espnet_moe.routing.pooling import hold_last, pool
from espnet_moe.routing.routers import Router
from espnet_moe.routing.strategies import TRAINING_GATES, training_gates
from espnet_moe.routing.usage import UsageMonitor


@dataclass(frozen=True)
class JointOptions:
    """How the router's decision becomes gates, and what is added to the task loss.

    Attributes:
        gating: ``soft``, ``straight_through`` or ``topk``.
        k: Experts of ``topk``.
        noise: Standard deviation of the noise on the logits, in training.
        balance: Weight of the load balance loss (arXiv:2101.03961).
        z: Weight of the router z-loss (arXiv:2202.08906).
        entropy: Weight of the entropy of the gates; above 0 asks for sure decisions.
        router: Weight of the router's cross-entropy against languages and memberships.
        usage_interval: Iterations between two reports of the experts' usage.
        collapse_patience: Intervals after which an expert without rows is reported.
    """

    gating: str = "soft"
    k: int = 2
    noise: float = 0.0
    balance: float = 0.01
    z: float = 0.001
    entropy: float = 0.0
    router: float = 0.1
    usage_interval: int = 50
    collapse_patience: int = 3

    def check(self, experts: Sequence[str]) -> None:
        """Check against the experts that there are.

        Raises:
            ConfigError: All that is wrong, at once.
        """
        wrong = []
        if self.gating not in TRAINING_GATES:
            legal = ", ".join(TRAINING_GATES)
            wrong.append(f"gating '{self.gating}' is unknown: choose one of {legal}")
        if self.gating == "topk" and not 1 <= self.k <= len(experts):
            wrong.append(f"k is in 1..{len(experts)}, the number of experts, not {self.k}")
        for name in ("noise", "balance", "z", "entropy", "router"):
            if getattr(self, name) < 0:
                wrong.append(f"{name} is 0 or more, not {getattr(self, name)}")
        for name in ("usage_interval", "collapse_patience"):
            if getattr(self, name) < 1:
                wrong.append(f"{name} is at least 1, not {getattr(self, name)}")
        if wrong:
            raise ConfigError(f"joint_conf: {'; '.join(wrong)}")


class JointModel(ESPnetMoEModel):
    """Experts and the router that mixes them, in one pass through the backbone.

    The router reads encoder layer ``k``, below the first expert, and the experts act on what is
    above. At frame level the encoder's experts are mixed frame by frame, the decoder's by the mean
    over the frames. The prompt names the true language.

    Args:
        backbone: The foundation model; the experts are inside already.
        experts: The experts inside the backbone.
        router: The network that mixes them.
        specaug: ESPnet's SpecAugment, or ``None``.
        joint: Gates and auxiliary losses.
        label_smoothing: Of the transcripts' cross-entropy, in [0, 1); ``None`` leaves it to the
            backbone.
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic; the parameters stay fp32.
        gradient_checkpointing: Recompute layers in backward instead of keeping their activations.

    Raises:
        ConfigError: For a router of other experts, or one that reads above the first expert.
    """

    def __init__(
        self,
        backbone: Backbone,
        experts: ExpertSet,
        router: Router,
        specaug: AbsSpecAug | None = None,
        joint: JointOptions | None = None,
        label_smoothing: float | None = None,
        precision: str = "fp32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            experts,
            router,
            specaug,
            router.layer,
            label_smoothing,
            precision,
            gradient_checkpointing,
        )
        self.joint = JointOptions() if joint is None else joint
        self.joint.check(experts.names)
        if tuple(router.experts) != experts.names:
            raise ConfigError(
                f"the router chooses among {' '.join(router.experts)}, "
                f"the experts are {' '.join(experts.names)}"
            )
        first_layer = experts.lowest_encoder_layer
        if first_layer is not None and router.layer > first_layer:
            raise ConfigError(
                f"the router reads encoder layer {router.layer}, but experts act from layer "
                f"{first_layer} on: what it reads would depend on what it decides. Train it with "
                f"router_conf layer={first_layer} or lower, or experts with first_layer="
                f"{router.layer} or higher"
            )
        # The experts have learnt with these gates: a temperature would change them in validation.
        router.set_temperatures()
        self.language_index = LanguageIndex(backbone.tokens.languages, router.languages)
        self.usage = UsageMonitor(
            experts.names, self.joint.usage_interval, patience=self.joint.collapse_patience
        )
        self._valid_usage = UsageMonitor(experts.names, 2**62)

    @property
    def chooses_by_labels(self) -> bool:
        """Whether the router gives each utterance one expert, as labels have taught it."""
        alone = self.joint.gating == "straight_through" and self.router.options.level == "utterance"
        return alone and self.joint.router > 0

    def watches(self) -> dict[str, Any]:
        """The experts' usage."""
        return {"usage": self.usage.state_dict()}

    def load_watches(self, state: Mapping[str, Any]) -> None:
        """Go on with what :meth:`watches` gave."""
        if "usage" in state:
            self.usage.load_state_dict(state["usage"])

    def forward(  # type: ignore[override]
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        language: torch.Tensor,
        memberships: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
        text_ctc: torch.Tensor | None = None,
        text_ctc_lengths: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        """Loss of a batch.

        Args:
            speech: ``(batch, samples)`` at 16 kHz.
            speech_lengths: ``(batch,)`` samples.
            text: ``(batch, tokens)`` ids of the transcript, without prompt and end.
            text_lengths: ``(batch,)``.
            language: ``(batch, 1)`` index into the backbone's languages.
            memberships: ``(batch, experts)`` how much a row belongs to each expert, or ``None``.
            weight: ``(batch, 1)`` how much an utterance counts, or ``None`` for one each.
            text_ctc: ``(batch, tokens)`` transcripts of the CTC branch, where they are others.
            text_ctc_lengths: ``(batch,)``; 0 leaves a row out of the CTC loss.

        Returns:
            Loss, statistics (``loss`` and its parts ``loss_ce``, ``loss_balance``, ``loss_z``,
            ``loss_entropy``, ``loss_router``; ``acc`` of tokens, ``acc_language`` and
            ``acc_expert`` in percent; the experts' usage), and the number of utterances.
        """
        codes = [self.backbone.tokens.languages[i] for i in language[:, 0].tolist()]
        prompt = self.backbone.tokens.prompt(codes).to(speech.device)
        augment = self.specaug if self.training else None
        with self.autocast(speech.device):
            lower = self.backbone.encode_lower(speech, speech_lengths, self.split_layer, augment)
        routed = self.router(lower.hidden, lower.spoken)
        noise = self.joint.noise if self.training else 0.0
        gates = training_gates(routed.experts, self.joint.gating, self.joint.k, noise)
        of_rows = gates
        if gates.weights.dim() == 3:
            of_rows = Gates.of(pool(gates.weights, lower.spoken, "mean"))
            # Padding goes through the experts too: as in decoding, by the last frame's gates.
            gates = Gates.of(hold_last(gates.weights, lower.spoken))
        with self.autocast(speech.device), use_gates(gates):
            encoded = self.backbone.encode_upper(lower, self.split_layer)
        ctc = None if text_ctc is None else (text_ctc, text_ctc_lengths)
        loss_ce, stats = self.transcribe(encoded, of_rows, prompt, text, text_lengths, weight, ctc)
        loss_router, right = routing_loss(
            routed,
            lower.spoken,
            self.language_index(language),
            memberships,
            weight,
            smoothing=0.0,
        )
        losses = {
            "ce": loss_ce,
            "balance": balance_loss(routed.experts, routed.lengths),
            "z": z_loss(routed.experts, routed.lengths),
            "entropy": entropy_loss(routed.experts, routed.lengths),
            "router": loss_router,
        }
        loss = loss_ce + sum(
            getattr(self.joint, name) * value for name, value in losses.items() if name != "ce"
        )
        stats |= {f"loss_{name}": value.detach() for name, value in losses.items()}
        stats |= {"acc_language": right.pop("acc"), **right}
        monitor = self.usage if self.training else self._valid_usage
        used: dict[str, Any] = dict(monitor.update(of_rows.weights))
        if not self.training:
            del used["dead_experts"]  # told by the intervals of a training
        stats = {"loss": loss.detach(), **stats, **used}
        gathered: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]
        gathered = force_gatherable((loss, stats, speech.size(0)), loss.device)
        return gathered
