"""The oracle: an utterance gets the expert of its true language."""

from collections.abc import Sequence
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
