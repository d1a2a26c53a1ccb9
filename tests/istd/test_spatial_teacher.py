"""Features that are computed once per image and cut out with the crop, and the adapters that use them in space."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from istd.data.crops import Augmentation, CropLoader, Normalisation
from istd.data.layouts import Sample
from istd.students import create_student, stages_of
from istd.teacher import SAMF, SCAM, SpatialFeatures, SpatialSCAM, Teacher, load_vfm
from istd.teacher.depths import Depths, as_grid

LITE = "tf_efficientnet_lite0"


def images_as_features(images):
    """Feature maps that are the images themselves: what is cut out of them must be the crop."""
    return SpatialFeatures(
        tuple((torch.from_numpy(i)[None],) for i in images), tuple((i.shape[0], i.shape[1]) for i in images)
    )


def crops_and_features(images, **augmentation):
    samples = [
        Sample(str(k), i, np.array([[i.shape[0] // 2, i.shape[1] // 3]]), np.zeros(i.shape, bool))
        for k, i in enumerate(images)
    ]
    features = images_as_features(images)
    return CropLoader(
        samples,
        lambda i: samples[i].mask_source,
        lambda: np.arange(len(samples)),
        batch_size=4,
        augmentation=Augmentation(32, **augmentation),
        normalisation=Normalisation(0.0, 1.0),
        aligned_tokens=lambda index, places: features.tokens(index, places, 32, cell=1),
    )


@pytest.mark.parametrize("size", [(50, 70), (20, 40), (33, 17), (9, 9)])
def test_features_are_cut_turned_and_mirrored_with_the_crop(size):
    """The features being the image, those of a crop are the crop: in float32, to the rounding of coordinates.

    A coordinate of at most 70 is off by 2^-24 70 = 4e-6, and the image's slope is at most 1 a pixel.
    """
    rng = np.random.default_rng(0)
    loader = crops_and_features([rng.random(size, dtype=np.float32) for _ in range(8)])
    seen = 0
    for epoch in range(4):
        loader.set_epoch(epoch)
        for batch in loader:
            assert batch.tokens.shape == (4, 1, 32, 32, 1)
            assert torch.allclose(batch.tokens[:, 0, :, :, 0], batch.image[:, 0], rtol=0, atol=2e-5)
            seen += len(batch.image)
    assert seen == 32


def test_features_are_zoomed_with_the_crop():
    """On a plane, where linear interpolation is exact but at borders.

    The triangle that a shrunk crop is filtered with is sampled at whole pixels, so that its centre is off by up to a
    tenth of a pixel in rows and columns: 7e-4 on this slope. Half a pixel, the usual error, would be 3.5e-3.
    """
    rows, cols = np.mgrid[:80, :100].astype(np.float32)
    loader = crops_and_features([(0.004 * rows + 0.003 * cols).astype(np.float32)] * 8, scale=1.6)
    zooms = 0
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            inner = (slice(None), slice(3, -3), slice(3, -3))
            assert torch.allclose(batch.tokens[:, 0, :, :, 0][inner], batch.image[:, 0][inner], rtol=0, atol=7e-4)
            zooms += len({round(float(x.max() - x.min()), 4) for x in batch.image})
    assert zooms > 8  # they were of different zooms


def test_one_source_of_tokens():
    with pytest.raises(ValueError, match="`tokens` and `aligned_tokens` exclude each other"):
        CropLoader(
            [],
            None,
            None,
            batch_size=1,
            augmentation=Augmentation(32),
            normalisation=Normalisation(0.0, 1.0),
            tokens=lambda i, x: x,
            aligned_tokens=lambda i, x: x,
        )


def test_coarse_maps_are_sampled_as_interpolation_does():
    """A map of every fourth pixel, looked up at all pixels, is its bilinear enlargement."""
    torch.manual_seed(0)
    level = torch.randn(3, 6, 8)
    features = SpatialFeatures(((level,),), ((24, 32),))
    rows, cols = torch.meshgrid(torch.arange(24), torch.arange(32), indexing="ij")
    expected = F.interpolate(level[None], (24, 32), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    assert torch.allclose(features.at(0, rows, cols)[0], expected, rtol=0, atol=1e-5)
    assert torch.allclose(features.points(0, np.array([[3, 5], [20, 31]])), expected[[3, 20], [5, 31]], atol=1e-5)
    assert features.points(0, np.zeros((0, 2))).shape == (0, 3)


def test_a_whole_image_has_tokens_on_a_grid_of_its_own_shape():
    vfm = load_vfm(LITE, random=True)
    images = [np.random.default_rng(0).random((40, 72), dtype=np.float32)]
    features = SpatialFeatures.compute(vfm, images, progress=False)
    assert [tuple(m.shape[1:]) for m in features.maps[0]] == [(10, 18), (10, 18), (10, 18), (6, 10), (3, 5)]
    assert features.maps[0][0].dtype == torch.float16
    assert features.whole(0, 16).shape == (1, 1, 12, 20, sum(vfm.widths))
    vit = SpatialFeatures.compute(load_vfm("vit_tiny_patch16_224", random=True), images, progress=False, cell=8)
    assert vit.whole(0, 16, cell=8).shape == (1, 12, 6, 10, 192)


def test_half_precision_moves_features_by_its_rounding_alone():
    vfm = load_vfm(LITE, random=True)
    images = [np.random.default_rng(0).random((32, 32), dtype=np.float32)]
    half, full = (SpatialFeatures.compute(vfm, images, dtype=d, progress=False) for d in (torch.float16, torch.float32))
    for a, b in zip(half.maps[0], full.maps[0], strict=True):
        assert torch.allclose(a.float(), b, rtol=2**-11, atol=2**-25)


def test_bad_features_are_named():
    with pytest.raises(ValueError, match="`maps` are of 0 images and `sizes` of 1"):
        SpatialFeatures((), ((3, 3),))
    with pytest.raises(ValueError, match=r"`cell` must divide `crop` \(32 px\), got 5"):
        images_as_features([np.zeros((32, 32), np.float32)]).tokens(torch.zeros(1), torch.zeros(1, 2, 3), 32, cell=5)


# --- adapters ---------------------------------------------------------------------------------------------------------


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FEATURES = [draw(2, 4, 8, 8, seed=1), draw(2, 8, 4, 4, seed=2)]
TOKENS = {"equal depths": (3, 6, draw(2, 3, 4, 4, 6)), "a pyramid": (3, (5, 6, 7), draw(2, 1, 4, 4, 18))}


def adapters(kind):
    depth, dim, tokens = TOKENS[kind]
    torch.manual_seed(0)
    channels = [f.shape[1] for f in FEATURES]
    made = [
        SCAM(depth, dim, channels, hidden=5),
        SAMF(depth, dim, channels, blocks=3),
        SpatialSCAM(depth, dim, channels, hidden=5),
    ]
    return [m.double() for m in made], tokens


@pytest.mark.parametrize("kind", TOKENS)
def test_every_adapter_starts_as_the_identity_on_any_backbone_and_learns_in_all_its_parts(kind):
    made, tokens = adapters(kind)
    for adapter in made:
        out = adapter(FEATURES, tokens)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(FEATURES, out, strict=True))
        for i, p in enumerate(adapter.parameters()):
            p.data = 0.5 * draw(*p.shape, seed=i)
        for name, p in adapter.named_parameters():
            if name == "embed.0.bias":
                p.data += 1.0  # hidden units of the ReLU that are alive
        sum(f.square().sum() for f in adapter(FEATURES, tokens)).backward()
        dead = [n for n, p in adapter.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-7]
        assert not dead, (type(adapter).__name__, dead)


@pytest.mark.parametrize("kind", TOKENS)
def test_a_square_grid_may_be_a_sequence(kind):
    made, tokens = adapters(kind)
    for adapter in made:
        for i, p in enumerate(adapter.parameters()):
            p.data = 0.5 * draw(*p.shape, seed=i)
        for a, b in zip(adapter(FEATURES, tokens), adapter(FEATURES, tokens.flatten(2, 3)), strict=True):
            assert torch.equal(a, b)


def test_spatial_scam_is_its_formula():
    (_, _, module), tokens = adapters("equal depths")
    for i, p in enumerate(module.parameters()):
        p.data = draw(*p.shape, seed=i)
    out = module(FEATURES, tokens)
    pi = module.depth_logits.softmax(0)
    parameters = torch.empty(2, 24, 4, 4, dtype=torch.float64)
    for b in range(2):
        for r in range(4):
            for c in range(4):
                fused = sum(pi[k] * tokens[b, k, r, c] for k in range(3))
                hidden = torch.relu(module.embed[0].weight @ fused + module.embed[0].bias)
                parameters[b, :, r, c] = module.affine.weight @ hidden + module.affine.bias
    for f, o, u, first in zip(FEATURES, out, module.gate, (0, 8), strict=True):
        c = f.shape[1]
        gamma, beta = parameters[:, first : first + c], parameters[:, first + c : first + 2 * c]
        gamma, beta = (F.interpolate(x, f.shape[-2:], mode="bilinear", align_corners=False) for x in (gamma, beta))
        expected = (1 + 0.12 * torch.tanh(gamma * u[:, None, None])) * f + 0.12 * beta
        assert torch.allclose(o, expected, rtol=0, atol=1e-12)
    assert torch.allclose(module.gate_penalty(), torch.cat(list(module.gate)).abs().mean())


def test_spatial_scam_changes_only_where_its_features_differ():
    """A feature in one corner changes the modulation there and leaves the opposite corner alone."""
    (_, _, module), tokens = adapters("equal depths")
    for i, p in enumerate(module.parameters()):
        p.data = draw(*p.shape, seed=i)
    other = tokens.clone()
    other[:, :, 0, 0] += 1.0
    for a, b in zip(module(FEATURES, tokens), module(FEATURES, other), strict=True):
        half = a.shape[-1] // 2
        assert not torch.equal(a[..., 0, 0], b[..., 0, 0])
        assert torch.equal(a[..., half:, half:], b[..., half:, half:])


def test_depths_of_a_pyramid_are_normed_and_mapped_each_by_its_own_map():
    torch.manual_seed(0)
    depths, tokens = Depths((5, 7)).double(), draw(2, 1, 3, 12)
    out = depths(tokens)
    assert out.shape == (2, 2, 3, depths.dim)
    part = tokens[:, 0, :, 5:]
    normed = (part - part.mean(-1, keepdim=True)) / (part.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(out[:, 1], normed @ depths.maps[1].weight.T + depths.maps[1].bias, rtol=0, atol=1e-12)
    assert Depths(7)(tokens[..., :7]) is not None
    assert not list(Depths(7).parameters())


def test_adapters_name_tokens_that_do_not_fit():
    made, _ = adapters("equal depths")
    for adapter in made:
        with pytest.raises(ValueError, match="`tokens` have 7 channels; this adapter was built for 6"):
            adapter(FEATURES, draw(2, 3, 16, 7))
        with pytest.raises(ValueError, match=r"channels; this .* was built for \(4, 8\)"):
            adapter([FEATURES[0], FEATURES[0]], draw(2, 3, 16, 6))
    with pytest.raises(ValueError, match="hold 15 places, which is no square grid"):
        as_grid(draw(2, 3, 15, 6))


def test_a_teacher_of_a_pyramid_teaches_crops_and_whole_images():
    torch.manual_seed(0)
    vfm, student = load_vfm(LITE, random=True), create_student("mlcl", 0.25)
    channels = [s.channels for s in stages_of(student)]
    image = np.random.default_rng(0).random((40, 60), dtype=np.float32)
    features = SpatialFeatures.compute(vfm, [image], progress=False)
    place = torch.tensor([[[1.0, 0, 4], [0, 1.0, 20]]])
    crop = torch.from_numpy(image[4:36, 20:52]).expand(1, 3, -1, -1)
    for adapter in (SpatialSCAM, SAMF):
        teacher = Teacher(student, adapter(vfm.depth, vfm.dim, channels)).eval()
        tokens = features.tokens(torch.tensor([0]), place, 32)
        assert tokens.shape == (1, 1, 8, 8, sum(vfm.widths))
        assert teacher(crop, tokens).teacher.shape == (1, 1, 32, 32)
        whole = F.pad(torch.from_numpy(image).expand(1, 3, -1, -1), (0, 4))
        assert teacher.teach(whole, features.whole(0, 4)).shape == (1, 1, 40, 64)
