"""Attention in half precision: the same result, and gradients, as in single precision."""

import pytest
import torch

from espnet_moe.backbones.attention import Projections

ROWS, HEADS, WIDTH, FRAMES = 2, 4, 24, 9


def identity(x: torch.Tensor) -> torch.Tensor:
    return x


def attend(x: torch.Tensor, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
    """Self-attention whose projections do nothing."""
    attention = Projections(identity, identity, identity, identity, HEADS, scale=0.4)
    return attention.attend(x, *attention.keys_values(x), mask, causal)


@pytest.mark.parametrize("kind", ["none", "padding", "causal"])
def test_half_precision_is_near_single(kind):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, FRAMES, WIDTH, generator=draw).bfloat16().float()
    weight = torch.randn(ROWS, FRAMES, WIDTH, generator=draw)
    mask = None
    if kind == "padding":
        mask = (torch.arange(FRAMES) < torch.tensor([[FRAMES], [5]]))[:, None, None]
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        own = x.to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attend(own, mask, kind == "causal")
        assert out.dtype == dtype
        (out.float() * weight).sum().backward()
        with torch.no_grad():
            assert torch.allclose(attend(own, mask, kind == "causal"), out, rtol=0.02, atol=0.02)
        found[dtype] = out.detach().float(), own.grad.float()
    for single, half in zip(*found.values(), strict=True):
        assert torch.allclose(single, half, rtol=0.02, atol=0.03)
