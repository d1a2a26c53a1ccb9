"""What is trained is what is deployed: one padding, one file, whose every bit counts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from istd.batchnorm import accept_single_values, layers_with_single_values
from istd.cli import main
from istd.data.normalisation import Normalisation
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.inference.export import content_digest, load_student, save_student
from istd.inference.padding import pad_to_multiple, stride_of
from istd.metrics.holistic import DISTANCES, HolisticScore, _matched_gaps
from istd.students import create_student

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six images of odd sizes, which every rule of padding treats otherwise."""
    root = tmp_path_factory.mktemp("data")
    scenes = synthetic_dataset(6, 1, 1, SceneConfig(size=64)).train
    for name in ("images", "masks", "masks_centroid", "mode"):
        (root / name).mkdir()
    for i, s in enumerate(scenes):
        h, w = 43 + 3 * i, 50 + i
        points = np.zeros(s.image.shape, bool)
        points[tuple(s.points.T)] = True
        for where, picture in (("images", s.image), ("masks", s.truth()), ("masks_centroid", points)):
            content = np.round(255 * picture.astype(np.float64)).astype(np.uint8)[-h:, -w:]
            Image.fromarray(content).save(root / where / f"s{i}.png")
    for split, names in (("train", "s0 s1 s2"), ("val", "s3"), ("test", "s4 s5")):
        (root / "mode" / f"{split}.txt").write_text("\n".join(names.split()))
    return root


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "x"
    flags = "--method plain --preset smoke --student acm --width 0.25 --crop 32 --batch-size 2 --epochs 2 --threads 1"
    assert main(["train", "--data", str(folder), "--out", str(out), "--quiet", *flags.split()]) == 0
    return out


def test_the_table_of_a_run_is_what_evaluate_says_of_its_student_to_the_last_digit(trained, folder, tmp_path):
    metrics = json.loads((trained / "metrics.json").read_text())
    flags = ["--data", str(folder), "--threads", "1", "--quiet", "--json", str(tmp_path / "s.json")]
    assert main(["evaluate", str(trained), *flags]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert metrics["student"] == {key: found[key] for key in metrics["student"]}
    assert metrics["student_by_kind"] == (found["kinds"] or None)


def test_a_run_too_short_to_find_anything_says_so(trained, capsys):
    notes = json.loads((trained / "metrics.json").read_text())["notes"]
    assert any("THE STUDENT FINDS NOTHING: no pixel of a scored image is above 1/2 after 2" in note for note in notes)


def test_a_finished_run_is_resumed_by_its_folder_alone(trained, capsys):
    before = json.loads((trained / "metrics.json").read_text())
    assert main(["train", "--resume", "--out", str(trained), "--quiet"]) == 0
    after = json.loads((trained / "metrics.json").read_text())
    assert {**after, "seconds": 0, "digest": 0} == {**before, "seconds": 0, "digest": 0}
    for flags, message in (
        (["--epochs", "4"], "planned for 2 epochs and cannot be given 4: its learning rate has followed a cosine"),
        (["--lr", "0.5"], "optimisation.lr=0.004, this run has optimisation.lr=0.5"),
        (["--threads", "2"], "threads=1, this run has threads=2"),
        (["--points", "coarse"], "was made with points="),
    ):
        assert main(["train", "--resume", "--out", str(trained), "--quiet", *flags]) == 2
        assert message in capsys.readouterr().err


def test_padding_is_the_least_that_fits_and_mirrors():
    student = create_student("acm", 0.25)
    assert stride_of(student) == max(stage.stride for stage in student.stages)
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    padded = pad_to_multiple(x, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert torch.equal(padded[0, 0, 3], x[0, 0, 1])
    assert pad_to_multiple(padded, 4) is padded


@pytest.fixture
def student(tmp_path):
    path = tmp_path / "student.safetensors"
    save_student(path, create_student("acm", 0.25), "acm", 0.25, Normalisation(0.4, 0.2), method="plain")
    return path


def rewritten(path, change):
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["istd"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    change(about, tensors)
    save_file(tensors, path, {"istd": json.dumps(about)})


def test_every_flipped_bit_of_a_student_is_noticed(student):
    content = student.read_bytes()
    load_student(student)
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 40).tolist():
        broken = bytearray(content)
        broken[place] ^= 1 << int(rng.integers(8))
        student.write_bytes(broken)
        with pytest.raises(ValueError, match=r"student\.safetensors"):
            load_student(student)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about, tensors: about.update(std=0.0), "`std` must be a finite number greater than 0, got 0.0"),
        (lambda about, tensors: about.update(mean="x"), "`mean` must be a number, got 'x'"),
        (lambda about, tensors: about.update(width=True), "`width` must be a number"),
        (lambda about, tensors: about.update(student="vgg"), "Unknown student 'vgg'"),
        (lambda about, tensors: about.pop("per_image"), "KeyError"),
        (lambda about, tensors: next(iter(tensors.values())).fill_(float("nan")), "not finite in"),
    ],
)
def test_a_student_that_cannot_work_is_refused_even_with_a_good_digest(student, change, message):
    def sealed(about, tensors):
        change(about, tensors)
        about["digest"] = content_digest(tensors, about)

    rewritten(student, sealed)
    with pytest.raises(ValueError, match=message):
        load_student(student)


def test_a_student_without_a_digest_still_loads_with_a_note(student):
    rewritten(student, lambda about, tensors: about.pop("digest"))
    with pytest.warns(UserWarning, match="before students had a digest"):
        load_student(student)


def test_images_outside_the_unit_range_are_refused(student):
    predictor = load_student(student)
    image = np.full((20, 30), 0.5, np.float32)
    assert predictor(image).shape == image.shape
    for wrong, kind, message in (
        ((255 * image).astype(np.uint8), TypeError, "got uint8; divide 8-bit images by 255"),
        (image.tolist(), TypeError, "got list"),
        (image * 255, ValueError, "got values from 127.5 to 127.5"),
        (image * np.nan, ValueError, "got values from nan"),
        (image[None], ValueError, "must be"),
    ):
        with pytest.raises(kind, match=message):
            predictor(wrong)


def test_detection_skips_what_it_cannot_read_and_says_so(student, folder, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for path in (folder / "images").iterdir():
        content = path.read_bytes()
        (images / path.name).write_bytes(content[: len(content) // 2] if path.stem == "s2" else content)
    assert main(["detect", str(student), "--images", str(images), "--out", str(tmp_path / "o"), "--quiet"]) == 3
    captured = capsys.readouterr()
    assert "1 of 6 files were skipped" in captured.err
    assert "s2.png" in captured.err
    assert "in 5 images" in captured.out
    assert {p.name for p in (tmp_path / "o").iterdir()} == {
        "detections.csv", "overview.jpg", *(f"s{i}.png" for i in (0, 1, 3, 4, 5))
    }  # fmt: skip


@pytest.mark.parametrize("device", ["mps", "foo", "cuda:x", "cpu:1", "", "cuda:-1"])
def test_unknown_devices_are_refused(device, student, folder, capsys):
    assert main(["evaluate", str(student), "--data", str(folder), "--device", device]) == 2
    assert "`--device` must be auto, cpu, cuda or cuda:N" in capsys.readouterr().err


def test_batch_norm_takes_a_single_value_by_its_running_statistics():
    torch.manual_seed(0)
    layer, plain = nn.Sequential(nn.BatchNorm2d(3)), nn.BatchNorm2d(3)
    accept_single_values(layer)
    assert layer.state_dict().keys() == {f"0.{key}" for key in plain.state_dict()}
    batch, single = torch.randn(4, 3, 2, 2), torch.randn(1, 3, 1, 1)
    assert torch.equal(layer(batch), plain(batch))
    assert layers_with_single_values(layer) == 0
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        plain(single)
    expected = plain.eval()(single)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    assert torch.equal(layer(single), expected)
    assert layers_with_single_values(layer) == 1
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_matches_are_those_of_all_pairs_and_of_many_components():
    """Against the greedy match over the whole matrix of distances, and on 6,000 components, which took 12 s."""
    rng = np.random.default_rng(0)
    for n, m in ((40, 7), (3, 60), (1, 1)):
        found, wanted = rng.uniform(0, 40, (n, 2)), rng.uniform(0, 40, (m, 2))
        gaps = np.linalg.norm(found[:, None] - wanted[None], axis=-1)
        expected = []
        while np.isfinite(gaps).any():
            i, j = np.unravel_index(np.argmin(gaps), gaps.shape)
            expected.append(gaps[i, j])
            gaps[i], gaps[:, j] = np.inf, np.inf
        for reach in (1.0, 5.0, 100.0):
            assert _matched_gaps(found, wanted, reach).tolist() == [g for g in expected if g < reach]
    assert _matched_gaps(np.zeros((0, 2)), wanted, 5.0).size == 0
    grid = np.zeros((320, 320), dtype=np.float32)
    grid[::4, ::4] = 0.99
    score = HolisticScore((0.5,), DISTANCES)
    score.update(grid, grid > 0.5)
    assert score.compute()["targets"] == 1.0
