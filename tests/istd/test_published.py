"""Checkpoints of released code become students: right ones tensor by tensor, wrong ones refused by name."""

import json
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from istd import load_published, load_student
from istd.cli import main
from istd.data.normalisation import NORMALISATIONS, Normalisation
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.students import STUDENTS, create_student
from istd.students.published import match_published, read_checkpoint
from istd.training.experiment import Experiment
from istd.training.presets import configure
from tests.istd import references

FULL = [n for n in STUDENTS if (references.FULL / f"{n}.json").is_file()]


def published(name, in_channels=None, width=1.0):
    """A state such as a release saves, under names of its own making, with a part that our form lacks."""
    torch.manual_seed(0)
    student = create_student(name, width, in_channels)
    state = OrderedDict(
        (f"layer{k}.{n.split('.')[-1]}", v.clone()) for k, (n, v) in enumerate(student.state_dict().items())
    )
    for part in STUDENTS[name].left_out:
        state[f"{part}.0.conv1.weight"] = torch.zeros(2, 2)
    return student, state


def same(student, expected):
    pairs = zip(student.state_dict().items(), expected.state_dict().items(), strict=True)
    return all(a == b and (torch.equal(x, y) or a.endswith("num_batches_tracked")) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    "name", references.by_cost(FULL) or [pytest.param("", marks=pytest.mark.skip(reason="no full reference files"))]
)
def test_published_names_and_shapes_map_to_ours(name, monkeypatch):
    """The recipe's numbers under the published names give what `fill` gives, which meets the reference values.

    A network of 50 million numbers gets in each tensor its number in the state, which costs less.
    """
    full = json.loads((references.FULL / f"{name}.json").read_text())
    if full["parameters"] > 2e7:
        monkeypatch.setattr(references, "value", lambda kind, i, shape, gain: torch.full(shape, float(i)))
    tensors = references.published_state(full["state"])
    values = {
        t.name: torch.zeros(t.shape) if t.kind == "c" else references.value(t.kind, t.number, t.shape, full["gain"])
        for t in tensors
    }
    values[tensors[-1].name] += full["last_bias_add"]
    expected = create_student(name).double()
    references.fill(expected, references.as_ours(full))
    expected.float()
    match = match_published(values, name)
    constants = {ours for theirs, ours in match.pairs if any(t.name == theirs and t.kind == "c" for t in tensors)}
    for (key, found), wanted in zip(match.student.state_dict().items(), expected.state_dict().values(), strict=True):
        if key not in constants and not key.endswith("num_batches_tracked"):
            assert torch.equal(found, wanted), key
    assert len(match.pairs) + len(match.skipped) == full["tensors"]


WRAPPINGS = {
    "bare": lambda s: s,
    "lesps": lambda s: {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in s.items()}, "total_loss": [0.1, 0.2]},
    "pal": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "optimizer": {"state": {}}},
    "parallel lesps": lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}},
    "mshnet": lambda s: {"net": s, "optimizer": {"state": {}}, "epoch": 1, "iou": np.float64(0.6)},
    "teacher": lambda s: {
        "state_dict": {f"base.{k}": v for k, v in s.items()} | {"modulator.gate": torch.ones(3)},
        "best": np.float32(0.5),
    },
    "profiled": lambda s: s | {"total_ops": torch.zeros(1), "layer0.total_params": torch.zeros(1)},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("name", ["acm-lesps", "alcnet-lesps"])
def test_wrappers_of_releases_are_known(tmp_path, name, wrapping):
    student, state = published(name)
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "best.pth.tar")
    found = load_published(tmp_path / "best.pth.tar", name)
    assert not found.training
    assert same(found, student.half().float() if wrapping == "half" else student)


def test_safetensors_and_old_archives_are_read(tmp_path):
    student, state = published("acm")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_published(tmp_path / "old.pth", "acm"), student)
    # Files of safetensors sort their names; those of our students' are in order only by chance, so names must sort.
    save_file({f"{k:04d}.{n.split('.')[-1]}": v for k, (n, v) in enumerate(state.items())}, tmp_path / "x.safetensors")
    assert same(load_published(tmp_path / "x.safetensors", "acm"), student)


@pytest.mark.parametrize("name", list(STUDENTS))
def test_every_student_takes_any_input_channels(name):
    for channels in (1, 3):
        student = create_student(name, 0.25, channels).eval()
        assert student.in_channels == channels
        with torch.no_grad():
            assert student(torch.zeros(1, channels, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("name", ["acm", "acm-lesps", "mlcl"])
def test_a_checkpoint_tells_its_input_channels(name):
    for channels in (1, 3):
        student, state = published(name, in_channels=channels)
        match = match_published(state, name)
        assert match.student.in_channels == channels
        assert same(match.student, student)


@pytest.mark.slow  # commands, from import to detection
def test_an_imported_student_evaluates_and_detects(tmp_path, capsys):
    student, state = published("msh", in_channels=1)
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    out = tmp_path / "out"
    call = ["import", str(tmp_path / "x.pth"), "--student", "msh", "--out", str(out)]
    assert main([*call, "--normalisation", "nuaa-sirst"]) == 0
    assert re.search(r"\d+ tensors \(4,\d+,\d+ numbers\) of .* agree with 'msh'", capsys.readouterr().out)
    predictor = load_student(out)
    assert predictor.normalisation == NORMALISATIONS["nuaa-sirst"]
    image = np.random.default_rng(0).random((32, 48)).astype(np.float32)
    x = (torch.from_numpy(image)[None, None] * 255 - 101.06385040283203) / 34.619606018066406
    with torch.no_grad():
        expected = student.eval()(x).sigmoid()[0, 0].numpy()
    assert np.allclose(predictor(image), expected, atol=1e-5)  # float32, of probabilities
    (tmp_path / "images").mkdir()
    Image.fromarray((255 * image).astype(np.uint8)).save(tmp_path / "images" / "a.png")
    assert (
        main(["detect", str(out), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "masks"), "--quiet"])
        == 0
    )
    assert (tmp_path / "masks" / "a.png").is_file()
    capsys.readouterr()
    assert main([*call, "--normalisation", "nuaa-sirst"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*call, "--mean", "51", "--std", "25.5", "--overwrite"]) == 0
    assert load_student(out).normalisation == Normalisation(0.2, 0.1)


def test_an_import_names_what_it_left_out(tmp_path, capsys):
    torch.save(published("alcnet")[1], tmp_path / "x.pth")
    call = ["import", str(tmp_path / "x.pth"), "--student", "alcnet", "--out", str(tmp_path / "out")]
    assert main([*call, "--normalisation", "imagenet"]) == 0
    assert (
        "2 tensors, which no output depends on or which are fixed, were left out:\n  uplayer1"
        in capsys.readouterr().out
    )
    assert load_student(tmp_path / "out").normalisation.channels == "imagenet"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either `--normalisation`"),
        (["--normalisation", "sirst3", "--mean", "95"], "give either `--normalisation`"),
        (["--mean", "95"], "belong together"),
        (["--mean", "95", "--std", "0"], "belong together"),
        (["--normalisation", "imagenet"], "gives three channels, and this checkpoint takes 1"),
    ],
)
def test_an_import_needs_the_normalisation_of_the_training(tmp_path, capsys, flags, message):
    torch.save(published("acm-lesps")[1], tmp_path / "x.pth")
    call = ["import", str(tmp_path / "x.pth"), "--student", "acm-lesps", "--out", str(tmp_path / "out")]
    assert main([*call, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_imagenet_normalises_each_channel_by_its_constants():
    x = torch.full((1, 1, 2, 2), 0.5)
    found = NORMALISATIONS["imagenet"](x, torch.zeros(1, 2))
    assert found.shape == (1, 3, 2, 2)
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    assert np.allclose(found[0, :, 0, 0].numpy(), expected, rtol=1e-5)


@pytest.mark.slow  # all networks are built to find the nearest
def test_another_network_or_width_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no 'acm'.*tensor \d+ is .* of shape .*Nearest is 'acm-lesps' .* 100% of the"
    ):
        match_published(published("acm-lesps")[1], "acm")
    with pytest.raises(ValueError, match=r"no 'acm'.*Nearest is 'acm' .* at width 0.5, .* 100%.*have width 1"):
        match_published(published("acm", width=0.5)[1], "acm")
    state = published("mlcl")[1]
    state.popitem()
    with pytest.raises(ValueError, match=r"it has \d+ tensors, and 'mlcl' has \d+\. Nearest is 'mlcl'"):
        match_published(state, "mlcl")
    swapped = OrderedDict((k.replace("layer1.bias", "layer1.running_mean"), v) for k, v in published("mlcl")[1].items())
    with pytest.raises(ValueError, match=r"tensor 2 is 'layer1.running_mean'"):
        match_published(swapped, "mlcl")
    with pytest.raises(ValueError, match="Unknown student 'unet'"):
        match_published(state, "unet")


class Tripwire:
    def __reduce__(self):
        return (pytest.fail, ("pickled code was run",))


def test_damaged_and_foreign_files_are_refused(tmp_path):
    _, state = published("acm")
    path = tmp_path / "x.pth"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_published(path, "acm")
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for share in (0.0, 0.01, 0.5, 0.99):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ValueError, match="no checkpoint, or is cut short"):
                load_published(path, "acm")
    path.write_bytes(b"<html>Sign in to download</html>")
    with pytest.raises(ValueError, match="no checkpoint, or is cut short"):
        load_published(path, "acm")
    torch.save({"state_dict": state, "note": Tripwire()}, path)
    with pytest.raises(ValueError, match=r"holds pickled code \(.*[Ff]ail\), which is not run"):
        load_published(path, "acm")
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match=r"holds pickled code \(torch.nn.modules.linear.Linear\)"):
        load_published(path, "acm")
    for content in ({"epoch": 3}, [1, 2], {"state_dict": {}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match="holds no weights that are known"):
            load_published(path, "acm")
    state["layer0.weight"][0] = float("nan")
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"layer0.weight is not finite"):
        read_checkpoint(path)


def test_three_channels_for_a_network_of_one_are_refused_before_training():
    settings = configure("smoke", "plain", student="acm-lesps", channels="contrast")
    with pytest.raises(ValueError, match="`channels='contrast'` gives three input channels, and the network takes 1"):
        Experiment(settings, synthetic_dataset(4, 2, 1, SceneConfig(size=64)), progress=False)
