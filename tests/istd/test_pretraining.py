"""The recipe for VFM weights: it learns from images alone, and what it writes loads as any other weight file."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from istd.cli import main
from istd.teacher import load_vfm
from istd.teacher.pretraining import Pretraining, pretrain

SMALL = "test_vit"  # timm's own toy: 0.4 M parameters
QUICK = Pretraining(steps=60, batch_size=8, size=64, lr=2e-3)


def ramps(n, seed=0):
    """Brightness rises in one direction: what is hidden follows from what is seen."""
    rng = np.random.default_rng(seed)
    rows, cols = np.indices((64, 80)) / 80
    return [(b * (np.cos(a) * rows + np.sin(a) * cols)).astype(np.float32) for a, b in rng.uniform(0.3, 1.0, (n, 2))]


def test_hidden_patches_are_learned_and_the_same_seed_gives_the_same_weights():
    found = pretrain(SMALL, ramps(16), ramps(4, seed=1), QUICK, progress=False)
    assert found.held_out < 0.8 * found.trivial
    assert np.mean(found.losses[-10:]) < 0.8 * np.mean(found.losses[:5])
    again = pretrain(SMALL, ramps(16), (), Pretraining(steps=3, batch_size=2, size=64), progress=False)
    twice = pretrain(SMALL, ramps(16), (), Pretraining(steps=3, batch_size=2, size=64), progress=False)
    assert again.losses == twice.losses
    assert np.isnan(again.held_out)


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
        (["--out", "x.safetensors", "--scenes", "0"], "`images` is empty"),
    ],
)
def test_what_cannot_be_pretrained_is_named(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--vfm", SMALL, "--quiet", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
