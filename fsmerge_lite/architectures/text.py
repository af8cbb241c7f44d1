"""A small encoder of texts, made of timm's pre-norm blocks.

The first layer is a table with a row for each token and each place in a window, y = sum_p E[id_p, p], and is merged by
channel: E* = sum_i E_i M_i^T. After it no layer of a merged model mixes padding into a text: attention leaves it out,
and so does all that is fitted to what layers read. A window meets the same padding however far a text is filled up.
"""
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..engine import given
from ..engine.modules import mlp_ratio, outline
from .graph import Architecture, Graph, Layer, Segment
from .vit import STREAM, graph_of_blocks

PAD = 0  # the id of padding


class TextEncoder(nn.Module):
    """Token ids (B, T) to features (B, dim): timm's blocks, a LayerNorm, the mean over all tokens. Id 0 is padding.

    Args:
        vocab_size: token ids go from 0 to vocab_size - 1.
        max_length: of a text in tokens, T <= max_length.
        dim, depth, num_heads, mlp_ratio: width of the stream, number of blocks, heads in each, hidden units over dim.
        kernel_size: of the first layer, odd, >= 1. A convolution over one-hot tokens: a token and its neighbors each
            add a row of the table. 1: a token is its own row.

    Raises ValueError for a number outside its range, an even kernel_size, or heads that do not divide the width.
    """

    def __init__(self, vocab_size: int, max_length: int = 32, dim: int = 96, depth: int = 4, num_heads: int = 4,
                 mlp_ratio: float = 4.0, kernel_size: int = 1):
        super().__init__()
        given.whole(1, vocab_size=vocab_size, max_length=max_length, depth=depth, kernel_size=kernel_size)
        given.multiple(dim=dim, num_heads=num_heads)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}: as many neighbors before as after")
        self.vocab_size, self.max_length, self.kernel_size, self.num_features = vocab_size, max_length, kernel_size, dim
        self.token_embed = nn.Embedding(kernel_size * vocab_size, dim)  # place by place in the window, all tokens
        self.pos_embed = nn.Parameter(torch.empty(1, max_length, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, qkv_bias=True) for _ in range(depth))
        self.norm = LayerNorm(dim)
        for table in (self.token_embed.weight, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)

    def embed(self, ids: Tensor) -> Tensor:
        """The stream (B, T, dim) that the first block reads."""
        around = self.kernel_size // 2
        windows = F.pad(ids, (around, around), value=PAD).unfold(1, self.kernel_size, 1)  # (B, T, kernel_size)
        first_rows = self.vocab_size * torch.arange(self.kernel_size, device=ids.device)
        return self.token_embed(windows + first_rows).sum(2) + self.pos_embed[:, :ids.shape[1]]

    def pool(self, x: Tensor, counted: Tensor) -> Tensor:
        """The mean of the normalized tokens that count, (B, dim)."""
        return (self.norm(x) * counted[..., None]).sum(1) / counted.sum(1, keepdim=True)

    def forward(self, ids: Tensor) -> Tensor:
        counted, x = ids != PAD, self.embed(ids)
        for block in self.blocks:
            x = block(x, seen_by_all(counted))
        return self.pool(x, counted)


def seen_by_all(counted: Tensor) -> Tensor:
    """The attention mask (B, 1, 1, T) with which every token sees those that count, (B, T)."""
    return counted[:, None, None]


class Texts(Architecture):
    """The architecture of a `TextEncoder`."""

    kind, model = "text", TextEncoder

    def describe(self, model: TextEncoder) -> dict:
        block, dim = model.blocks[0], model.num_features
        config = {"kind": "text", "vocab_size": model.vocab_size, "max_length": model.max_length,
                  "depth": len(model.blocks), "embed_dim": dim, "num_heads": block.attn.num_heads,
                  "mlp_ratio": mlp_ratio(block.mlp.fc1.out_features, dim), "kernel_size": model.kernel_size}
        with torch.device("meta"):
            rebuilt = outline(self.build(config))
        for ours, theirs in zip(rebuilt, outline(model)):
            if ours != theirs:
                raise ValueError(f"this TextEncoder has {theirs[0]} = {theirs[1]}, where {ours[1]} was expected")
        return config

    def build(self, config: dict) -> TextEncoder:
        options = {name: config[name] for name in ("vocab_size", "max_length", "depth", "num_heads", "mlp_ratio")}
        return TextEncoder(**options, dim=config["embed_dim"], kernel_size=config.get("kernel_size", 1))

    def graph(self, model: TextEncoder) -> Graph:
        return graph_of_blocks(model, Layer("token_embed", None, (STREAM,), "embedding"))

    def input_shape(self, model: TextEncoder) -> tuple[int, ...]:
        return (model.max_length,)

    def check_inputs(self, model: TextEncoder, x: Tensor) -> None:
        given.token_ids(x, model.vocab_size, model.max_length, PAD)

    def counted(self, model: TextEncoder, x: Tensor) -> Tensor:
        return x != PAD

    def segments(self, model: TextEncoder) -> dict[str, Segment]:
        """From ids to tokens; the blocks; from tokens to features."""
        blocks = {f"blocks.{b}": lambda x, counted, block=block: block(x, seen_by_all(counted))
                  for b, block in enumerate(model.blocks)}
        return {"token_embed": lambda ids, _: model.embed(ids), **blocks, "": model.pool}
