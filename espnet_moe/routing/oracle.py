"""The oracle: an utterance gets the expert of its true language, or those it was assigned to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from espnet_moe.errors import UserError
from espnet_moe.experts.gates import Gates


@dataclass(frozen=True)
class OracleRouter:
    """Gates from known languages. A single expert takes every language."""

    def gates(
        self, languages: Sequence[str], experts: Sequence[str], device: torch.device
    ) -> Gates:
        """Hard gates, a row an utterance.

        Args:
            languages: Language of each row.
            experts: Names of the experts in the order of the gates.
            device: Where the gates are needed.

        Raises:
            UserError: Where a language has no expert.
        """
        if len(experts) == 1:
            return Gates.one_hot([0] * len(languages), 1, device)
        if missing := sorted(set(languages) - set(experts)):
            raise UserError(
                f"no expert for language(s) {', '.join(missing)}; experts: {' '.join(experts)}"
            )
        return Gates.one_hot([experts.index(code) for code in languages], len(experts), device)


def membership_gates(
    memberships: Sequence[Mapping[str, float]], experts: Sequence[str], device: torch.device
) -> Gates:
    """Gates from known memberships, their weights scaled to a sum of one.

    Args:
        memberships: Weight by expert of each row.
        experts: Names of the experts in the order of the gates.
        device: Where the gates are needed.

    Raises:
        UserError: For an expert that is not among them.
    """
    named = {name for row in memberships for name in row}
    if unknown := sorted(named - set(experts)):
        raise UserError(f"no expert is called {', '.join(unknown)}; experts: {' '.join(experts)}")
    if all(len(row) == 1 for row in memberships):
        chosen = [experts.index(next(iter(row))) for row in memberships]
        return Gates.one_hot(chosen, len(experts), device)
    weights = torch.tensor([[row.get(name, 0.0) for name in experts] for row in memberships])
    return Gates.of((weights / weights.sum(1, keepdim=True)).to(device))
