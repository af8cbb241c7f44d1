"""The fold: gradients of its own functions, layers folded together, what is kept in memory."""
import copy
import weakref
from unittest import mock

import pytest
import torch
from models_for_tests import both_ways, mixed, pictures, vits
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite import layers as layers_module
from fsmerge_lite.layers import AddScaled, SuperLinear, fold_together
from fsmerge_lite.matrices import Merge, Unmerge


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("stack", [(), (3,)])
def test_the_diagonals_around_frozen_weights_have_the_gradients_of_finite_differences(stack, product):
    weights = [torch.randn(*stack, 4, 5).double() for _ in range(2)]
    learned = [torch.randn(*stack, size).double().requires_grad_() for size in (4, 5, 4, 5)]
    onto = torch.randn(*stack, 4, 5).double().requires_grad_() if product else None

    def run(a, b, c, d, onto=None):
        return AddScaled.apply(onto, weights[0], a, b, weights[1], c, d)
    inputs = (*learned, onto) if product else tuple(learned)
    expected = sum(torch.diag_embed(left) @ weight @ torch.diag_embed(right) for left, weight, right
                   in ((learned[0], weights[0], learned[1]), (learned[2], weights[1], learned[3])))
    torch.testing.assert_close(run(*inputs), expected + onto if product else expected)
    assert torch.autograd.gradcheck(run, inputs)
    once, = torch.autograd.grad(run(*inputs).square().sum(), learned[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # rather than a wrong second derivative
        once.sum().backward()


def test_a_fold_keeps_nothing_of_the_size_of_a_weight_but_the_frozen_ones():
    layers = [nn.Linear(300, 400) for _ in range(3)]
    layer = SuperLinear(layers, nn.ModuleList(Merge(400, 400, rank=4) for _ in layers),
                        nn.ModuleList(Unmerge(300, 300, rank=4) for _ in layers))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer.fold()
    frozen = {w.data_ptr() for w, _ in layer.frozen()}
    assert kept and {t.data_ptr() for t in kept if t.numel() >= 300 * 400} == frozen


def test_layers_folded_together_are_those_folded_alone():
    net = fsm.SuperNet(vits([8, 8, 8], depth=3), rank=2, init="random")
    for kind in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        layers = [net.body.get_submodule(f"blocks.{block}.{kind}") for block in range(3)]
        assert len({layer.kind for layer in layers}) == 1
        for (weight, bias), layer in zip(fold_together(layers), layers):
            alone = layer.fold()
            torch.testing.assert_close(weight, alone[0], rtol=0, atol=1e-12)
            torch.testing.assert_close(bias, alone[1], rtol=0, atol=1e-12)


def test_small_layers_are_folded_together_and_large_ones_alone():
    calls = []
    with mock.patch.object(layers_module, "STACKED", 16 * 8):  # fc1 and fc2 are (16, 8), qkv is larger
        net = fsm.SuperNet(vits([8, 8], depth=3), rank=2)
    with mock.patch("fsmerge_lite.supernet.fold_together", lambda some: calls.append(len(some)) or fold_together(some)):
        net(pictures())
    assert calls == [3, 3, 3]  # proj, fc1, fc2


def test_a_large_layer_has_all_its_gradients_before_the_block_before_it_has_any():
    for limit in (0, 10 ** 6):
        with mock.patch.object(layers_module, "STACKED", limit):
            net, done = fsm.SuperNet(vits([8, 8], depth=3), rank=2), []
        for name, p in net.body.named_parameters():
            if name.startswith("blocks.") and p.requires_grad:
                block = int(name.split(".")[1])
                p.register_post_accumulate_grad_hook(lambda _, block=block, done=done: done.append(block))
        sum(y.sum() for y in net(pictures())).backward()
        assert (done == sorted(done, reverse=True)) == (limit == 0)


def test_originals_of_one_width_and_other_heads_are_not_stacked():
    net = fsm.SuperNet(mixed((8, 2, 2), (8, 4, 2), (8, 2, 2)), rank=2, init="random", into=mixed((12, 2, 2))[0])
    (folded, grads), (explicit, grads_explicit) = both_ways(net, pictures())
    torch.testing.assert_close(folded, explicit)
    torch.testing.assert_close(grads, grads_explicit)


@pytest.mark.parametrize("change", ["another type", "in place", "its data", "another tensor", "a copy",
                                    "another start"])
def test_what_happens_to_frozen_weights_after_a_fold_is_seen_by_the_next(change):
    net, x = fsm.SuperNet(vits([8, 8]), rank=2, init="random"), pictures()
    net(x)
    layer = net.body.blocks[1].mlp.fc1
    if change == "another type":
        net, x = net.float(), x.float()
    elif change == "in place":
        layer.weight1.mul_(3)
    elif change == "its data":
        layer.weight1.data.mul_(3)
    elif change == "another tensor":
        layer.weight1 = 3 * layer.weight1
    elif change == "a copy":
        layer.weight1.mul_(3)
        net = copy.deepcopy(net)
    else:
        merges, unmerges = ([torch.randn(n, n).double()] * 2 for n in (16, 8))
        layer = next(layer for layer in net.graph.layers if layer.name == "blocks.1.mlp.fc1")
        net.replace(layer, merges, unmerges)
    bound = 1e-4 if x.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(net(x), net(x, unfolded=True), rtol=bound, atol=bound)


def test_where_nothing_is_learned_nothing_is_kept_for_a_gradient():
    net = fsm.SuperNet(vits([8, 8], depth=3), rank=2)
    net.body.blocks[1].requires_grad_(False)
    state = net.folded()
    assert [state[f"blocks.{block}.mlp.fc1.weight"].requires_grad for block in range(3)] == [True, False, True]
    assert [state[f"blocks.{block}.mlp.fc1.bias"].requires_grad for block in range(3)] == [True, False, True]


def test_a_first_fold_in_inference_mode_does_not_spoil_training():
    net = fsm.SuperNet(vits([8, 8]), rank=2)
    with torch.inference_mode():
        net(pictures())
    sum(y.sum() for y in net(pictures())).backward()


def large_net(checkpointing: bool) -> fsm.SuperNet:
    """Every layer folds when its turn comes."""
    torch.manual_seed(0)
    with mock.patch.object(layers_module, "STACKED", 0):
        net = fsm.SuperNet(vits([8, 8]), rank=2, init="random")
    net.set_grad_checkpointing(checkpointing)
    return net


def test_weights_that_are_recomputed_give_the_same_gradients():
    (kept, grads), _ = both_ways(large_net(False))
    (again, grads_again), _ = both_ways(large_net(True))
    torch.testing.assert_close(again, kept, rtol=0, atol=0)
    torch.testing.assert_close(grads_again, grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_that_are_recomputed_are_not_kept_for_the_backward(checkpointing, replaced):
    net, made, fold = large_net(checkpointing), [], SuperLinear.fold
    if replaced:  # as a new start does
        with mock.patch.object(layers_module, "STACKED", 0):
            net.replace(net.graph.layers[1], [torch.randn(3, 8, 8).double()] * 2, [torch.randn(8, 8).double()] * 2)

    def watched(layer: SuperLinear):
        weight, bias = fold(layer)
        if layer.unmerges is not None:  # not the patch embedding
            made.append(weakref.ref(weight))
        return weight, bias
    with mock.patch.object(SuperLinear, "fold", watched):
        features = net(pictures())
        assert len(made) == 8 and [weight() is None for weight in made] == [checkpointing] * 8
        sum(f.sum() for f in features).backward()
    assert len(made) == (16 if checkpointing else 8)
