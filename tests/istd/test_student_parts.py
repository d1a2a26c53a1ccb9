"""Parts of single students by independent formulas: wavelets, block transforms, deformable convolution, patches."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from istd import students
from istd.students import create_student
from istd.students.agpc import SCALES, NonLocal
from istd.students.deformable import DeformableConv, sample
from istd.students.fourier import block_filter, block_product
from istd.students.gsfa import GSFANet, dynamic_conv
from istd.students.wavelets import haar, haar_bands, joined_haar

LEAVES = ("bilevel.registry", "istd.pretrained")
ALLOWED = {"torch", "numpy", "safetensors", "bilevel", "istd"} | sys.stdlib_module_names

NEW = ("agpc", "gsfa", "gsfa-per-image", "isnet", "msda", "sfdt")


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_students_import_no_image_library_and_no_foundation_model():
    """Of `istd` other students and the finder of weights alone, of `bilevel` the registry."""
    for file in Path(students.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert name.split(".")[0] in ALLOWED, (file.name, name)
                if name.startswith(("istd", "bilevel")):
                    assert name.startswith("istd.students") or name in LEAVES, (file.name, name)


@pytest.mark.parametrize("name", NEW)
def test_sides_may_be_any_multiple_of_the_largest_stride(name):
    """Finite maps and gradients at one and at three strides, in training mode with a batch."""
    torch.manual_seed(0)
    student = create_student(name, 0.25)
    stride = max(stage.stride for stage in student.stages)
    for height, width in ((stride, 3 * stride), (3 * stride, 4 * stride)):
        maps = student.decode_all(student.encode(torch.randn(2, 3, height, width)))
        assert maps[0].shape == (2, 1, height, width)
        torch.stack([m.square().mean() for m in maps]).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())


@pytest.mark.parametrize("name", NEW)
def test_all_outputs_stand_beside_the_one_used_at_test(name):
    torch.manual_seed(0)
    student = create_student(name, 0.25).eval()
    with torch.no_grad():
        features = student.encode(torch.randn(2, 3, 64, 64))
        maps = student.decode_all(features)
        assert torch.equal(maps[0], student.decode(features))
    assert len(maps) == len(student.outputs)
    assert all(64 % m.shape[-1] == 0 and m.shape[:2] == (2, 1) for m in maps)


def filters():
    """LL, LH, HL and HH of the Haar wavelet as 2x2 cross-correlations."""
    low, high = torch.tensor([1.0, 1.0]).double() / 2**0.5, torch.tensor([1.0, -1.0]).double() / 2**0.5
    return [torch.outer(rows, columns) for rows, columns in ((low, low), (high, low), (low, high), (high, high))]


def test_haar_bands_are_correlations_with_the_four_filters():
    x = noise(2, 3, 6, 8)
    padded = F.pad(x, (1, 0, 1, 0)).flatten(0, 1)[:, None]
    for band, kernel in zip(haar_bands(x), filters(), strict=True):
        assert torch.allclose(band.flatten(0, 1)[:, None], F.conv2d(padded, kernel[None, None]), atol=1e-14)
    blocks = haar(x)
    for band, kernel in zip(blocks, filters(), strict=True):
        expected = F.conv2d(x.flatten(0, 1)[:, None], kernel[None, None], stride=2)
        assert torch.allclose(band.flatten(0, 1)[:, None], expected, atol=1e-14)
    assert float(sum(b.square().sum() for b in blocks)) == pytest.approx(float(x.square().sum()))  # orthonormal
    assert torch.equal(joined_haar(x)[:, 4:8], torch.stack([b[:, 1] for b in blocks], dim=1))


def fourier(x, apply):
    """`apply` on the spectra of 8x8 blocks, by a library's transform."""
    b, c, h, w = x[0].shape
    spectra = [torch.fft.rfft2(m.reshape(b, c, h // 8, 8, w // 8, 8).transpose(3, 4)) for m in x]
    blocks = torch.fft.irfft2(apply(*spectra), s=(8, 8))
    return blocks.transpose(3, 4).reshape(b, c, h, w)


@pytest.mark.parametrize("blocks", [(2, 3), (7, 10)])  # few and many: both orders of the products
def test_block_transforms_are_those_of_the_library(blocks):
    """To 1e-12: sums of 64 numbers of size one."""
    shape = (2, 3, 8 * blocks[0], 8 * blocks[1])
    x, y, spectrum = noise(*shape), noise(*shape, seed=1), noise(3, 8, 5, seed=2)
    filtered = fourier([x], lambda f: f * spectrum[:, None, None])
    assert torch.allclose(block_filter(x, spectrum), filtered, atol=1e-12)
    assert torch.allclose(block_product(x, y), fourier([x, y], lambda f, g: f * g), atol=1e-12)


def test_block_transforms_fill_up_with_zeros_and_keep_float32():
    x, spectrum = noise(1, 2, 5, 12), noise(2, 8, 5, seed=1)
    full = F.pad(x, (0, 4, 0, 3))
    assert torch.allclose(block_filter(x, spectrum), block_filter(full, spectrum)[..., :5, :12], atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        half = block_filter(full.float(), spectrum.float())
        product = block_product(full.bfloat16(), full.bfloat16())
    assert half.dtype == product.dtype == torch.float32
    assert torch.allclose(half.double(), block_filter(full, spectrum), atol=1e-4)  # bfloat16 would be off by 1e-2


def test_deformable_convolution_is_that_of_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    for kernel in ((1, 3), (3, 1)):
        torch.manual_seed(0)
        module = DeformableConv(4, kernel).double()
        module.offsets.weight.data.normal_(std=2.0)  # far enough to leave the map
        x = noise(2, 4, 6, 7)
        moves = module.offsets(x)
        padding = (kernel[0] // 2, kernel[1] // 2)
        expected = ops.deform_conv2d(
            x, moves[:, :6], module.weight, module.bias, padding=padding, mask=moves[:, 6:].sigmoid()
        )
        assert torch.allclose(module(x), expected, atol=1e-12)


def test_deformable_convolution_starts_as_half_an_ordinary_one():
    torch.manual_seed(0)
    module, x = DeformableConv(3, (3, 1)).double(), noise(2, 3, 5, 6)
    plain = F.conv2d(x, module.weight, padding=(1, 0)) / 2 + module.bias[:, None, None]
    assert torch.allclose(module(x), plain, atol=1e-14)


def test_samples_have_second_derivatives():
    """A hypergradient needs them; between whole pixels, where the interpolation is smooth."""
    places = ([0.3, 2.6, -0.4, 3.7], [3.85, -0.25, 2.75, 0.45])
    rows, columns = (torch.tensor([p], dtype=torch.float64, requires_grad=True) for p in places)
    x = noise(1, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a, r, c: sample(a, r, c).square(), (x, rows, columns))


def test_attention_in_patches_is_attention_on_each_patch_alone():
    """Sides that divide and sides that do not; the last patch of a row takes what remains."""
    torch.manual_seed(0)
    module = NonLocal(8, reduction=4).double()
    module.gamma.data.fill_(0.7)
    x = noise(2, 8, 12, 11)
    for scale in (*SCALES, 4, 1):
        gate = noise(2, 8, scale, scale, seed=scale).sigmoid()
        edges = [[*range(0, scale * (n // scale), n // scale), n] for n in (12, 11)]
        expected = torch.zeros_like(x)
        for i in range(scale):
            for j in range(scale):
                rows, columns = slice(*edges[0][i : i + 2]), slice(*edges[1][j : j + 2])
                patch = module(x[:, :, rows, columns])
                expected[:, :, rows, columns] = patch * gate[:, :, i, j, None, None]
        assert torch.allclose(module(x, gate, scale), expected, atol=1e-12), scale


def test_dynamic_kernels_apply_to_their_own_channel_and_image():
    x, kernels = noise(2, 3, 5, 6), noise(2, 6, 1, 3, 3, seed=1)
    own, shared = dynamic_conv(x, kernels), dynamic_conv(x, kernels[:1])
    for b, i in np.ndindex(2, 6):
        channel = x[b, i // 2][None, None]
        assert torch.allclose(own[b, i], F.conv2d(channel, kernels[b, i][None], padding=1)[0, 0], atol=1e-14)
        assert torch.allclose(shared[b, i], F.conv2d(channel, kernels[0, i][None], padding=1)[0, 0], atol=1e-14)


def test_published_gsfa_depends_on_the_first_image_of_a_batch_and_per_image_does_not():
    maps = {}
    for per_image in (False, True):
        torch.manual_seed(0)
        student = GSFANet(0.25, per_image=per_image).double().eval()
        for p in student.parameters():
            p.data.add_(0.3 * torch.randn(p.shape, dtype=torch.float64))  # past the start, where kernels are alike
        x = noise(2, 3, 64, 64)
        with torch.no_grad():
            maps[per_image] = (student(x), torch.cat([student(image[None]) for image in x]))
    (batch, alone), (own_batch, own_alone) = maps[False], maps[True]
    assert torch.allclose(batch[0], alone[0], atol=1e-9)
    assert not torch.allclose(batch[1], alone[1], atol=1e-3)
    assert torch.allclose(own_batch, own_alone, atol=1e-9)
    assert torch.allclose(own_alone, alone, atol=1e-9)  # one image at a time: the same network


def test_a_published_shape_of_five_dimensions_is_one_of_files_alone():
    """As a parameter it would keep the network from the memory format that training uses."""
    torch.manual_seed(0)
    student = create_student("sfdt", 0.25).to(memory_format=torch.channels_last)
    state = student.state_dict()
    name = "decoder.0.feed.1.spectrum"
    assert state[name].shape == (2 * int(2.66 * 32), 1, 1, 8, 5)
    other = create_student("sfdt", 0.25)
    state[name] = state[name] + 1
    other.load_state_dict(state)
    assert torch.equal(other.get_parameter(name), student.get_parameter(name) + 1)
