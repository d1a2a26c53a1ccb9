"""Our networks are the published ones: every value of their reference files, in float64."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from istd.students import STUDENTS, create_student
from istd.students.published import create_on_meta
from tests.istd import references

pytestmark = pytest.mark.slow

# Where a published module's output is found in our network: a module's path, the number of an encoder output, or, in
# parentheses, why it has no counterpart.
ACM = {"stem": "stem", "layer1": 0, "layer2": 1, "layer3": 2, "fuse2": "decoder.0.fuse", "uplayer1": "decoder.1.refine"}
ALCNET = {"stem": "stem", "layer1": 0, "layer2": 1, "layer3": 2, "fuse23": "fuse.0", "deconv0": "up.2"}
UIU = {"stage1": 0, "stage2": 1, "stage4": 3, "stage6": 5, "stage4d": "decoder.1", "stage1d": "decoder.4"}
STAGES: dict[str, dict[str, str | int]] = {
    "acm": ACM,
    "acm-lesps": ACM,
    "agpc": {
        "backbone.layer1": "encoder.0",
        "backbone.layer2": 0,
        "backbone.layer3": 1,
        "context": "context",
        "fuse12": "fuse.1",
    },
    "alcl": {
        "stage.resnet1_3": 0,
        "stage.resnet2_3": 1,
        "stage.resnet3_3": 2,
        "stage.resnet5_3": 4,
        "lcl5": "contrast.0",
        "sbam3": "top_down.1",
    },
    "alcnet": ALCNET,
    "alcnet-lesps": ALCNET,
    "dna": {"conv0_0": 0, "conv1_0": 1, "conv2_0": 2, "conv4_0": 4, "conv1_3": "nodes.1_3", "conv0_4_final": "fuse"},
    "ggl": {
        "stage.layer1": "stem",
        "stage.Res1": 0,
        "stage.Res2": 1,
        "stage.Res3": 2,
        "stage.Res5": 4,
        "sbam3": "top_down.1",
    },
    "gsfa": {
        "conv_init": "stem",
        "encoder_0": 0,
        "encoder_1": 1,
        "middle_layer": 3,
        "pool1": "pool.0",
        "mla.reconstruct_1": "attention.rebuild.0",
        "decoder_2": "decoder.0",
        "decoder_1": "decoder.1",
    },
    "isnet": {
        "layer1": 1,
        "layer2": 2,
        "layer3": 3,
        "TTOA_low": "fuse.0",
        "uplayer1": "decoder.1.1",
        "myb1": "edge.0",
    },
    "mlcl": {"stage.resnet1_3": 0, "stage.resnet2_3": 1, "stage.resnet3_3": 2, "mlcl3": "contrast.0"},
    "msda": {
        "stage.layer1": "encoder.0.enter.0",
        "stage.resnet1_2": "encoder.0.blocks.0",
        "stage.resnet2_3": 1,
        "stage.resnet5_3": "encoder.4.blocks.1",
        "mlcl3": "lateral.2",
        "sbam3": "up.1",
    },
    "msh": {
        "conv_init": "stem",
        "encoder_0": 0,
        "encoder_1": 1,
        "encoder_2": 2,
        "middle_layer": 4,
        "decoder_1": "decoder.2",
    },
    "repisd": {"backbone.inc": 0, "backbone.down1": 1, "backbone.down2": 2, "backbone.up4": "up.1", "ppm": "pyramid"},
    "sctrans": {
        "inc": 0,
        "down_encoder1": 1,
        "down_encoder4": 4,
        "mtc.embeddings_1": "embed.0",
        "mtc.encoder.layer.0.channel_attn.project_out1": "blocks.0.attention.project.0",
        "mtc.encoder.encoder_norm4": "norm.3",
        "mtc.reconstruct_2": "restore.1",
        "up_decoder3": "decoder.1",
    },
    "sfdt": {
        "down_encoder1": 0,
        "down_encoder2": 1,
        "down_encoder4": 3,
        "mid_layer": 4,
        "decoder4": "decoder.0",
        "fuse2": "fuse.2",
    },
    "uiu": UIU,
    "uiu-bn": UIU,
}

# Where a published map is found in our network: the number of one of `decode_all`, or a module's path. A single map
# is `decode_all`'s.
MAPS: dict[str, dict[str, str | int]] = {
    "dna": {"final1": 1, "final2": 2, "final3": 3, "final4": 0},
    "gsfa": {"output": 0, "mask0": 1, "mask1": 2, "mask2": 3},
    "isnet": {"out": 0, "edge": 1},
    "msh": {"output": 0, "mask0": 1, "mask1": 2, "mask2": 3, "mask3": 4},
    "repisd": {"two probabilities after a sigmoid": "head"},
    "sctrans": {"gt5": 1, "gt4": 2, "gt3": 3, "gt2": 4, "d0": 5, "out": 0},
    "sfdt": {"out": 0, "gt_4": 1, "gt_3": 2, "gt_2": 3, "gt_1": 4, "output": 5},
    "uiu": {f"d{i}": i for i in range(7)},
    "uiu-bn": {f"d{i}": i for i in range(7)},
}

# Values are written with twelve digits; two orders of summation in float64 differ by about 1e-13.
CLOSE = {"rtol": 1e-11, "atol": 1e-9}

NAMES = sorted(
    {p.stem for folder in (references.FULL, references.COMMITTED) if folder.is_dir() for p in folder.glob("*.json")}
)


def grid(x: Tensor) -> np.ndarray:
    """Of maps `(..., H, W)` the pixels in rows `(2k + 1) H // 16` and columns `(2k + 1) W // 16`, k = 0..7."""
    rows, columns = ((2 * torch.arange(8) + 1) * n // 16 for n in x.shape[-2:])
    return x[..., rows[:, None], columns].numpy()


def statistics(x: Tensor) -> list[float]:
    """Mean, standard deviation of the population, and extremes."""
    return [float(v) for v in (x.mean(), x.std(correction=0), x.min(), x.max())]


class Recorder:
    """The outputs of named modules and of the encoder, as one pass produces them."""

    def __init__(self, student: nn.Module) -> None:
        self.seen: dict[str, Tensor] = {}
        for name, module in student.named_modules():
            # A copy, since an in-place activation may overwrite the output.
            module.register_forward_hook(lambda m, args, out, name=name: self.keep(name, out))

    def keep(self, name: str, out: object) -> None:
        if isinstance(out, Tensor):
            self.seen[name] = out.detach().clone()


def check_mode(name: str, mode: str) -> None:
    reference = references.load(name)
    student = create_student(name).double()
    references.fill(student, reference)
    student.train(mode == "train")
    for module in student.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    recorder, expected = Recorder(student), reference[mode]
    with torch.no_grad():
        features = student.encode(references.image(*reference["input"]))
        copies = [f.clone() for f in features]
        maps = student.decode_all(features)
    assert len(maps) == len(student.outputs)
    height = reference["input"][2]
    assert [(f.shape[1], height // f.shape[2]) for f in copies] == [tuple(stage) for stage in student.stages]

    for stage in expected["stages"]:
        place = STAGES[name][stage["module"]]
        if isinstance(place, str) and place.startswith("("):
            continue
        found = copies[place] if isinstance(place, int) else recorder.seen[place]
        message = f"{name} {mode}: {stage['module']} (our {place})"
        assert list(found.shape) == stage["shape"], message
        at = torch.arange(1, 5) * found.numel() // 5
        flat = found.reshape(-1)
        assert np.allclose(statistics(found)[:2], [stage["mean"], stage["std"]], **CLOSE), message
        assert np.allclose(flat[at].numpy(), stage["values"], **CLOSE), message

    for published in expected["outputs"]:
        label = published["name"].replace(" (test output)", "")
        base = label.split(",")[0].split(";")[0]
        place = MAPS.get(name, {}).get(base, 0)
        found = maps[place] if isinstance(place, int) else recorder.seen[place]
        if "sigmoid" in label or "sigmoid" in reference["test_output"]:  # the latter: all maps of that network
            found = found.sigmoid()
        message = f"{name} {mode}: {published['name']} (our {place})"
        assert list(found.shape) == published["shape"], message
        for i, values in enumerate(published.get("grid", [])):
            values = np.asarray(values)
            assert np.allclose(grid(found[i]).reshape(values.shape), values, **CLOSE), f"{message}, image {i}"
        assert np.allclose(statistics(found), [published[k] for k in ("mean", "std", "min", "max")], **CLOSE), message

    if mode == "train":
        buffers = dict(student.named_buffers())
        for kind in ("running_mean", "running_var"):
            total = sum(float(b.sum()) for k, b in buffers.items() if k.endswith(kind))
            assert np.isclose(total, expected[f"{kind}_sum_after"], **CLOSE), f"{name}: sum of {kind}"


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", references.by_cost(NAMES))
def test_reference_values_are_met(name, mode):
    """All maps, all stages, and the statistics after one pass in training mode."""
    check_mode(name, mode)


@pytest.mark.parametrize("name", NAMES)
def test_reference_sizes_are_the_published_ones(name):
    reference = references.load(name)
    ours = sum(p.numel() for p in create_on_meta(name).parameters())
    assert ours + reference["left_out_parameters"] == reference["parameters"] == STUDENTS[name].published_parameters
    assert create_on_meta(name).in_channels == reference["input"][1]


@pytest.mark.parametrize("name", NAMES)
def test_reference_extracts_are_those_of_the_full_files(name):
    full = references.FULL / f"{name}.json"
    if not full.is_file():
        pytest.skip(f"the full reference files are not at ../shared/facts/students ({full.parent})")
    committed = json.loads((references.COMMITTED / f"{name}.json").read_text())
    assert committed == references.as_committed(json.loads(full.read_text()))
