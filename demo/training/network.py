"""Qwen2.5-VL and Qwen2.5 as small torch modules for training, with the published names of their weights.

The modules that transformers and vLLM bring compute the same from the same weights (the tests compare
them), but they look at one window of attention after the other, which trains a small model at a
twentieth of the speed. Here all windows of a batch have one shape and are computed together.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VISION_THETA = 10_000.0
EPSILON = 1e-6


class RMSNorm(nn.Module):
    """Root mean square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Norms the last axis in float32."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight, EPSILON).to(x.dtype)


class GatedMLP(nn.Module):
    """The SwiGLU layer of both towers."""

    def __init__(self, width: int, inner: int, *, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., width) to (..., width)."""
        mapped: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return mapped


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns queries or keys by their positions: pairs are the halves of the last axis."""
    first, second = x.float().chunk(2, dim=-1)
    turned = x.float() * cos + torch.cat((-second, first), dim=-1) * sin
    return turned.to(x.dtype)


class VisionAttention(nn.Module):
    """Attention within a picture, or within its windows where there is a mask."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Maps (pictures, patches, width) to the same."""
        pictures, patches, width = x.shape
        split = self.qkv(x).view(pictures, patches, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = rotate(split[0], cos, sin), rotate(split[1], cos, sin), split[2]
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        mixed: Tensor = self.proj(seen.transpose(1, 2).reshape(pictures, patches, width))
        return mixed


class VisionBlock(nn.Module):
    """Attention and MLP with their norms."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = VisionAttention(width, config["num_heads"])
        self.mlp = GatedMLP(width, config["intermediate_size"], bias=True)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Maps (pictures, patches, width) to the same."""
        x = x + self.attn(self.norm1(x), cos, sin, mask)
        mapped: Tensor = x + self.mlp(self.norm2(x))
        return mapped


class PatchEmbedding(nn.Module):
    """The first layer: a patch of two frames becomes one vector."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        side, depth = config["patch_size"], config["temporal_patch_size"]
        kernel = (depth, side, side)
        self.proj = nn.Conv3d(config["in_chans"], config["hidden_size"], kernel, stride=kernel, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        """Maps (..., channels * depth * side * side) to (..., width)."""
        return F.linear(patches, self.proj.weight.flatten(1))


class Merger(nn.Module):
    """The last layer: four neighbours become one token of the language model."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.inner = config["hidden_size"] * config["spatial_merge_size"] ** 2
        self.ln_q = RMSNorm(config["hidden_size"])
        self.mlp = nn.Sequential(
            nn.Linear(self.inner, self.inner), nn.GELU(), nn.Linear(self.inner, config["out_hidden_size"])
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (pictures, patches, width) to (pictures, patches / 4, language width)."""
        merged: Tensor = self.mlp(self.ln_q(x).view(x.shape[0], -1, self.inner))
        return merged


class VisionTower(nn.Module):
    """The vision tower; takes patches in the order in which the model's processor makes them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config["depth"]))
        self.merger = Merger(config)

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Looks at pictures of one size.

        Args:
            patches: (pictures, patches, values of a patch).
            grid: height and width in patches.

        Returns:
            (pictures, patches / 4, language width).
        """
        rows, columns = patch_places(grid, self.config["spatial_merge_size"], patches.device)
        head = self.config["hidden_size"] // self.config["num_heads"]
        steps = VISION_THETA ** (-torch.arange(0, head // 2, 2, device=patches.device) / (head // 2))
        angles = torch.cat((rows[:, None] * steps, columns[:, None] * steps), dim=-1).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        window = self.config["window_size"] // self.config["patch_size"]
        places = rows // window * 1000 + columns // window
        mask = places[:, None] == places[None, :]
        x = self.patch_embed(patches)
        for number, block in enumerate(self.blocks):
            is_full = number in self.config["fullatt_block_indexes"]
            x = block(x, cos, sin, None if is_full else mask)
        merged: Tensor = self.merger(x)
        return merged


def patch_places(grid: tuple[int, int], merge: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, in the processor's order: the four of a token stand together."""
    height, width = grid
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    shape = (height // merge, merge, width // merge, merge)
    order = [place.view(shape).transpose(1, 2).reshape(-1) for place in (rows, columns)]
    return order[0], order[1]


def patchify(frames: Tensor, *, patch: int, merge: int, depth: int) -> Tensor:
    """Cuts normalized frames into patches as Qwen2-VL's video processor does.

    Args:
        frames: (batch, n, channels, height, width), n a multiple of `depth`.
        patch: side of a patch in pixels.
        merge: patches of a token on one side.
        depth: frames of a patch.

    Returns:
        (batch * n / depth, patches, channels * depth * patch * patch).
    """
    batch, num_frames, channels, height, width = frames.shape
    times, rows, columns = num_frames // depth, height // patch // merge, width // patch // merge
    cut = frames.view(batch, times, depth, channels, rows, merge, patch, columns, merge, patch)
    order = cut.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return order.reshape(batch * times, rows * columns * merge * merge, -1)


class SelfAttention(nn.Module):
    """Causal attention of the language model with grouped keys."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, heads = config["hidden_size"], config["num_attention_heads"]
        self.heads, self.groups, self.head = heads, config["num_key_value_heads"], width // heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, self.groups * self.head)
        self.v_proj = nn.Linear(width, self.groups * self.head)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps (batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        queries = self.q_proj(x).view(batch, tokens, self.heads, self.head).transpose(1, 2)
        keys = self.k_proj(x).view(batch, tokens, self.groups, self.head).transpose(1, 2)
        values = self.v_proj(x).view(batch, tokens, self.groups, self.head).transpose(1, 2)
        keys = rotate(keys, cos, sin).repeat_interleave(self.heads // self.groups, dim=1)
        values = values.repeat_interleave(self.heads // self.groups, dim=1)
        seen = F.scaled_dot_product_attention(rotate(queries, cos, sin), keys, values, is_causal=True)
        mixed: Tensor = self.o_proj(seen.transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class DecoderLayer(nn.Module):
    """A layer of the language model."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.self_attn = SelfAttention(config)
        self.mlp = GatedMLP(width, config["intermediate_size"], bias=False)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(width), RMSNorm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Maps (batch, tokens, width) to the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        mapped: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return mapped


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = RMSNorm(config["hidden_size"])


class Network(nn.Module):
    """The whole model: with a vision tower where the configuration has one."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        if "vision_config" in config:
            self.visual = VisionTower(config["vision_config"])
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        self.apply(_initialize)

    def forward(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Returns the logits after each token: (batch, tokens, vocabulary); arguments as `hidden`'s."""
        logits: Tensor = self.lm_head(self.hidden(embedded, positions))
        return logits

    def hidden(self, embedded: Tensor, positions: Tensor) -> Tensor:
        """Returns the last hidden states: (batch, tokens, width).

        Args:
            embedded: (batch, tokens, width).
            positions: (3, batch, tokens): time, row and column of each token.
        """
        cos, sin = self._angles(positions)
        x = embedded
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        normed: Tensor = self.model.norm(x)
        return normed

    def compile_layers(self) -> None:
        """Compiles the layers of both towers, for batches of any shape."""
        for module in self.modules():
            if isinstance(module, VisionBlock | DecoderLayer):
                module.compile(dynamic=True)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        head = self.config["hidden_size"] // self.config["num_attention_heads"]
        steps = self.config["rope_theta"] ** (-torch.arange(0, head, 2, device=positions.device) / head)
        sections = self.config.get("rope_scaling", {}).get("mrope_section", [head // 2])
        axes = torch.cat([torch.full((length,), axis) for axis, length in enumerate(sections)])
        angles = positions[axes.to(positions.device)].permute(1, 2, 0) * steps
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos(), angles.sin()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5 * 0.8)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
    elif isinstance(module, nn.Conv3d):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)


def video_positions(
    *, before: int, grid: tuple[int, int, int], after: int, seconds: Tensor, rate: float
) -> Tensor:
    """Positions of a prompt with one video, as Qwen2.5-VL's own code gives them.

    Text counts on along all three axes. A video token stands at its time (floored), row and column, and
    the text after the video starts one after the largest of these.

    Args:
        before: tokens before the video.
        grid: times, rows and columns of the video in tokens.
        after: tokens behind the video.
        seconds: float64 (batch,), seconds between two times.
        rate: positions in a second.

    Returns:
        (3, batch, tokens).
    """
    times, rows, columns = grid
    device, batch = seconds.device, len(seconds)
    start = torch.arange(before, device=device).expand(3, batch, before)
    at = torch.arange(times * rows * columns, device=device)
    time = ((at // (rows * columns)).double() * seconds[:, None] * rate).floor().long()
    row, column = (at // columns % rows).expand(batch, -1), (at % columns).expand(batch, -1)
    video = torch.stack((time, row, column)) + before
    first = video.amax(dim=(0, 2)) + 1
    end = (first[:, None] + torch.arange(after, device=device)).expand(3, batch, after)
    return torch.cat((start, video, end), dim=-1)
