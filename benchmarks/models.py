"""Models with random weights in the real shapes, with our experts or a peer's of the same weights.

Peers' expert layers are put into the backbone that runs ours: what surrounds them is the same code,
and only the expert layers differ. PEFT and X-LoRA call the base's layer and have its quick products
(`espnet_moe/linear.py`), too; loralib has a layer of its own.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

from espnet_moe.backbones.attention import Encoded
from espnet_moe.backbones.whisper import WhisperBackbone
from espnet_moe.backbones.whisper_loading import build_tokenizer, openai_tokenizer
from espnet_moe.backbones.whisper_tokens import WhisperTokens, special_tokens
from espnet_moe.experts.expert_set import ExpertSet, LoRAOptions
from espnet_moe.experts.gates import Gates, use_gates
from espnet_moe.experts.lora import LoRALinear
from espnet_moe.inference.replicas import share
from espnet_moe.linear import FewRowsLinear

RANK, ALPHA = 16, 32
FRAMES_PER_SECOND = 50
# dim, layers of each half, heads (openai/whisper ``model card``); tiny is for --quick.
SHAPES = {"small": (768, 12, 12), "tiny": (256, 2, 4)}
LANGUAGES = ("en", "hi", "it", "pa", "te", "de", "fr", "es")
TARGETS = {"q,v": ("q_proj", "v_proj"), "all linear": ("all-linear",)}


def whisper(shape: str, context: str = "variable", real_tokens: bool = False) -> WhisperBackbone:
    """A Whisper in one of :data:`SHAPES`.

    Args:
        shape: Its size.
        context: What the encoder hears.
        real_tokens: Whether ``tiny`` has Whisper's 51,865 tokens, too, instead of bytes.
    """
    torch.manual_seed(0)
    dim, layers, heads = SHAPES[shape]
    if shape == "tiny" and not real_tokens:
        tokenizer = build_tokenizer({bytes([b]): b for b in range(256)}, special_tokens(LANGUAGES))
    else:
        tokenizer = openai_tokenizer(51865)
    tokens = WhisperTokens(tokenizer)
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=dim,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * dim,
        decoder_ffn_dim=4 * dim,
        bos_token_id=tokens.end_id,
        eos_token_id=tokens.end_id,
        pad_token_id=tokens.end_id,
        decoder_start_token_id=tokens.end_id + 1,
        begin_suppress_tokens=None,
    )
    hf = WhisperForConditionalGeneration(config)
    hf.generation_config = GenerationConfig.from_model_config(config)
    return WhisperBackbone(hf, tokens, context).eval()


def transformers_own(backbone: WhisperBackbone) -> WhisperForConditionalGeneration:
    """A copy of the model as transformers makes it: nothing of ours in it makes a peer quicker."""
    model = copy.deepcopy(backbone.hf)
    for layer in model.modules():
        if type(layer) is FewRowsLinear:
            layer.__class__ = nn.Linear
    return model


def with_experts(base: WhisperBackbone, targets: str, experts: int) -> tuple[Any, ExpertSet]:
    """A copy that shares the base's weights, with experts in it whose updates are not zero."""
    torch.manual_seed(1)
    backbone = share(base, base)
    names = [f"expert{e}" for e in range(experts)]
    options = LoRAOptions(targets=TARGETS[targets], rank=RANK, alpha=ALPHA)
    held = ExpertSet(backbone, options, names)
    for layer in held.layers.values():
        assert isinstance(layer, LoRALinear)
        nn.init.normal_(layer.lora_B, std=0.02)
    return backbone, held


def with_peft(base: WhisperBackbone, ours: ExpertSet) -> tuple[Any, Any]:
    """A copy of the base with PEFT's LoRA layers in it that have the weights of our experts.

    Returns:
        The backbone, and PEFT's ``LoraModel`` around its network; no adapter is active yet.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    backbone = share(base, base)
    names = list(ours.layers)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names, inference_mode=True)
    model: PeftModel = get_peft_model(backbone.hf, config, adapter_name=ours.names[0])
    for name in ours.names[1:]:
        model.add_adapter(name, config)
    for name, layer in ours.layers.items():
        theirs = backbone.hf.get_submodule(name)
        assert isinstance(layer, LoRALinear)
        with torch.no_grad():
            for e, expert in enumerate(ours.names):
                theirs.lora_A[expert].weight.copy_(layer.A(e))
                theirs.lora_B[expert].weight.copy_(layer.B(e))
    model.eval()
    return backbone, model.base_model


def activate(lora_model: Any, weights: torch.Tensor) -> None:
    """Make PEFT's adapters a sum with ``weights (experts,)``, the same for all rows."""
    for layer in peft_layers(lora_model):
        layer.set_adapter(list(layer.lora_A))
        for expert, weight in zip(layer.lora_A, weights.tolist(), strict=True):
            layer.scaling[expert] = ALPHA / RANK * weight


def peft_layers(lora_model: Any) -> list[Any]:
    """PEFT's LoRA layers."""
    from peft.tuners.lora import LoraLayer

    return [m for m in lora_model.modules() if isinstance(m, LoraLayer)]


def make_xlora(lora_model: Any, weights: torch.Tensor) -> None:
    """Let X-LoRA's layers mix PEFT's adapters by ``weights (batch, experts)``.

    The gates are given to the layers at once. X-LoRA itself first runs the whole model without
    adapters to get them: that pass is not counted against it here.
    """
    from peft.tuners.xlora.config import XLoraConfig
    from peft.tuners.xlora.layer import XLoraLinearLayer

    activate(lora_model, torch.ones(weights.size(1)))
    config = XLoraConfig(hidden_size=1, adapters={}, global_scaling_weight=1.0)
    scalings = weights[:, None, None, :]  # (batch, 1 for all frames, 1 layer, experts)
    model = nn.Module()
    model.disabled = False  # type: ignore[assignment]
    for layer in peft_layers(lora_model):
        mixing = XLoraLinearLayer(model, layer, layer.forward, 0, config)
        layer.forward = partial(mixing.forward, scalings=scalings)


def with_loralib(base: WhisperBackbone, ours: ExpertSet) -> Any:
    """A copy with loralib's layers, as ESPnet uses them, that hold our first expert."""
    import loralib

    backbone = share(base, base)
    for name, layer in ours.layers.items():
        assert isinstance(layer, LoRALinear)
        bias = layer.bias is not None
        theirs = loralib.Linear(
            layer.in_features,
            layer.out_features,
            r=RANK,
            lora_alpha=ALPHA,
            bias=bias,
            merge_weights=False,
        )
        theirs.weight, theirs.bias = layer.base.weight, layer.base.bias
        with torch.no_grad():
            theirs.lora_A.copy_(layer.A(0))
            theirs.lora_B.copy_(layer.B(0))
        theirs.eval()  # returns nothing
        parent, _, leaf = name.rpartition(".")
        setattr(backbone.hf.get_submodule(parent), leaf, theirs)
    return backbone


def soft_gates(rows: int, experts: int) -> Gates:
    """Every row its own mixture of all experts."""
    draw = torch.Generator().manual_seed(2)
    return Gates.of(torch.randn(rows, experts, generator=draw).softmax(-1))


def features(backbone: WhisperBackbone, rows: int, seconds: float) -> torch.Tensor:
    """Random encoder input ``(rows, mels, frames)`` of utterances of the same length."""
    draw = torch.Generator().manual_seed(3)
    frames = round(2 * FRAMES_PER_SECOND * seconds)
    return torch.randn(rows, backbone.config.num_mel_bins, frames, generator=draw)


Context = Callable[[int], AbstractContextManager[Any]]


def encoding(backbone: Any, mel: torch.Tensor, context: Context) -> Callable[[], torch.Tensor]:
    """A call that encodes ``mel (rows, mels, frames)`` to ``(rows, frames, dim)``.

    Args:
        backbone: Ours, or one with a peer's layers in it.
        mel: Features of utterances of the same length.
        context: What the experts are given, for one row an utterance: ``context(1)``.
    """
    lengths = torch.full((mel.size(0),), mel.size(2))

    @torch.no_grad()
    def encode() -> torch.Tensor:
        with context(1):
            state = backbone.encode_features(mel, lengths, 0)
            return backbone.encode_upper(state, 0).hidden

    return encode


def decoding_step(
    backbone: Any, rows: int, beams: int, seconds: float, context: Context, position: int = 24
) -> Callable[[], torch.Tensor]:
    """A call that decodes the token at ``position`` of ``rows`` utterances, ``beams`` rows each.

    Every call decodes the same step anew: the caches hold what was there before it.

    Args:
        backbone: Ours, or one with a peer's layers in it.
        rows: Utterances.
        beams: Rows of each.
        seconds: Of each.
        context: What the experts are given; ``context(n)`` for n rows an utterance.
        position: Tokens before.

    Returns:
        The call, which gives logits ``(rows · beams, vocabulary)``.
    """
    draw = torch.Generator().manual_seed(4)
    frames = round(FRAMES_PER_SECOND * seconds)
    hidden = torch.randn(rows, frames, backbone.dim, generator=draw)
    tokens = torch.randint(0, 200, (rows * beams, position + 1), generator=draw)
    encoded = Encoded(hidden, torch.full((rows,), frames))
    with torch.no_grad():
        with context(1):
            state = backbone.start(encoded, beams, position + 1)
        with context(beams):
            backbone.step(tokens[:, :position], state)

    @torch.no_grad()
    def step() -> torch.Tensor:
        state.length = position
        with context(beams):
            return backbone.step(tokens[:, position:], state)

    return step


def no_experts(_: int) -> AbstractContextManager[None]:
    """Nothing is given to the experts: there are none, or they know what they do."""
    return nullcontext()


def gated(gates: Gates) -> Context:
    """Gates of utterances, and of their beams."""
    rows = torch.arange(gates.weights.size(0))
    by_beams = {n: gates.select(rows.repeat_interleave(n)) for n in (1, 5)}
    return lambda beams: use_gates(by_beams[beams])


def expert_rows(count: int, languages: int, experts: Sequence[str]) -> list[str]:
    """The expert of each row: the first ``languages`` of ``experts`` in turn."""
    return [experts[i % languages] for i in range(count)]
