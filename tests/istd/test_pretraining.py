"""The recipe for VFM weights: it learns from images alone, and what it writes loads as any other weight file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from istd.cli import main
from istd.teacher import load_vfm
from istd.teacher.pretraining import Pretraining, _retrieval, pretrain

pytestmark = pytest.mark.slow

SMALL = "test_vit"  # timm's own toy: 0.4 M parameters
QUICK = Pretraining(steps=60, batch_size=8, size=64, lr=1e-3)


def stripes(n, seed=0):
    """Every image has a stripe width and a noise level of its own; crops are zoomed, turned and brightened."""
    rng = np.random.default_rng(seed)
    rows = np.indices((64, 80))[0]
    return [
        (0.5 + 0.3 * np.sign(np.sin(rows / w)) * (w > 1) + s * rng.standard_normal((64, 80))).clip(0, 1).astype("f4")
        for w, s in zip(np.geomspace(0.5, 12, n), np.tile([0.02, 0.15], n)[:n], strict=True)
    ]


def test_crops_of_one_image_find_each_other_and_the_same_seed_gives_the_same_weights():
    found = pretrain(SMALL, stripes(8), stripes(8, seed=1), QUICK, progress=False)
    assert np.mean(found.losses[-10:]) < 0.8 * np.mean(found.losses[:5])
    assert 0 <= found.found <= 1
    again, twice = (
        pretrain(SMALL, stripes(4), (), Pretraining(steps=3, batch_size=2, size=32), progress=False) for _ in range(2)
    )
    assert again.losses == twice.losses
    assert np.isnan(again.found)


def test_what_is_found_again_is_counted():
    """Tokens that tell images apart find all of them; tokens that are alike for all find the first of each tie."""

    class Tokens:
        def __init__(self, token):
            self.token = token

    flat = [np.full((40, 40), 0.5, np.float32)] * 4
    assert (
        _retrieval(Tokens(lambda crops: torch.ones(len(crops), 3)), flat, Pretraining(size=8), torch.device("cpu"))
        == 0.25
    )
    rng = np.random.default_rng(0)
    images = [rng.random((40, 40)).astype(np.float32) for _ in range(4)]

    own = Tokens(lambda crops: torch.eye(len(crops)))
    assert _retrieval(own, images, Pretraining(size=8), torch.device("cpu")) == 1.0
    assert np.isnan(_retrieval(own, images[:1], Pretraining(size=8), torch.device("cpu")))


def test_the_command_writes_weights_that_the_loader_takes(tmp_path, capsys):
    out = tmp_path / "vit.safetensors"
    flags = ["--vfm", SMALL, "--steps", "2", "--batch-size", "2", "--size", "32", "--scenes", "4", "--quiet"]
    assert main(["pretrain", "--out", str(out), *flags]) == 0
    assert f"--vfm-weights {out}" in capsys.readouterr().out
    vfm = load_vfm(SMALL, out)
    assert vfm.pretrained
    expected = load_file(out)
    assert expected.keys() == vfm.model.state_dict().keys()
    for key, value in vfm.model.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "x.pth"], "must end in .safetensors"),
        (["--out", "x.safetensors", "--size", "33"], "multiple of the patch"),
        (["--out", "x.safetensors", "--steps", "0"], "`steps` must be at least 1"),
        (["--out", "x.safetensors", "--scenes", "1"], "`images` must hold at least two"),
    ],
)
def test_what_cannot_be_pretrained_is_named(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--vfm", SMALL, "--quiet", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
