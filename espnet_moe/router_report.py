"""How well a trained router decides on a set: calibration, accuracy, confusion."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from espnet_moe.model import JointModel, RouterModel
from espnet_moe.routing.calibration import Calibration, fit_calibration

BINS = 15  # of the calibration error, as in Guo et al. 2017
MOST_DECISIONS = 1_000_000  # to fit a calibration by, or a large set would not fit into memory


@dataclass
class Decisions:
    """What a head said of a set.

    Attributes:
        logits: Of each utterance ``(decisions, classes)``: one, or one a frame; not divided by a
            temperature.
        targets: ``(utterances,)`` true class; -1 where none is known.
    """

    logits: list[torch.Tensor]
    targets: torch.Tensor

    def posteriors(self, calibration: Calibration) -> torch.Tensor:
        """``(utterances, classes)``, at frame level the mean over the frames."""
        return torch.stack([calibration(x).softmax(-1).mean(0) for x in self.logits])

    def fit(self) -> Calibration:
        """The calibration that fits best; an utterance counts once, however many frames it has.

        Of very many frames every second, third, … is looked at: neighbours say the same.
        """
        step = -(-sum(map(len, self.logits)) // MOST_DECISIONS)
        logits = [x[:: max(step, 1)] for x in self.logits]
        frames = torch.tensor([len(x) for x in logits])
        targets, weights = (v.repeat_interleave(frames) for v in (self.targets, 1 / frames))
        return fit_calibration(torch.cat(logits), targets, weights)


@torch.no_grad()
def decide(
    model: RouterModel | JointModel, batches: Iterable[tuple[Any, Mapping[str, torch.Tensor]]]
) -> tuple[Decisions, Decisions]:
    """Route a set.

    Args:
        model: Its router is read, and left, at temperature 1; without augmentation.
        batches: As the training has them: ids, and tensors by name.

    Returns:
        Of the expert head and of the language head; the same where one serves both.
    """
    model.eval()
    router, device = model.router, model.backbone.device
    router.set_temperatures()
    found: list[list[torch.Tensor]] = [[], []]
    targets: list[list[torch.Tensor]] = [[], []]
    for _, batch in batches:
        speech, lengths = batch["speech"].to(device), batch["speech_lengths"].to(device)
        with model.autocast(device):
            lower = model.backbone.encode_lower(speech, lengths, router.layer)
        routed = router(lower.hidden, lower.spoken)
        languages = model.language_index(batch["language"].to(device)).cpu()
        experts = (
            languages if routed.experts is routed.languages else torch.full_like(languages, -1)
        )
        if routed.experts is not routed.languages and "memberships" in batch:
            experts = batch["memberships"].argmax(-1)
        for i, logits in enumerate((routed.experts, routed.languages)):
            rows = logits.float().cpu()
            found[i] += (
                list(rows.unsqueeze(1))
                if rows.dim() == 2
                else [x[:n] for x, n in zip(rows, lower.spoken.clamp(min=1).tolist(), strict=True)]
            )
            targets[i].append((experts, languages)[i])
    return Decisions(found[0], torch.cat(targets[0])), Decisions(found[1], torch.cat(targets[1]))


def figures(
    decisions: Decisions, calibration: Calibration, classes: Sequence[str]
) -> dict[str, Any]:
    """Accuracy in percent and calibration error, before and after calibration, and confusion.

    Args:
        decisions: Of one head.
        calibration: Of this head, that the router is saved with.
        classes: Their names.

    Returns:
        ``utterances``, ``accuracy_before``, ``accuracy``, ``ece_before``, ``ece`` and ``confusion``
        (true class → decided class → utterances); nothing where no class is known.
    """
    known = decisions.targets >= 0
    if not bool(known.any()):
        return {}
    targets = decisions.targets[known]
    none = Calibration.none(len(classes))
    before, after = (decisions.posteriors(c)[known] for c in (none, calibration))
    decided = after.argmax(-1)
    confusion = {
        name: {
            other: int(((targets == i) & (decided == j)).sum()) for j, other in enumerate(classes)
        }
        for i, name in enumerate(classes)
    }
    return {
        "utterances": len(targets),
        "accuracy_before": _accuracy(before, targets),
        "accuracy": _accuracy(after, targets),
        "ece_before": round(calibration_error(before, targets), 5),
        "ece": round(calibration_error(after, targets), 5),
        "confusion": confusion,
    }


def _accuracy(posteriors: torch.Tensor, targets: torch.Tensor) -> float:
    return round(100.0 * float((posteriors.argmax(-1) == targets).float().mean()), 3)


def calibration_error(posteriors: torch.Tensor, targets: torch.Tensor) -> float:
    """Expected calibration error in bins of equal width (Guo et al., arXiv:1706.04599).

    Args:
        posteriors: ``(utterances, classes)``.
        targets: ``(utterances,)``.

    Returns:
        Mean distance between confidence and accuracy, in [0, 1].
    """
    confidence, decided = posteriors.max(-1)
    right = (decided == targets).float()
    numbers = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = torch.zeros(BINS).index_add_(0, numbers, confidence - right)
    return float(gaps.abs().sum() / len(targets))
