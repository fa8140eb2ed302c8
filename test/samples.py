"""What tests share that is no fixture: sentences, and weights that tell models apart."""

from typing import Any

TEXTS = {
    "hi": ["नमस्ते दुनिया", "यह एक घर है", "पानी लाओ", "वह कल आएगा"],
    "it": ["ciao mondo", "questa è la casa", "l'acqua fredda", "viene domani"],
    "pa": ["ਸਤ ਸ੍ਰੀ ਅਕਾਲ", "ਇਹ ਇੱਕ ਘਰ ਹੈ", "ਪਾਣੀ ਲਿਆਓ", "ਉਹ ਕੱਲ੍ਹ ਆਵੇਗਾ"],
}


def random_weights(model: Any, seed: int = 0, scale: float = 0.25) -> None:
    """Weights so large that logits differ clearly, biases and norms included."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=draw)
            p.copy_(1 + 0.2 * noise if "norm.weight" in name else scale * noise)
