"""The orthogonal symmetries: a rotated model is the same function, and is found again."""
import pytest
import torch
from models_for_tests import VIT_OPTIONS, mlps, pictures, vits
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.architectures import graph_of
from fsmerge_lite.compare.rotation import absorbed, orthogonal_alignment, rotated
from fsmerge_lite.engine.images import Calibration

CANNOT = {"qk_norm": "q_norm", "pre_norm": "norm_pre", "inner norms, no proj bias": "attn.norm"}
CAN = [name for name in VIT_OPTIONS if name not in (*CANNOT, "max pooling")]


def with_head(backbone, classes: int = 3) -> fsm.Original:
    torch.manual_seed(0)
    size = graph_of(backbone).spaces[graph_of(backbone).output].size
    return fsm.Original(backbone, nn.Linear(size, classes).double(), "one").eval()


def any_maps(backbone, seed: int = 0) -> dict[str, torch.Tensor]:
    """Maps of the symmetry, drawn at random."""
    graph, generator, maps = graph_of(backbone), torch.Generator().manual_seed(seed), {}

    def orthogonal(n: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    for name, space in graph.spaces.items():
        order = torch.randperm(space.heads, generator=torch.Generator().manual_seed(3))  # one order in a group
        if space.kind == "residual":
            basis = torch.linalg.qr(torch.cat([torch.ones(space.size, 1).double(), orthogonal(space.size)], 1)).Q
            maps[name] = basis @ torch.block_diag(torch.ones(1, 1).double(), orthogonal(space.size - 1)) @ basis.T
        elif space.kind == "heads":
            blocks = torch.block_diag(*(orthogonal(space.unit) for _ in range(space.heads)))
            maps[name] = blocks.unflatten(0, (space.heads, -1))[order].flatten(0, 1)
        else:
            maps[name] = torch.eye(space.size).double()[torch.randperm(space.size, generator=generator)]
    return maps


@pytest.mark.parametrize("name", [*CAN, "MLP"])
def test_a_rotated_model_is_the_same_function_and_is_found_again(name):
    backbone, = mlps([8]) if name == "MLP" else vits([12], num_heads=3, **VIT_OPTIONS[name])
    original, x = with_head(backbone), torch.randn(64, 12).double() if name == "MLP" else pictures(64)
    if name == "no qkv bias, LayerScale":
        with pytest.raises(ValueError, match="the bias of blocks.0.norm1 has no place to go"):
            absorbed(original)
        for block in original.backbone.blocks:
            block.norm1.bias.data.zero_()
    other, logits = rotated(original, any_maps(original.backbone)), original(x)
    torch.testing.assert_close(other(x), logits, rtol=0, atol=1e-9)
    weights, moved = (dict(o.backbone.named_parameters()) for o in (absorbed(original), other))
    assert all((weights[n] - moved[n]).abs().max() > 0.1 for n in weights if n.endswith(("proj.weight", "fc2.weight")))
    images = Calibration(x, torch.arange(len(x)) % 2)
    for rebuilt in fsm.align_orthogonal([original, other], images)(x):  # nothing is lost by the average
        torch.testing.assert_close(rebuilt, logits, rtol=0, atol=1e-8)
    with torch.no_grad():
        difference = fsm.average([original, other])(x)[0] - logits
    assert difference.abs().max() > 0.1


@pytest.mark.parametrize("name", CANNOT)
def test_norms_that_rotations_do_not_pass_are_refused(name):
    backbone, = vits([12], num_heads=3, **VIT_OPTIONS[name])
    with pytest.raises(ValueError, match=f"{CANNOT[name]} is a norm that rotations do not pass"):
        absorbed(with_head(backbone))


def test_a_head_that_cannot_take_the_last_norm_is_refused():
    with pytest.raises(ValueError, match="needs a linear head"):
        absorbed(vits([12])[0])


def test_the_maps_are_orthogonal_and_those_of_the_stream_keep_the_mean():
    a, b = (with_head(v) for v in vits([12, 12], num_heads=3))
    first, maps = orthogonal_alignment([a, b], Calibration(pictures(20), torch.arange(20) % 2))
    assert first == {}
    for name, q in maps.items():
        torch.testing.assert_close(q @ q.T, torch.eye(len(q)).double())
        if graph_of(a.backbone).spaces[name].kind == "residual":
            torch.testing.assert_close(q.sum(1), torch.ones(len(q)).double())
