#!/usr/bin/env python3
"""A feed-forward layer whose frames each have an expert of their own, beside MixLoRA's.

Whisper small's encoder layer, random weights, 8 experts of rank 16 in both of its products, 5 s of
speech a row. A linear router picks an expert for every frame, and MixLoRA's layer (its package's
``MixLoraSparseMoe``) has the same router and the same experts; outputs are compared first. With one
expert a frame both compute the same; with two MixLoRA mixes the outputs of whole feed-forwards and
we mix what the experts add to each product, which is another function: that is not timed.

  benchmarks/feed_forward.py
  benchmarks/feed_forward.py --quick
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from harness import Report, Row, Spread, begin, get_parser, peak_memory
from mixlora.config import MixLoraConfig
from mixlora.lora_linear import LoraLinear
from mixlora.model import MixLoraSparseMoe
from models import ALPHA, FRAMES_PER_SECOND, RANK, whisper
from torch import nn

from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.experts.lora import LoRALinear
from espnet_moe.inference.replicas import share

EXPERTS = 8
PRODUCTS = ("fc1", "fc2")
Layer = Callable[[torch.Tensor], torch.Tensor]


def ours(backbone: Any, router: torch.Tensor) -> Layer:
    """The first encoder layer's feed-forward with our experts."""
    block = backbone.hf.model.encoder.layers[0]

    def forward(x: torch.Tensor) -> torch.Tensor:
        picked = F.one_hot(F.linear(x, router).argmax(-1), len(router)).to(x)
        with use_gates(Gates.of(picked)):
            result: torch.Tensor = block.fc2(F.gelu(block.fc1(x)))
        return result

    return forward


def mixlora(block: Any, router: torch.Tensor, held: ExpertSet) -> Layer:
    """MixLoRA's layer around the same feed-forward, with the weights of our experts."""
    config = MixLoraConfig(
        model_type_="phi",  # whose feed-forward is Whisper's: fc1, activation, fc2
        dtype_=torch.float32,
        lora_r_=RANK,
        lora_alpha_=ALPHA,
        lora_dropout_=0.1,  # asked for; off in evaluation
        num_experts_=len(router),
        top_k_=1,
        jitter_noise_=0.0,
        act_fn_=nn.GELU(),
    )
    moe = MixLoraSparseMoe(block, config)
    moe.gate_ = router
    for name in PRODUCTS:
        layer = held.layers[f"model.encoder.layers.0.{name}"]
        assert isinstance(layer, LoRALinear)
        for e in range(len(router)):
            weights = (layer.A(e).detach(), layer.B(e).detach())
            theirs = LoraLinear(getattr(block, name), config, weights)
            moe.experts_[f"experts.{e}.{name}"] = theirs.eval()
    return moe


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__, rounds=15)
    parser.add_argument("--rows", type=int, default=8, help="utterances")
    report = begin("A feed-forward layer, an expert a frame", parser, argv)
    args = report.options
    seconds = 1.0 if args.quick else 5.0
    base = whisper("tiny" if args.quick else "small")
    backbone = share(base, base)
    options = LoRAOptions(targets=PRODUCTS, where="encoder", rank=RANK, alpha=ALPHA)
    held = ExpertSet(backbone, options, [f"expert{e}" for e in range(EXPERTS)])
    for layer in held.layers.values():
        assert isinstance(layer, LoRALinear)
        nn.init.normal_(layer.lora_B, std=0.02)
    x = torch.randn(args.rows, round(seconds * FRAMES_PER_SECOND), base.dim)
    router = torch.randn(EXPERTS, base.dim)
    block = base.hf.model.encoder.layers[0]
    layers = {
        "ours": ours(backbone, router),
        "MixLoRA": mixlora(block, router, held),
        "none": lambda x: block.fc2(F.gelu(block.fc1(x))),
    }
    report.check("a frame's expert", layers["ours"](x), layers["MixLoRA"](x))
    report.check_differs("experts and none", layers["ours"](x), layers["none"](x))
    times = report.time({name: lambda f=f: f(x) for name, f in layers.items()}, repeat=3)
    size = f"{args.rows} x {seconds:.0f} s, {EXPERTS} experts"
    for name in ("ours", "MixLoRA"):
        call, took = layers[name], times.of(name).median
        row = Row(
            f"{name} / none: {size}",
            times.ratio(name, "none"),
            over_floor=report.over_floor(took, lambda f=call: f(x)),
        )
        report.add(row)
    report.add(Row(f"MixLoRA / ours: {size}", times.ratio("MixLoRA", "ours")))
    memory = {name: peak_memory(lambda f=f: f(x)) for name, f in layers.items()}
    value = Spread.of([memory["MixLoRA"] / memory["ours"]])
    note = f"{memory['ours'] / 2**20:.0f} MiB here"
    report.add(Row(f"the same, peak memory: {size}", value, note=note))
    report.write()
    return report


if __name__ == "__main__":
    main()
