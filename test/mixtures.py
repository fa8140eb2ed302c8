"""Small mixtures on disk: experts with random weights, and a router that chooses all of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

NAMES = ("hi", "it", "pa")


def write_expert(backbone: Any, folder: Path, name: str, seed: int, **options: Any) -> Path:
    """Save an expert with random weights; the backbone is as before."""
    from espnet_moe.experts.expert_files import save_expert
    from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions

    experts = ExpertSet(backbone, LoRAOptions(**{"rank": 4, "first_layer": 1, **options}), [name])
    draw = torch.Generator().manual_seed(seed)
    for p in experts.parameters():
        p.data.copy_(0.2 * torch.randn(p.shape, generator=draw))
    facts = {"languages": [name], "context": backbone.context, "backbone": "tiny"}
    facts["tokenizer_digest"] = backbone.tokens.digest()
    save_expert(folder, experts, name, backbone.digest(), facts)
    experts.remove(backbone)
    return folder


@torch.no_grad()
def write_router(
    backbone: Any, folder: Path, waves: list[np.ndarray], languages: Any = NAMES
) -> Path:
    """Save a router whose heads are scaled so that every name is the best one somewhere."""
    from espnet_moe.routing.networks import LinearOptions
    from espnet_moe.routing.router_files import save_router
    from espnet_moe.routing.routers import Router

    seen = [
        backbone.encode_lower(torch.from_numpy(x)[None], torch.tensor([len(x)]), 1) for x in waves
    ]
    for seed in range(50):
        torch.manual_seed(seed)
        router = Router(LinearOptions(layer=1), backbone.dim, NAMES, languages).eval()
        if all(_spread(head, router, seen) for head in (router.expert_head, router.language_head)):
            break
    save_router(folder, router, backbone.digest(), {})
    return folder


def _spread(head: Any, router: Any, seen: list[Any]) -> bool:
    """Scale a head's logits over the recordings; whether each of its names is the best one once."""
    if head is None:
        return True
    torch.nn.init.normal_(head.weight)
    logits = torch.cat([head(router.trunk(e.hidden, e.lengths)) for e in seen])
    head.weight.mul_(1.5 / logits.std(0)[:, None])
    head.bias.copy_(1.5 / logits.std(0) * (head.bias - logits.mean(0)))
    logits = torch.cat([head(router.trunk(e.hidden, e.lengths)) for e in seen])
    return len(set(logits.argmax(-1).tolist())) == logits.size(-1)


def tones(seconds: float, seed: int) -> np.ndarray:
    """Gliding tones whose range changes every 0.5 s, quiet at the changes."""
    draw, t = np.random.default_rng(seed), np.arange(int(seconds * 16000)) / 16000
    x = 0.01 * draw.standard_normal(len(t))
    for a in range(0, len(t), 8000):
        low, n = draw.uniform(100, 5000), len(t[a : a + 8000])
        loud = draw.uniform(0.02, 0.5) * np.hanning(8000)[:n]
        x[a : a + n] += loud * np.sin(6.28 * (low + 300 * t[a : a + n]) * t[:n])
    return x.astype(np.float32)


def write_mixture(
    folder: Path, path: str, backbone: Any, waves: list[np.ndarray]
) -> SimpleNamespace:
    """Paths of backbone, experts, router, and a router over clusters; options that end soon."""
    from espnet_moe.decoding.decoder import DecodeOptions

    return SimpleNamespace(
        folder=folder,
        backbone=path,
        experts={n: write_expert(backbone, folder / n, n, i) for i, n in enumerate(NAMES)},
        extra=write_expert(backbone, folder / "en", "en", 9, rank=8, targets=("all-linear",)),
        router=write_router(backbone, folder / "router", waves),
        clusters=write_router(backbone, folder / "clusters", waves, ("en", "hi")),
        options=DecodeOptions(batch_size=4, max_tokens=8),
    )
