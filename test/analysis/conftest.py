"""Experts made by hand, saved as training saves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from espnet_moe.experts.expert_files import save_expert
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions


@pytest.fixture
def save_random(make_backbone: Callable, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Save experts with random weights: ``save_random("hi", "it")`` → folder by name."""

    def save(*names: str, change: Callable | None = None, **options: object) -> dict[str, str]:
        backbone = make_backbone()
        own = LoRAOptions(**{"targets": ("q_proj", "fc1"), "rank": 4, "alpha": 10.0, **options})
        experts = ExpertSet(backbone, own, list(names))
        torch.manual_seed(3)
        for p in experts.parameters():
            torch.nn.init.normal_(p, std=0.2)
        if change is not None:
            with torch.no_grad():
                change(experts)
        for name in names:
            facts = {"backbone": "tiny", "languages": [name]}
            save_expert(tmp_path / name, experts, name, backbone.digest(), facts)
        return {name: str(tmp_path / name) for name in names}

    return save
