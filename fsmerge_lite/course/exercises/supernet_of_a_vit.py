"""Lesson 04: the fold of qkv, the number of numbers in M and U, and a whole block, unfolded and folded."""
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...architectures.vit import vit
from ...layers import SuperLinear
from ...matrices import Merge, Unmerge
from ...supernet import SuperNet
from .testing import Exercise

# ---------------------------------------------------------------- merged_qkv


def _qkv(g: torch.Generator) -> tuple[list, ...]:
    """W_i (3 d_i, d_i), b_i (3 d_i,), U_i (d_i, 5) and three M_i (5, d_i) of two originals with d_i = 4 and 6."""
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)
    sizes = (4, 6)
    return ([random(3 * d, d) for d in sizes], [random(3 * d) for d in sizes], [random(d, 5) for d in sizes],
            [[random(5, d) for _ in range(3)] for d in sizes])


def _library_qkv(Ws: list, bs: list, Us: list, Ms: list) -> tuple[Tensor, Tensor]:
    """The fold of the library's SuperNet layer."""
    frozen = [nn.utils.skip_init(nn.Linear, W.shape[1], len(W)) for W in Ws]
    merges = nn.ModuleList(Merge(*three[0].shape, "full", blocks=3) for three in Ms)
    unmerges = nn.ModuleList(Unmerge(*U.shape, "full") for U in Us)
    for layer, merge, unmerge, W, b, U, three in zip(frozen, merges, unmerges, Ws, bs, Us, Ms):
        layer.load_state_dict({"weight": W, "bias": b})
        merge.load_state_dict({"S": torch.stack(three)})
        unmerge.load_state_dict({"S": U[None]})
    weight, bias = SuperLinear(frozen, merges, unmerges).fold()
    return weight.detach(), bias.detach()


def _interleaved(Ws: list, bs: list, Us: list, Ms: list) -> tuple[Tensor, Tensor]:
    """With the rows taken in turns."""
    Ws, bs = ([torch.cat([x[part::3] for part in range(3)]) for x in each] for each in (Ws, bs))
    return _library_qkv(Ws, bs, Us, Ms)


MERGED_QKV = Exercise(_qkv, _library_qkv, {
    "M_q was used for all three parts; q, k and v have an M each":
        lambda Ws, bs, Us, Ms: _library_qkv(Ws, bs, Us, [[three[0]] * 3 for three in Ms]),
    "the three parts are in the wrong order; qkv holds q, then k, then v":
        lambda Ws, bs, Us, Ms: tuple(torch.cat(x.chunk(3)[::-1]) for x in _library_qkv(Ws, bs, Us, Ms)),
    "q, k and v are three blocks of rows, one below the other; their rows do not alternate": _interleaved,
    "that contains only original 1; sum over both":
        lambda Ws, bs, Us, Ms: _library_qkv(Ws[:1], bs[:1], Us[:1], Ms[:1])})

# ---------------------------------------------------------------- count_block


def _widths(g: torch.Generator) -> tuple[list[int], list[int], int, int]:
    """Widths and hidden widths of two originals, those of the merged model."""
    dims = (4 * torch.randint(1, 6, (3,), generator=g)).tolist()
    ratios = torch.randint(1, 5, (3,), generator=g).tolist()
    hidden = [dim * ratio for dim, ratio in zip(dims, ratios)]
    return dims[:2], hidden[:2], dims[2], hidden[2]


def _counted(dims: Sequence[int], hidden: Sequence[int], dim: int, wide: int) -> int:
    """Counted in a SuperNet of the library."""
    sizes = zip((*dims, dim), (*hidden, wide))
    *originals, into = (vit(d, 1, 1, img_size=8, mlp_ratio=h // d).eval() for d, h in sizes)
    block = SuperNet(originals, structure="full", into=into).body.blocks[0]
    return sum(p.numel() for name, p in block.named_parameters() if "merges" in name and p.requires_grad)


def _plus(more: Callable[..., int]) -> Callable[..., int]:
    """The right number and a number for each original: of its width, hidden width, and those of the merged model."""
    def mistake(dims: Sequence[int], hidden: Sequence[int], dim: int, wide: int) -> int:
        return _counted(dims, hidden, dim, wide) + sum(more(d, h, dim, wide) for d, h in zip(dims, hidden))
    return mistake


COUNT_BLOCK = Exercise(_widths, _counted, {
    "q, k and v have an M each: that are three, not one": _plus(lambda d, h, dim, wide: -2 * d * dim),
    "q, k and v have one U together, not one each": _plus(lambda d, h, dim, wide: 2 * d * dim),
    "M after fc1 and U before fc2 act on the hidden units; they are (h*, h_i) and (h_i, h*)":
        _plus(lambda d, h, dim, wide: 2 * d * dim - 2 * h * wide),
    "the frozen weights do not count; only M and U": _plus(lambda d, h, dim, wide: 4 * d * d + 2 * d * h)})

# ---------------------------------------------------------------- unfolded_block


HEAD = 4  # channels of an attention head, in all models


def _net(g: torch.Generator) -> SuperNet:
    """A SuperNet of two random ViTs of one block, of widths 8 and 12, with dense random M and U, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1000, (1,), generator=g)))
        originals = [vit(dim, 1, dim // HEAD, img_size=8, mlp_ratio=2).eval() for dim in (8, 12)]
        for p in (p for original in originals for p in original.parameters()):
            p.data.normal_(std=0.5)
    return SuperNet(originals, structure="full", init="random").double()


def _block(g: torch.Generator) -> tuple:
    """A stream (3, 5, 8), the merged norms, the originals' blocks, the U and the M by layer, the number of heads."""
    net = _net(g)
    block = net.body.blocks[0]
    layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    Us = {name: [unmerge.dense().detach() for unmerge in layer.unmerges] for name, layer in layers.items()}
    Ms = {name: [merge.dense().detach() for merge in layer.merges] for name, layer in layers.items() if name != "qkv"}
    for part, name in enumerate("qkv"):
        Ms[name] = [merge.S.detach()[part] for merge in layers["qkv"].merges]
    stream = torch.randn(3, 5, 8, generator=g, dtype=torch.float64)
    return stream, (block.norm1, block.norm2), [own.blocks[0] for own in net.backbones], Us, Ms, 2


def _merged(z: Tensor, frozen: Sequence[nn.Linear], Us: Sequence[Tensor], Ms: Sequence[Tensor], bias: bool = True
            ) -> Tensor:
    """sum_i M_i (W_i U_i z + b_i) for rows z."""
    return sum(F.linear(z @ U.T, own.weight, own.bias if bias else None) @ M.T for own, U, M in zip(frozen, Us, Ms))


def _run(s: Tensor, norms: Sequence[nn.Module], blocks: Sequence[nn.Module], Us: Mapping, Ms: Mapping, heads: int,
         apart: bool = False, bias: bool = True, added: bool = True, late: bool = True) -> Tensor:
    """A block run unfolded, right or with one of the common mistakes."""
    merges = [torch.block_diag(*three) for three in zip(Ms["q"], Ms["k"], Ms["v"])]
    qkv, h = [block.attn.qkv for block in blocks], norms[0](s)
    groups = [([own], [U], [M]) for own, U, M in zip(qkv, Us["qkv"], merges)] if apart else [(qkv, Us["qkv"], merges)]
    mixed = 0
    for group in groups:
        parts = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in _merged(h, *group, bias).chunk(3, -1))
        mixed = mixed + F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    out = _merged(mixed, [block.attn.proj for block in blocks], Us["proj"], Ms["proj"], bias)
    s1 = s + out if added else out
    hidden = _merged(norms[1](s1 if late else s), [block.mlp.fc1 for block in blocks], Us["fc1"], Ms["fc1"], bias)
    out = _merged(F.gelu(hidden), [block.mlp.fc2 for block in blocks], Us["fc2"], Ms["fc2"], bias)
    return s1 + out if added else out


def _folds(blocks: Sequence[nn.Module], Us: Mapping, Ms: Mapping, with_bias: bool = True) -> dict[str, tuple]:
    """W* and b* of all layers: what a layer makes of zero and of one-hot vectors."""
    folds = {}
    merges = {**Ms, "qkv": [torch.block_diag(*three) for three in zip(Ms["q"], Ms["k"], Ms["v"])]}
    for name, place in PLACES.items():
        group = [block.get_submodule(place) for block in blocks], Us[name], merges[name]
        bias = _merged(torch.zeros(Us[name][0].shape[1], dtype=torch.float64), *group)
        weight = _merged(torch.eye(Us[name][0].shape[1], dtype=torch.float64), *group, bias=False).T
        folds[name] = weight.detach(), bias.detach() if with_bias else torch.zeros_like(bias)
    return folds


PLACES = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
BLOCK_MISTAKES = {
    "every original attends by itself; q, k and v are merged before the softmax, and there is one attention":
        {"apart": True},
    "the biases of the frozen layers are missing": {"bias": False},
    "the additions to the stream are missing": {"added": False},
    "norm2 reads the stream after the attention half, not before it": {"late": False}}
NO_HEADS = "the heads are missing; split the channels of q, k and v into the merged model's heads"
NO_BIAS = "the unfolded stream is right, but b* of the fold is zero; every b_i goes through M_i"
NOT_FOLDED = "the unfolded stream is right, but a plain block with your fold gives another one"
PAIR = "unfolded_block must return two things: the stream, and a dictionary from qkv, proj, fc1 and fc2 to (W*, b*)"


def _judge_block(result: object, *inputs: object) -> str | None:
    """Against the library's block, in float64: the stream, and a plain block with the folded weights."""
    stream, norms, *_, heads = inputs
    if not isinstance(result, tuple | list) or len(result) != 2 or not isinstance(result[1], Mapping):
        return PAIR
    found, folds = result
    if not isinstance(found, Tensor) or found.shape != stream.shape:
        kind = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        return f"the stream of unfolded_block is {kind}, expected a tensor of shape {tuple(stream.shape)}"
    right = _library_block(*inputs)
    if not _same(found, right):
        known = {message: _run(*inputs, **wrong) for message, wrong in BLOCK_MISTAKES.items()}
        known[NO_HEADS] = _run(*inputs[:-1], 1)
        named = (message for message, wrong in known.items() if _same(found, wrong))
        return next(named, "the stream of unfolded_block has the right shape, but wrong values")
    if set(folds) != set(PLACES):
        return PAIR
    if _same(_plain_block(stream, norms, folds, heads), right):
        return None
    return NO_BIAS if not any(bias.any() for _, bias in folds.values()) else NOT_FOLDED


def _same(found: Tensor | None, other: Tensor) -> bool:
    """Equal up to rounding in float64."""
    return found is not None and torch.allclose(found.to(other.dtype), other, rtol=0, atol=1e-9)


def _plain_block(stream: Tensor, norms: Sequence[nn.Module], folds: Mapping, heads: int) -> Tensor | None:
    """The stream after a plain timm block with these folded weights and norms. None: they do not fit into it."""
    plain = vit(stream.shape[-1], 1, heads, img_size=8, mlp_ratio=2).eval().double().blocks[0]
    state = {f"{PLACES[name]}.{part}": value for name, pair in folds.items()
             for part, value in zip(("weight", "bias"), pair)}
    state |= {f"norm{n}.{name}": value for n, norm in enumerate(norms, 1) for name, value in norm.state_dict().items()}
    try:
        plain.load_state_dict(state)
    except (RuntimeError, TypeError):
        return None
    return plain(stream).detach()


def _library_block(s: Tensor, norms: Sequence[nn.Module], blocks: Sequence[nn.Module], Us: Mapping, Ms: Mapping,
                   heads: int) -> Tensor:
    """The block of a SuperNet of the library that has these M, U and norms."""
    dims = [block.attn.qkv.in_features for block in blocks]
    models = [vit(dim, 1, dim // HEAD, img_size=8, mlp_ratio=2).eval().double() for dim in dims]
    for model, block in zip(models, blocks):
        model.blocks[0].load_state_dict(block.state_dict())
    merged = SuperNet(models, structure="full").body.blocks[0]
    layers = {"qkv": merged.attn.qkv, "proj": merged.attn.proj, "fc1": merged.mlp.fc1, "fc2": merged.mlp.fc2}
    for name, layer in layers.items():
        for i, (merge, unmerge) in enumerate(zip(layer.merges, layer.unmerges)):
            parts = [Ms[part][i] for part in ("qkv" if name == "qkv" else (name,))]
            merge.load_state_dict({"S": torch.stack(parts)})
            unmerge.load_state_dict({"S": Us[name][i][None]})
    merged.norm1.load_state_dict(norms[0].state_dict())
    merged.norm2.load_state_dict(norms[1].state_dict())
    return merged(s).detach()


def _answer(fold: Callable[..., dict] = _folds, one_head: bool = False, **options: bool) -> Callable[..., tuple]:
    """An answer to unfolded_block with one of the common mistakes."""
    def mistake(*inputs: object) -> tuple[Tensor, dict]:
        _, _, blocks, Us, Ms, heads = inputs
        return _run(*inputs[:-1], 1 if one_head else heads, **options), fold(blocks, Us, Ms)
    return mistake


UNFOLDED_BLOCK = Exercise(_block, mistakes={
    **{message: _answer(**wrong) for message, wrong in BLOCK_MISTAKES.items()},
    NO_HEADS: _answer(one_head=True),
    NO_BIAS: _answer(partial(_folds, with_bias=False)),
    NOT_FOLDED: _answer(lambda blocks, Us, Ms: _folds(blocks, Us, Ms | {"q": Ms["k"]})),
    PAIR: _run}, judge=_judge_block)

EXERCISES = {"merged_qkv": MERGED_QKV, "count_block": COUNT_BLOCK, "unfolded_block": UNFOLDED_BLOCK}
