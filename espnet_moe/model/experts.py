"""The model of phase ``expert``: experts in the backbone, the gates known from the language."""

from typing import Any

import jiwer
import torch
import torch.nn.functional as F
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.torch_utils.device_funcs import force_gatherable

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.protocol import IGNORE, Backbone
from espnet_moe.config import ConfigError
from espnet_moe.decoding.search import SearchOptions, search
from espnet_moe.experts.expert_set import ExpertSet
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.model.trained import TrainedModel, share_of_mean
from espnet_moe.routing.oracle import OracleRouter

# Word errors and words an utterance: means over batches and processes are those of the whole set.
WER_PARTS = ("wer_errors", "wer_words")


class ESPnetMoEModel(TrainedModel):
    """A frozen backbone with experts, trained by cross-entropy on the transcript.

    Args:
        backbone: The foundation model; the experts are inside already.
        experts: The experts inside the backbone; ``None`` where there are none.
        router: Says which experts a row gets.
        specaug: ESPnet's SpecAugment, or ``None``.
        split_layer: Encoder layer ``k`` below which the router reads and no expert acts.
        label_smoothing: Of the cross-entropy, in [0, 1); ``None`` leaves it to the backbone.
        precision: ``fp32``, ``bf16`` or ``fp16`` arithmetic; the parameters stay fp32.
        gradient_checkpointing: Recompute layers in backward instead of keeping their activations.
    """

    def __init__(
        self,
        backbone: Backbone,
        experts: ExpertSet | None,
        router: Any = None,
        specaug: AbsSpecAug | None = None,
        split_layer: int = 0,
        label_smoothing: float | None = None,
        precision: str = "fp32",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(backbone, label_smoothing, precision)
        self.experts = experts
        self.router: Any = OracleRouter() if router is None else router
        self.specaug = specaug
        self.split_layer = split_layer
        backbone.gradient_checkpointing = gradient_checkpointing

    def forward(
        self,
        speech: torch.Tensor,
        speech_lengths: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        language: torch.Tensor,
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
            weight: ``(batch, 1)`` how much an utterance counts, or ``None`` for one each.
            text_ctc: ``(batch, tokens)`` transcripts of the CTC branch, where they are others.
            text_ctc_lengths: ``(batch,)``; 0 leaves a row out of the CTC loss.

        Returns:
            Loss, statistics (``loss``, ``acc`` in percent, with a CTC branch ``loss_att`` and
            ``loss_ctc``, in validation also :data:`WER_PARTS` where the WER is measured), and the
            number of utterances.
        """
        codes = [self.backbone.tokens.languages[i] for i in language[:, 0].tolist()]
        gates = None
        if self.experts is not None:
            gates = self.router.gates(codes, self.experts.names, speech.device)
        prompt = self.backbone.tokens.prompt(codes).to(speech.device)
        with self.autocast(speech.device):
            encoded = self.encode(speech, speech_lengths, gates)
        ctc = None if text_ctc is None else (text_ctc, text_ctc_lengths)
        loss, stats = self.transcribe(encoded, gates, prompt, text, text_lengths, weight, ctc)
        stats = {"loss": loss.detach(), **stats}
        gathered: tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]
        gathered = force_gatherable((loss, stats, speech.size(0)), loss.device)
        return gathered

    def encode(self, speech: torch.Tensor, lengths: torch.Tensor, gates: Gates | None) -> Encoded:
        """Encode with experts from the split layer on; SpecAugment in training."""
        augment = self.specaug if self.training else None
        lower = self.backbone.encode_lower(speech, lengths, self.split_layer, augment)
        with use_gates(gates):
            return self.backbone.encode_upper(lower, self.split_layer)

    def transcribe(
        self,
        encoded: Encoded,
        gates: Gates | None,
        prompt: torch.Tensor,
        text: torch.Tensor,
        text_lengths: torch.Tensor,
        weight: torch.Tensor | None = None,
        ctc: tuple[torch.Tensor, torch.Tensor | None] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The backbone's loss of the transcripts: its decoder's, and its CTC branch's if any.

        Args:
            encoded: The encoder's output.
            gates: Of the decoder's experts, a row an utterance; ``None`` without experts.
            prompt: ``(batch, prompt tokens)``.
            text: ``(batch, tokens)``.
            text_lengths: ``(batch,)``.
            weight: ``(batch, 1)`` or ``None``.
            ctc: Transcripts ``(batch, tokens)`` of the CTC branch and their lengths ``(batch,)``;
                ``None`` for the same.

        Returns:
            The loss, a mean over all processes' tokens or rows once it is averaged by rows, its
            parts, ``acc`` in percent, and the parts of the WER.
        """
        tokens, target = self._targets(prompt, text, text_lengths)
        with self.autocast(text.device), use_gates(gates):
            logits = self.backbone.decode(tokens, encoded)[:, -target.size(1) :]
        logits = logits.float()
        counted = target != IGNORE
        share = share_of_mean(counted.sum(), len(text))
        loss = self.backbone.attention_loss(logits, target, self.smoothing, weight)
        if self.backbone.token_mean:
            loss = share * loss
        right = (logits.argmax(-1) == target) & counted
        stats = {"acc": share * 100.0 * right.sum() / counted.sum()}
        if (branch := self.backbone.ctc_weight) > 0:
            spoken, lengths = (text, text_lengths) if ctc is None else ctc
            assert lengths is not None
            with self.autocast(text.device):
                of_ctc = self.backbone.ctc_loss(encoded, spoken, lengths, weight)
            of_ctc = share_of_mean((lengths > 0).sum(), len(text)) * of_ctc
            stats |= {"loss_att": loss.detach(), "loss_ctc": of_ctc.detach()}
            loss = branch * of_ctc + (1 - branch) * loss
        if self.measure_wer and not self.training:
            counts = self._word_errors(encoded, prompt, gates, text, text_lengths)
            for key, count in zip(WER_PARTS, counts, strict=True):
                stats[key] = torch.tensor(count / len(text), device=loss.device)
        return loss, stats

    def _targets(
        self, prompt: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoder input ``(batch, prompt + tokens)`` and target.

        The target ``(batch, said + tokens + 1)`` ends with the end token, and begins with as much
        of the prompt's end as the backbone says itself.
        """
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
        said = prompt[:, prompt.size(1) - self.backbone.tokens.target_prompt :]
        return torch.cat([prompt, text], dim=1), torch.cat([said, target], dim=1)

    @torch.no_grad()
    def _word_errors(
        self,
        encoded: Encoded,
        prompt: torch.Tensor,
        gates: Gates | None,
        text: torch.Tensor,
        lengths: torch.Tensor,
    ) -> tuple[int, int]:
        """Word errors of greedy search in the batch, and words of its transcripts."""
        tokens = self.backbone.tokens
        longest = 2 * int(lengths.max()) + 10
        with self.autocast(prompt.device):
            found = search(self.backbone, encoded, prompt, SearchOptions(max_tokens=longest), gates)
        references = [
            tokens.decode(row[:n]) for row, n in zip(text.tolist(), lengths.tolist(), strict=True)
        ]
        said = jiwer.process_words(references, [tokens.decode(h.tokens) for h in found])
        words = said.hits + said.substitutions + said.deletions
        return said.substitutions + said.deletions + said.insertions, words
