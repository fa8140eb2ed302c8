#!/usr/bin/env python3
"""A training step: router and 8 experts together against one expert, and one against PEFT's.

Whisper small's shape, random weights, experts of rank 16 in queries and values of encoder and
decoder, AdamW over what is trained. A step is forward, backward and the optimizer's. PEFT's adapter
has the same weights in the same backbone, and, as its users have it, in transformers' own model,
which takes 30 s only; the losses are compared first.

  benchmarks/training_step.py
  benchmarks/training_step.py --quick
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import Report, Row, Spread, begin, get_parser, peak_memory
from models import features, whisper, with_experts, with_peft
from torch import nn

from espnet_moe.backbones.attention import Encoded
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.routing.losses import balance_loss, z_loss
from espnet_moe.routing.networks import LinearOptions
from espnet_moe.routing.routers import Router
from espnet_moe.routing.strategies import training_gates

EXPERTS = 8
TOKENS = 24
Forward = Callable[[], torch.Tensor]


class Batch:
    """Features and targets of a batch."""

    def __init__(self, backbone: Any, rows: int, seconds: float) -> None:
        draw = torch.Generator().manual_seed(5)
        self.mel = features(backbone, rows, seconds)
        self.lengths = torch.full((rows,), self.mel.size(2))
        self.tokens = torch.randint(0, 200, (rows, TOKENS), generator=draw)
        self.target = torch.randint(0, 200, (rows, TOKENS), generator=draw)

    def loss(self, backbone: Any, gates: Gates | None) -> torch.Tensor:
        """Of the backbone with these gates."""
        with use_gates(gates):
            lower = backbone.encode_features(self.mel, self.lengths, 0)
            return self._upper(backbone, lower)

    def _upper(self, backbone: Any, lower: Encoded) -> torch.Tensor:
        logits = backbone.decode(self.tokens, backbone.encode_upper(lower, 0))
        return backbone.attention_loss(logits, self.target)

    def joint_loss(self, backbone: Any, router: Router, gating: str) -> torch.Tensor:
        """Of a router and the experts that it mixes, as phase ``joint`` has it."""
        lower = backbone.encode_features(self.mel, self.lengths, 0)
        routed = router(lower.hidden, lower.spoken)
        with use_gates(training_gates(routed.experts, gating, k=2)):
            loss = self._upper(backbone, lower)
        extra = 0.01 * balance_loss(routed.experts, None) + 0.001 * z_loss(routed.experts, None)
        return loss + extra


def training_step(forward: Forward, parameters: list[nn.Parameter]) -> Forward:
    """Forward, backward, AdamW; gives the loss. The rate is 0, so that all steps are the same."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def with_adapter(backbone: Any, one: Any) -> tuple[Any, list[nn.Parameter]]:
    """PEFT's layers with the weights of our one expert, and what of them is trained."""
    theirs, lora = with_peft(backbone, one)
    lora.set_adapter(one.names[0])
    return theirs, [p for name, p in theirs.hf.named_parameters() if ".lora_" in name]


def short(report: Report) -> None:
    """One expert, a mixture, and PEFT, on short utterances in the same backbone."""
    quick = report.options.quick
    rows, seconds = (2, 1.0) if quick else (2, 5.0)
    size = f"{rows} x {seconds:.0f} s"
    base = whisper("tiny" if quick else "small")
    batch = Batch(base, rows, seconds)
    alone, one = with_experts(base, "q,v", 1)
    gates = Gates.one_hot([0] * rows, 1, base.device)
    calls = {"one": training_step(lambda: batch.loss(alone, gates), one.parameters())}
    theirs, adapter = with_adapter(base, one)
    calls["peft"] = training_step(lambda: batch.loss(theirs, None), adapter)
    for gating in ("soft", "topk"):
        calls[gating] = joint_step(batch, base, gating)
    report.check(f"loss of one expert, ours and PEFT's, {size}", calls["one"](), calls["peft"]())
    grads = [p.grad for p in one.parameters()]
    of_peft = [p.grad for p in adapter]
    assert all(g is not None for g in grads + of_peft)
    norms = [torch.stack([g.norm() for g in own]).norm() for own in (grads, of_peft)]  # type: ignore
    report.check(f"norm of the gradient, ours and PEFT's, {size}", *norms)
    times = report.time(calls)
    bars = {"soft": "<= 1.25", "topk": "<= 1.15"}
    for gating, bar in bars.items():
        row = Row(f"joint, {gating} of 8 / one expert: {size}", times.ratio(gating, "one"), bar=bar)
        report.add(row)
    row = Row(f"one expert, ours / PEFT's, same backbone: {size}", times.ratio("one", "peft"))
    report.add(Row(row.what, row.value, bar="<= 1.0"))
    most = {name: float(peak_memory(call)) for name, call in calls.items()}
    for name in ("soft", "topk"):
        value = Spread.of([most[name] / most["one"]])
        note = f"{most['one'] / 2**20:.0f} MiB with one expert"
        report.add(Row(f"peak memory, joint {name} / one: {size}", value, bar="<= 1.10", note=note))
    value = Spread.of([most["one"] / most["peft"]])
    report.add(Row(f"peak memory, one expert, ours / PEFT's: {size}", value))


def joint_step(batch: Batch, base: Any, gating: str) -> Forward:
    """A step of phase ``joint``: a linear router, and all experts."""
    backbone, experts = with_experts(base, "q,v", EXPERTS)
    codes = [f"l{e}" for e in range(EXPERTS)]
    router = Router(LinearOptions(), base.dim, experts.names, codes).train()
    parameters = experts.parameters() + list(router.parameters())
    return training_step(lambda: batch.joint_loss(backbone, router, gating), parameters)


def padded(report: Report) -> None:
    """One expert against PEFT's adapter in transformers' own model, 30 s."""
    quick = report.options.quick
    base = whisper("tiny" if quick else "small", "padded")
    batch = Batch(base, 1, 30.0)
    ours, one = with_experts(base, "q,v", 1)
    theirs, adapter = with_adapter(base, one)
    gates = Gates.one_hot([0], 1, base.device)

    def of_transformers() -> torch.Tensor:
        logits = theirs.hf(input_features=batch.mel, decoder_input_ids=batch.tokens).logits
        return base.attention_loss(logits, batch.target)

    calls = {
        "one": training_step(lambda: batch.loss(ours, gates), one.parameters()),
        "peft": training_step(of_transformers, adapter),
    }
    report.check("loss, ours and PEFT's on transformers, 1 x 30 s", calls["one"](), calls["peft"]())
    times = report.time(calls)
    what = "one expert, ours / PEFT on transformers: 1 x 30 s"
    report.add(Row(what, times.ratio("one", "peft"), bar="<= 1.0"))


def main(argv: Sequence[str] | None = None) -> Report:
    """Compare, time, print a table."""
    parser = get_parser(__doc__, rounds=7)
    parser.add_argument(
        "--parts", nargs="+", choices=["short", "padded"], default=["short", "padded"]
    )
    report = begin("A training step", parser, argv)
    if "short" in report.options.parts:
        short(report)
    if "padded" in report.options.parts:
        padded(report)
    report.write()
    return report


if __name__ == "__main__":
    main()
