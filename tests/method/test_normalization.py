"""Originals trained on pictures of another normalization: timm itself is the oracle."""
import copy

import pytest
import timm
import torch
from models_for_tests import VIT_OPTIONS, pictures, randomised, vits
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

import fsmerge_lite as fsm

IMAGENET = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
CLIP = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
EXACT = {"rtol": 0, "atol": 1e-10}


def normalized(x: torch.Tensor, mean, std) -> torch.Tensor:
    """Pictures in [-1, 1] as the model was trained on them."""
    mean, std = (torch.tensor(numbers, dtype=x.dtype)[:, None, None] for numbers in (mean, std))
    return (x / 2 + 0.5 - mean) / std


@pytest.mark.parametrize("options", VIT_OPTIONS.values(), ids=VIT_OPTIONS)
def test_the_original_reads_pictures_from_minus_one_to_one(options):
    model, x = vits([8], **options)[0], pictures()
    torch.testing.assert_close(fsm.Original(model, **CLIP)(x), model(normalized(x, **CLIP)), **EXACT)


def test_timm_knows_the_normalization_of_its_models():
    options = {"img_size": 32, "patch_size": 16, "num_classes": 3}
    for name in ("deit3_small_patch16_224", "vit_base_patch16_clip_224", "vit_tiny_patch16_224"):
        model = timm.create_model(name, pretrained=False, depth=1, embed_dim=32, num_heads=2, **options).double().eval()
        config = timm.data.resolve_model_data_config(model)
        original, x = fsm.Original(model), pictures(size=32)
        assert (original.mean, original.std) == (tuple(config["mean"]), tuple(config["std"]))
        torch.testing.assert_close(original(x), model(normalized(x, original.mean, original.std)), **EXACT)
        again = fsm.Original(original.backbone, original.head)  # absorbed once, not twice
        torch.testing.assert_close(again(x), original(x), **EXACT)


def test_given_numbers_win_over_timms():
    model = timm.create_model("deit3_small_patch16_224", depth=1, embed_dim=32, num_heads=2, img_size=32,
                              num_classes=3).double().eval()
    x = pictures(size=32)
    torch.testing.assert_close(fsm.Original(model, mean=(0.5,) * 3, std=(0.5,) * 3)(x), model(x), **EXACT)


def test_two_originals_that_differ_are_merged_on_the_same_pictures(tmp_path):
    models, x = vits([8, 8], torch.float32), pictures(16, dtype=torch.float32)
    originals = [fsm.Original(model, name=name, **how) for model, name, how in zip(models, "ab", (IMAGENET, CLIP))]
    true = [model(normalized(x, **how)) for model, how in zip(models, (IMAGENET, CLIP))]
    net = fsm.SuperNet(originals, rank=2)
    torch.testing.assert_close(net(x)[0], true[0], rtol=0, atol=1e-5)
    images = fsm.Calibration(x, torch.arange(16) % 2)
    history = fsm.train_global(net, images, steps=100, lr=1e-2, batch_size=16)
    assert history.loss[-1] < 0.3 * history.loss[0]
    for i in range(2):
        own = images.owner == i
        rebuilt = net.fold().features(x[own])[i]
        assert (rebuilt - true[i][own]).square().mean() < 0.5 * true[i][own].square().mean()
    originals[0].save(tmp_path / "a")
    again = fsm.load_original(tmp_path / "a")
    assert again.mean == pytest.approx(IMAGENET_DEFAULT_MEAN) and again.card["std"] == list(IMAGENET_DEFAULT_STD)
    torch.testing.assert_close(again(x), true[0], rtol=0, atol=1e-5)


def test_grey_pictures():
    model = randomised(fsm.vit(8, 1, 2, img_size=16, in_chans=1))
    x = pictures()[:, :1]
    expected = model((x / 2 + 0.5 - 0.1307) / 0.3081)
    torch.testing.assert_close(fsm.Original(model, mean=[0.1307], std=[0.3081])(x), expected, **EXACT)


@pytest.mark.parametrize("how, match", [
    ({"mean": (0.5, 0.5, 0.5)}, "give mean and std, or neither"),
    ({"mean": (0.5,), "std": (0.5,)}, "need 3 numbers each"),
    ({"mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}, "std > 0"),
    ({"mean": (0.5, float("nan"), 0.5), "std": (0.5,) * 3}, "std > 0; got"),
])
def test_bad_numbers(how, match):
    with pytest.raises(ValueError, match=match):
        fsm.Original(vits([8])[0], **how)


def test_where_nothing_can_hold_the_mean():
    bare = vits([8], pre_norm=True, pos_embed="none")[0]
    with pytest.raises(ValueError, match="nothing can hold the mean"):
        fsm.Original(bare, **CLIP)
    fsm.Original(bare, mean=(0.5,) * 3, std=(0.25,) * 3)  # no mean to hold
    with pytest.raises(ValueError, match="for models that read pictures, not for MLP"):
        fsm.Original(fsm.MLP((12, 8)), mean=(0.0,) * 3, std=(1.0,) * 3)


def test_the_given_model_stays_as_it_is():
    model = vits([8])[0].train().requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    original = fsm.Original(model, **CLIP)
    assert all(p.requires_grad for p in model.parameters()) and model.training
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(p.requires_grad for p in original.parameters())
    ours = {p.data_ptr() for p in original.parameters()}
    assert not ours & {p.data_ptr() for p in model.parameters()}
