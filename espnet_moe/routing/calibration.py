"""Temperature calibration: posteriors that are as sure as they are right."""

import math

import torch

COLDEST, HOTTEST = 0.05, 20.0
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 40  # each shortens the interval by 0.618: what is left is nothing


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature by which to divide logits so that held-out data are most probable.

    The negative log-likelihood has one minimum over the temperature; golden-section search on its
    logarithm finds it. Guo et al. 2017, "On Calibration of Modern Neural Networks",
    arXiv:1706.04599.

    Args:
        logits: ``(decisions, classes)``, not divided by a temperature.
        targets: Labels ``(decisions,)``, negative where unknown; or soft ones
            ``(decisions, classes)``, all zero where unknown.

    Returns:
        A temperature in [0.05, 20]; 1 where the data do not say anything, because there are none,
        or none with a finite logit for its class.
    """
    logits = logits.detach().double()
    if targets.dim() == 1:
        known = targets >= 0
        one_hot = torch.nn.functional.one_hot(targets.clamp(min=0).long(), logits.size(-1))
        targets = one_hot * known.unsqueeze(1)
    targets = targets.to(logits)
    # A class that is ruled out keeps probability zero at any temperature.
    finite = logits.isfinite()
    usable = (targets.sum(-1) > 0) & (finite | (targets == 0)).all(-1)
    usable &= ~(logits.isnan() | (logits == math.inf)).any(-1)
    if not bool(usable.any()):
        return 1.0
    logits, targets = logits[usable], targets[usable]

    def loss(log_temperature: float) -> float:
        log = (logits / math.exp(log_temperature)).log_softmax(-1)
        return float(-(targets * log.masked_fill(targets == 0, 0.0)).sum(-1).mean())

    low, high = math.log(COLDEST), math.log(HOTTEST)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    best = (low + high) / 2
    if not loss(best) < loss(0.0):
        return 1.0
    return min(max(math.exp(best), COLDEST), HOTTEST)
