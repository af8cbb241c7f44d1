"""Small models with all weights drawn at random: nothing in them is zero, one or equal by accident."""
import pytest
import torch
from torch import nn

import fsmerge_lite as fsm

VOCABULARY, LENGTH = 30, 10  # of the texts
# Every option of timm's VisionTransformer that the wiring claims to support, by name.
VIT_OPTIONS = {
    "plain": {},
    "no qkv bias, LayerScale": {"qkv_bias": False, "init_values": 0.1},
    "qk_norm": {"qk_norm": True},
    "pre_norm": {"pre_norm": True},
    "register tokens": {"reg_tokens": 2},
    "average pooling, fc_norm": {"global_pool": "avg"},
    "average pooling, norm": {"global_pool": "avg", "fc_norm": False},
    "no class token": {"class_token": False, "global_pool": "avg"},
    "no_embed_class": {"no_embed_class": True},
    "max pooling": {"global_pool": "max"},
    "no positions": {"pos_embed": "none"},
    "inner norms, no proj bias": {"scale_attn_norm": True, "scale_mlp_norm": True, "proj_bias": False},
}


def randomised(model: nn.Module, dtype=torch.float64, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = model.to(dtype).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
    return model


def vits(dims, dtype=torch.float64, **options) -> list[nn.Module]:
    options = {"depth": 2, "num_heads": 2, "img_size": 16, "patch_size": 8, "mlp_ratio": 2} | options
    return [randomised(fsm.vit(dim=dim, **options), dtype, i) for i, dim in enumerate(dims)]


def mixed(*shapes, dtype=torch.float64, **options) -> list[nn.Module]:
    """ViTs of different (dim, num_heads, mlp_ratio)."""
    return [randomised(vits([dim], dtype, num_heads=heads, mlp_ratio=ratio, **options)[0], dtype, i)
            for i, (dim, heads, ratio) in enumerate(shapes)]


def mlps(hidden, dtype=torch.float64, inputs: int = 12) -> list[nn.Module]:
    return [randomised(fsm.MLP((inputs, h, h + 2, h + 1)), dtype, i) for i, h in enumerate(hidden)]


def encoders(dims, **options) -> list[nn.Module]:
    options = {"vocab_size": VOCABULARY, "max_length": LENGTH, "depth": 2, "num_heads": 2} | options
    return [randomised(fsm.TextEncoder(dim=dim, **options), seed=i) for i, dim in enumerate(dims)]


def berts(dims, pooler: bool = True, **options) -> list[nn.Module]:
    """transformers' `BertModel`, small."""
    transformers = pytest.importorskip("transformers")
    options = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "num_hidden_layers": 2,
               "num_attention_heads": 2, "intermediate_size": 24} | options
    return [randomised(transformers.BertModel(transformers.BertConfig(hidden_size=dim, **options), pooler), seed=i)
            for i, dim in enumerate(dims)]


def texts(n: int = 6, seed: int = 9) -> torch.Tensor:
    """Token ids (n, LENGTH), of every length from 1 to LENGTH, with 0 for padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (n, LENGTH), generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (n,), generator=generator)
    return ids * (torch.arange(LENGTH) < lengths[:, None])


def pictures(n: int = 3, size: int = 16, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(dtype)


def both_ways(net: fsm.SuperNet, x: torch.Tensor | None = None) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Features and gradients of the folded and of the explicit run, on a loss that weighs every output."""
    results, x = [], pictures() if x is None else x
    for explicit in (False, True):
        net.zero_grad()
        out = net(x, unfolded=explicit)
        sum((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum() for y in out).backward()
        results.append((out, {n: p.grad for n, p in net.named_parameters() if p.requires_grad}))
    return results
