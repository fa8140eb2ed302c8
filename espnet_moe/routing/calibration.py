"""Calibration of a router's head: posteriors that are as sure as they are right."""

import logging
from typing import NamedTuple

import numpy as np
import torch

COLDEST, HOTTEST = 0.05, 20.0
DEVIATION = 0.4  # of the normal prior of a class's bias: few decisions move it little


class Calibration(NamedTuple):
    """What turns a head's logits into log-probabilities, but for a constant.

    Attributes:
        temperature: What the logits are divided by.
        bias: ``(classes,)`` what is added then; it sums to zero.
    """

    temperature: float
    bias: torch.Tensor

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """``logits / temperature + bias``, logits ``(..., classes)``."""
        return logits / self.temperature + self.bias.to(logits)

    @classmethod
    def none(cls, classes: int) -> "Calibration":
        """The one that changes nothing."""
        return cls(1.0, torch.zeros(classes))


def fit_calibration(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> Calibration:
    """Temperature and biases that make held-out data most probable.

    Bias-corrected temperature scaling (Alexandari et al. 2020, "Maximum Likelihood with
    Bias-Corrected Calibration is Hard-To-Beat at Label Shift Adaptation", arXiv:1901.06852; the
    temperature alone: Guo et al. 2017, arXiv:1706.04599), with two differences. Each class counts
    alike, however many decisions there are of it: the biases correct what a router confuses, and
    learn nothing of how frequent a language is in the development set. And each bias has a normal
    prior, which the decisions of its class outweigh the more there are of them. The loss is convex
    in the inverse temperature and the biases; L-BFGS-B finds its minimum.

    Args:
        logits: ``(decisions, classes)``.
        targets: ``(decisions,)`` true class, negative where unknown.
        weights: ``(decisions,)`` for how many each counts, e.g. the frames of an utterance together
            for one; for one each where there are none.

    Returns:
        A temperature in [0.05, 20], and no bias for a class without decisions; nothing is changed
        where the data do not say anything, because there are none, or none with finite logits (one
        of minus infinity, a class that is ruled out, may stand beside them).
    """
    from scipy.optimize import minimize

    classes = logits.size(-1)
    logits, targets = logits.detach().double().cpu(), targets.detach().long().cpu()
    usable = (targets >= 0) & ~(logits.isnan() | (logits == torch.inf)).any(-1)
    of_target = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    usable &= of_target.isfinite()
    if not bool(usable.any()):
        return Calibration.none(classes)
    counts = torch.ones(len(logits)) if weights is None else weights.detach().cpu()
    logits, targets, counts = logits[usable], targets[usable], counts.double()[usable]
    of_classes = targets.bincount(counts, minlength=classes)
    present = (of_classes > 0).double()
    shares = counts / of_classes[targets] / present.sum()
    penalties = present / (2 * DEVIATION**2 * of_classes.clamp(min=1e-9)) / present.sum()
    ruled_out = logits.isinf()  # such a class keeps probability zero
    finite = logits.masked_fill(ruled_out, 0.0)

    def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inverse temperature, and biases that sum to zero over the classes that there are."""
        bias = values[1:] * present
        return values[0], bias - present * (bias.sum() / present.sum())

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(values, requires_grad=True)
        inverse, bias = split(x)
        scaled = (finite * inverse + bias).masked_fill(ruled_out, -torch.inf)
        wrong = torch.nn.functional.cross_entropy(scaled, targets, reduction="none")
        value = (shares * wrong).sum() + (penalties * bias.square()).sum()
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy()

    found = minimize(
        loss,
        [1.0] + [0.0] * classes,
        jac=True,
        method="L-BFGS-B",
        bounds=[(1 / HOTTEST, 1 / COLDEST)] + [(None, None)] * classes,
        options={"ftol": 1e-11, "gtol": 1e-7, "maxiter": 1000},
    )
    if not found.success:
        logging.warning("calibration: not at its best after %d steps: %s", found.nit, found.message)
    inverse, bias = split(torch.from_numpy(found.x))
    return Calibration(1 / float(inverse), bias.float())
