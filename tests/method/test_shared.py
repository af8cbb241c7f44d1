"""One low rank for all originals on the merged model's side: the paper's form of M and U."""
import pytest
import torch
from models_for_tests import mixed, mlps, pictures, vits

import fsmerge_lite as fsm


def learned(net: fsm.SuperNet) -> list[torch.Tensor]:
    return [p for p in net.parameters() if p.requires_grad]


def images_of(x: torch.Tensor) -> fsm.Calibration:
    return fsm.Calibration(x, torch.arange(len(x)) % 2)


@pytest.mark.parametrize("k, published", [(2, 13_703_168), (4, 22_912_000)])
def test_the_published_number_of_trained_parameters(k, published):
    """CLIP's ViT-B/16 at rank 12. Every block learns the same, so that two nets tell the number for twelve blocks."""
    count = {}
    for depth in (1, 2):
        models = [fsm.vit(768, depth, 12, 16, 224, pre_norm=True).eval() for _ in range(k)]
        count[depth] = sum(p.numel() for p in learned(fsm.SuperNet(models, rank=12, shared=True)))
    vit = count[1] + 11 * (count[2] - count[1])
    # CLIP's output projection, 768 to 512, is merged too: one more M, and U_out on 512 channels. Each has a diagonal
    # and a factor of its own for every original, and one factor for all.
    projection = 2 * (k * (512 + 12 * 512) + 12 * 512)
    assert vit + projection == published


@pytest.mark.parametrize("models", [vits([8, 8, 8]), mixed((8, 2, 2), (6, 2, 1), (12, 3, 3)), mlps([6, 6])])
def test_unfolded_and_folded_are_one_function_with_one_gradient(models):
    net = fsm.SuperNet(models, 3, init="random", shared=True)
    x = torch.randn(3, 12).double() if isinstance(models[0], fsm.MLP) else pictures()
    for a, b in zip(net(x), net(x, unfolded=True)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    folded, unfolded = (torch.autograd.grad(sum(f.square().sum() for f in net(x, way)), learned(net))
                        for way in (False, True))
    torch.testing.assert_close(folded, unfolded, rtol=1e-9, atol=1e-9)


def test_it_is_the_form_of_the_paper():
    """[M_1, M_2] = [D_1, D_2] + A [B_1, B_2], and the same for U_1 over U_2."""
    layer = fsm.SuperNet(vits([8, 8]), 2, init="random", shared=True).body.blocks[0].mlp.fc2
    for matrices, dim in ((layer.merges, 1), (layer.unmerges, 0)):
        low_rank = torch.cat([m.dense() - torch.diag(m.D[0]) for m in matrices], dim)
        assert torch.linalg.matrix_rank(low_rank) == matrices[0].rank
    apart = fsm.SuperNet(vits([8, 8]), 2, init="random").body.blocks[0].mlp.fc2.merges
    assert torch.linalg.matrix_rank(torch.cat([m.dense() - torch.diag(m.D[0]) for m in apart], 1)) == 2 * apart[0].rank


@pytest.mark.parametrize("start", ["first", "average", "subspaces"])
def test_what_it_starts_at_is_what_it_starts_at_apart(start):
    models, x, found = vits([8, 8]), pictures(12), []
    for shared in (True, False):
        net = fsm.SuperNet(models, 2, init="first" if start == "subspaces" else start, shared=shared)
        if start == "subspaces":
            fsm.fit_subspaces(net, images_of(x))
        found.append(net.fold())
    torch.testing.assert_close(found[0].features(x), found[1].features(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train", [fsm.train_global, fsm.train_local])
@pytest.mark.parametrize("start", ["first", "subspaces"])
def test_it_is_trained_saved_and_restored_and_stays_shared(start, train, tmp_path):
    models, x = vits([8, 8]), pictures(12)
    net = fsm.SuperNet(models, 2, shared=True)
    if start == "subspaces":
        fsm.fit_subspaces(net, images_of(x))
    train(net, images_of(x), steps=30, lr=1e-2, batch_size=8)
    net.save(tmp_path / "net")
    again = fsm.load_supernet(tmp_path / "net", models)
    assert len(learned(net)) == len(learned(again))
    torch.testing.assert_close(net(x), again(x), rtol=0, atol=0)
    for each in (net, again, net.float()):
        for layer in each.graph.layers[1:]:
            module = each.body.get_submodule(layer.name)
            assert module.merges[0].A is module.merges[1].A and module.unmerges[0].B is module.unmerges[1].B
            assert module.merges[0].A.any()


def test_what_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="shared is for structure='diagonal_low_rank', got 'full'"):
        fsm.SuperNet(vits([8, 8]), 2, "full", shared=True)


@pytest.mark.parametrize("init", ["paper_first", "paper_average"])
def test_the_published_start_has_a_zero_reading_factor_and_a_small_writing_one(init):
    models = vits([96, 96], num_heads=4, mlp_ratio=4)
    net, ours = (fsm.SuperNet(models, 12, init=name, shared=True) for name in (init, init.removeprefix("paper_")))
    for module in net.modules():
        if isinstance(module, fsm.Merge | fsm.Unmerge):
            size = 0.1 / (module.rank * module.in_features ** 0.5)
            assert not module.B.any() and module.A.std().item() == pytest.approx(size, rel=0.1)
    for published, other in zip(net(pictures()), ours(pictures())):  # with one factor at zero both are the same model
        torch.testing.assert_close(published, other, rtol=0, atol=1e-12)
