"""The networks of the routers: linear, MLP, 1-D CNN, LSTM and self-attention.

Each takes frames ``(batch, frames, dim)`` and lengths ``(batch,)`` and gives features
``(batch, out_dim)`` at utterance level or ``(batch, frames, out_dim)`` at frame level.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from espnet_moe import extensions
from espnet_moe.errors import UserError
from espnet_moe.routing.pooling import POOLINGS, pool, pooled_dim, valid_frames

LEVELS = ("utterance", "frame")
DILATION = 3  # each convolution's step between taps is three times that of the one below


@dataclass(frozen=True)
class RouterOptions:
    """What all routers have in common.

    Attributes:
        layer: Encoder layer that is read: 0 for the output of the convolutions.
        level: ``utterance``: one decision a row; ``frame``: one an encoder frame.
        pooling: ``mean`` or ``mean_std`` over a row's frames (utterance level).
    """

    layer: int = 0
    level: str = "utterance"
    pooling: str = "mean"

    def problems(self) -> list[str]:
        """What is wrong with the values, empty where nothing is."""
        problems = []
        if self.layer < 0:
            problems.append(f"layer is {self.layer}, but must be at least 0")
        if self.level not in LEVELS:
            problems.append(f"level '{self.level}' is unknown: choose one of {', '.join(LEVELS)}")
        if self.pooling not in POOLINGS:
            problems.append(
                f"pooling '{self.pooling}' is unknown: choose one of {', '.join(POOLINGS)}"
            )
        return problems

    def build(self, dim: int) -> nn.Module:
        """The network over frames ``dim`` wide; its ``out_dim`` is the width of its features."""
        raise NotImplementedError


@dataclass(frozen=True)
class LinearOptions(RouterOptions):
    """A linear router."""

    def build(self, dim: int) -> nn.Module:
        """The network over frames ``dim`` wide."""
        return Pooled(self, dim)


@dataclass(frozen=True)
class MLPOptions(RouterOptions):
    """A multi-layer perceptron.

    Attributes:
        hidden: Widths of the hidden layers.
        dropout: Behind each of them.
    """

    hidden: tuple[int, ...] = (256, 128)
    dropout: float = 0.3

    def problems(self) -> list[str]:
        """What is wrong with the values, empty where nothing is."""
        wrong = [w for w in self.hidden if not isinstance(w, int) or w < 1]
        widths = [f"hidden holds {w!r}, but widths are whole and at least 1" for w in wrong]
        return super().problems() + widths + _dropout_problems(self.dropout)

    def build(self, dim: int) -> nn.Module:
        """The network over frames ``dim`` wide."""
        return Pooled(self, dim)


@dataclass(frozen=True)
class CNNOptions(RouterOptions):
    """A dilated 1-D CNN; the default sees 53 frames, about one second.

    Attributes:
        stride: Frames that are averaged into one before the convolutions; at frame level each of
            them gets the decision of its group. Makes the router cheaper by this factor.
        channels: Width of every layer.
        kernel: Taps of a convolution, an odd number.
        num_layers: Convolutions; the dilations are 1, 3, 9, …
        dropout: Behind each of them.
    """

    pooling: str = "mean_std"
    channels: int = 128
    kernel: int = 5
    num_layers: int = 3
    dropout: float = 0.1
    stride: int = 1

    def problems(self) -> list[str]:
        """What is wrong with the values, empty where nothing is."""
        problems = super().problems() + _dropout_problems(self.dropout)
        problems += _count_problems(
            channels=self.channels, num_layers=self.num_layers, stride=self.stride
        )
        if self.kernel < 1 or self.kernel % 2 == 0:
            problems.append(f"kernel is {self.kernel}, but must be odd and at least 1")
        return problems

    def build(self, dim: int) -> nn.Module:
        """The network over frames ``dim`` wide."""
        return CNN(self, dim)


@dataclass(frozen=True)
class LSTMOptions(RouterOptions):
    """A bidirectional LSTM.

    Attributes:
        hidden: Units a direction.
        num_layers: Layers.
        dropout: Before the LSTM's input and behind its output.
    """

    pooling: str = "mean_std"
    hidden: int = 128
    num_layers: int = 1
    dropout: float = 0.1

    def problems(self) -> list[str]:
        """What is wrong with the values, empty where nothing is."""
        problems = super().problems() + _dropout_problems(self.dropout)
        return problems + _count_problems(hidden=self.hidden, num_layers=self.num_layers)

    def build(self, dim: int) -> nn.Module:
        """The network over frames ``dim`` wide."""
        return LSTM(self, dim)


@dataclass(frozen=True)
class AttentionOptions(RouterOptions):
    """Attentive pooling at utterance level, one self-attention block at frame level.

    Attributes:
        width: Width of all heads together. At utterance level it costs next to nothing: the heads'
            means are projected, not the frames.
        heads: Attention heads.
        hidden: Width of the layer that weighs the frames, at utterance level: most of the cost.
        dropout: On the features.
    """

    width: int = 128
    heads: int = 4
    hidden: int = 64
    dropout: float = 0.1

    def problems(self) -> list[str]:
        """What is wrong with the values, empty where nothing is."""
        problems = super().problems() + _dropout_problems(self.dropout)
        problems += _count_problems(width=self.width, heads=self.heads, hidden=self.hidden)
        if self.heads > 0 and self.width % self.heads:
            problems.append(f"width {self.width} cannot be shared by {self.heads} heads")
        if self.pooling != "mean":
            problems.append("pooling does not apply: this router weighs the frames itself")
        return problems

    def build(self, dim: int) -> nn.Module:
        """The network over frames ``dim`` wide."""
        return (AttentionBlock if self.level == "frame" else AttentivePooling)(self, dim)


def _dropout_problems(dropout: float) -> list[str]:
    return [] if 0 <= dropout < 1 else [f"dropout is {dropout}, but must be in [0, 1)"]


def _count_problems(**counts: int) -> list[str]:
    return [f"{k} is {v}, but must be at least 1" for k, v in counts.items() if v < 1]


class Pooled(nn.Module):
    """Linear and MLP: pooled frames (each frame at frame level), normalised, through layers."""

    def __init__(self, options: LinearOptions | MLPOptions, dim: int) -> None:
        super().__init__()
        self.pooling = options.pooling if options.level == "utterance" else None
        width = dim if self.pooling is None else pooled_dim(dim, self.pooling)
        layers: list[nn.Module] = [nn.LayerNorm(width)]
        if isinstance(options, MLPOptions):
            for hidden in options.hidden:
                layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(options.dropout)]
                width = hidden
        self.layers = nn.Sequential(*layers)
        self.out_dim = width

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features ``(batch, out_dim)`` or ``(batch, frames, out_dim)``."""
        if self.pooling is not None:
            frames = pool(frames, lengths, self.pooling)
        return self.layers(frames)


class CNN(nn.Module):
    """Dilated convolutions that see zeros behind a row's end, as they would see alone."""

    def __init__(self, options: CNNOptions, dim: int) -> None:
        super().__init__()
        self.pooling = options.pooling if options.level == "utterance" else None
        self.stride = options.stride
        self.norm = nn.LayerNorm(dim)
        self.convolutions = nn.ModuleList()
        for i in range(options.num_layers):
            step = DILATION**i
            reach = step * (options.kernel - 1) // 2
            width = options.channels if i else dim
            self.convolutions.append(
                nn.Conv1d(width, options.channels, options.kernel, padding=reach, dilation=step)
            )
        self.dropout = nn.Dropout(options.dropout)
        channels = options.channels
        self.out_dim = channels if self.pooling is None else pooled_dim(channels, self.pooling)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features ``(batch, out_dim)`` or ``(batch, frames, out_dim)``."""
        total = frames.size(1)
        if self.stride > 1:
            frames, lengths = _grouped(frames, lengths, self.stride)
        outside = ~valid_frames(lengths, frames.size(1)).unsqueeze(1)  # (batch, 1, frames)
        x = self.norm(frames).transpose(1, 2)  # (batch, dim, frames)
        for convolution in self.convolutions:
            x = self.dropout(F.relu(convolution(x.masked_fill(outside, 0.0))))
        x = x.transpose(1, 2)
        if self.pooling is not None:
            return pool(x, lengths, self.pooling)
        return x.repeat_interleave(self.stride, dim=1)[:, :total] if self.stride > 1 else x


def _grouped(
    frames: torch.Tensor, lengths: torch.Tensor, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means over groups of ``size`` frames ``(batch, groups, dim)``, and how many are valid.

    What stands behind a row's end is in no mean.
    """
    inside = valid_frames(lengths, frames.size(1)).unsqueeze(2)
    missing = -frames.size(1) % size
    sums = F.pad(frames.masked_fill(~inside, 0.0), (0, 0, 0, missing)).unflatten(1, (-1, size))
    counts = F.pad(inside.float(), (0, 0, 0, missing)).unflatten(1, (-1, size)).sum(2)
    return sums.sum(2) / counts.clamp(min=1), (lengths + size - 1) // size


class LSTM(nn.Module):
    """A bidirectional LSTM over packed rows: the backward direction starts at a row's own end."""

    def __init__(self, options: LSTMOptions, dim: int) -> None:
        super().__init__()
        self.pooling = options.pooling if options.level == "utterance" else None
        self.norm = nn.LayerNorm(dim)
        self.lstm = nn.LSTM(
            dim, options.hidden, options.num_layers, batch_first=True, bidirectional=True
        )
        self.dropout = nn.Dropout(options.dropout)
        width = 2 * options.hidden
        self.out_dim = width if self.pooling is None else pooled_dim(width, self.pooling)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features ``(batch, out_dim)`` or ``(batch, frames, out_dim)``."""
        packed = pack_padded_sequence(
            self.dropout(self.norm(frames)), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        x, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=frames.size(1)
        )
        x = self.dropout(x)
        return x if self.pooling is None else pool(x, lengths, self.pooling)


class AttentivePooling(nn.Module):
    """A weighted mean of the frames, each head with weights of its own (arXiv:1703.03130)."""

    def __init__(self, options: AttentionOptions, dim: int) -> None:
        super().__init__()
        self.heads = options.heads
        self.norm = nn.LayerNorm(dim)
        self.hidden = nn.Linear(dim, options.hidden)
        self.scores = nn.Linear(options.hidden, options.heads)
        self.values = nn.Linear(dim, options.width)
        self.dropout = nn.Dropout(options.dropout)
        self.out_dim = options.width

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features ``(batch, out_dim)``."""
        outside = ~valid_frames(lengths, frames.size(1)).unsqueeze(2)  # (batch, frames, 1)
        x = self.norm(frames)
        scores = self.scores(self.hidden(x).tanh_()).masked_fill_(outside, float("-inf"))
        if not torch.is_grad_enabled():
            # What is not finite in padding stays so under weight zero. (Inside a row it makes the
            # weights themselves NaN: nothing is hidden.) With gradients, Router has cleared it.
            x = x.nan_to_num_(0.0, 0.0, 0.0)
        means = scores.softmax(1).transpose(1, 2) @ x  # (batch, heads, dim)
        # The mean of values is the value of the mean: a projection a head, none a frame.
        weight = self.values.weight.unflatten(0, (self.heads, -1))  # (heads, channels, dim)
        values = means.transpose(0, 1) @ weight.transpose(1, 2)  # (heads, batch, channels)
        values = values.transpose(0, 1).flatten(1) + self.values.bias
        return self.dropout(values)


class AttentionBlock(nn.Module):
    """One pre-norm self-attention block; frames behind a row's end are no keys."""

    def __init__(self, options: AttentionOptions, dim: int) -> None:
        super().__init__()
        self.heads = options.heads
        width = options.width
        self.norm = nn.LayerNorm(dim)
        self.input = nn.Linear(dim, width)
        self.attention_norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(options.dropout)
        self.out_dim = width

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features ``(batch, frames, out_dim)``."""
        keys_inside = valid_frames(lengths, frames.size(1))[:, None, None, :]
        # The padding may hold anything, and a value that is not finite stays so under weight zero.
        outside = ~keys_inside[:, 0].transpose(1, 2)  # (batch, frames, 1)
        x = self.input(self.norm(frames.masked_fill(outside, 0.0)))
        parts = self.projection(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (batch, heads, frames, channels)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys_inside)
        x = x + self.dropout(self.output(mixed.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.feed_forward(x))


NETWORKS: dict[str, type[RouterOptions]] = {
    "linear": LinearOptions,
    "mlp": MLPOptions,
    "cnn": CNNOptions,
    "lstm": LSTMOptions,
    "attention": AttentionOptions,
}


def known_networks() -> Mapping[str, type[RouterOptions]]:
    """All networks, extensions' among them."""
    extensions.load()
    return NETWORKS


def network_of(options: RouterOptions) -> str:
    """Name of the network that options belong to.

    Raises:
        UserError: For options of no network.
    """
    for name, kind in NETWORKS.items():
        if type(options) is kind:
            return name
    raise UserError(
        f"{type(options).__name__} are options of no router: choose one of {', '.join(NETWORKS)}"
    )
