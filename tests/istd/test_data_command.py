"""`istd data` says what was understood and what is doubtful; commands read sets as they say."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from istd.cli import main
from istd.data.doubts import doubts_of
from istd.data.layouts import SPLITS, Dataset, join, load_folder
from istd.data.normalisation import Normalisation
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.data.sensor import SensorRange
from istd.inference.export import load_student, save_student
from istd.metrics import evaluate_masks
from istd.runs.run import run, summary_table
from istd.students import create_student
from istd.training.presets import configure
from tests.istd.folders import SHAPE, centre, fill, image_of, mask_of, names, save, write_list

N = names()


@pytest.fixture
def folder(tmp_path):
    root = fill(tmp_path / "set", "images", "labels", "masks_centroid")
    for name, part in (("train", N[:3]), ("val", N[3:4]), ("test", N[4:])):
        write_list(root / "mode" / f"{name}.txt", part)
    return root


def test_data_says_what_was_understood_and_draws_it(folder, tmp_path, capsys):
    write_list(folder / "mode" / "test_hard.txt", N[5:])
    assert main(["data", str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr().out
    for line in (
        f"set: layout semantic-priors, digest {load_folder(folder).digest()}",
        "images: 6, all 32x24",
        "depth:  8-bit grey (6); range 0..255 of 8-bit frames",
        "masks:  6 with 6 targets (area 9..9 px, median 9), labels/, target where a value is above 0",
        "points: 6 in 6 images, masks_centroid/",
        "splits: train 3 (mode/train.txt), val 1 (mode/val.txt), test 2 (mode/test.txt)",
        "other lists: mode/test_hard.txt",
        "DOUBT:  none",
    ):
        assert line in said
    assert len(said.splitlines()) <= 12
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (206, 6 * 192, 3)
    assert (sheet == (255, 140, 0)).all(axis=2).sum() > 6 * 20  # a ring around every point
    assert (sheet == (0, 220, 90)).all(axis=2).sum() > 6 * 20  # a line around every target


def test_a_folder_that_cannot_be_read_is_named_with_its_fault(folder, capsys):
    save(folder / "labels" / "im2.png", 255 - mask_of(2))
    assert main(["data", str(folder)]) == 2
    assert (
        "im2.png is not a mask of small targets: 99 % of its pixels are not 0. Is it inverted?"
        in capsys.readouterr().err
    )


def test_masks_of_other_names_than_the_images_are_said(folder, capsys):
    for name in N:
        (folder / "labels" / f"{name}.png").rename(folder / "labels" / f"{name}_label.png")
    assert main(["data", str(folder)]) == 0
    assert "labels/ holds 6 pictures, but none is called as an image; first 'im0_label'." in capsys.readouterr().out


def invert(folder):
    for i, name in enumerate(N):
        save(folder / "images" / f"{name}.png", 255 - image_of(i))


def copy_into_test(folder):
    save(folder / "images" / "im5.png", image_of(0))


def no_lists(folder):
    for path in (folder / "mode").iterdir():
        path.unlink()


def marks_as_masks(folder):
    for name in N:
        (folder / "labels" / f"{name}.png").write_bytes((folder / "masks_centroid" / f"{name}.png").read_bytes())


def moved_points(folder):
    for i, name in enumerate(N[:2]):
        mark = np.zeros(SHAPE, np.uint8)
        mark[centre(i)[0], centre(i)[1] + 9] = 255
        save(folder / "masks_centroid" / f"{name}.png", mark)


def wide_targets(folder):
    for name in N:
        mask = np.zeros(SHAPE, np.uint8)
        mask[2:5, 2:20] = 255
        save(folder / "labels" / f"{name}.png", mask)


def flat(folder):
    save(folder / "images" / "im0.png", np.full(SHAPE, 77, np.uint8))


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (invert, "at 6 of 6 points the image is darker than around them: a black-hot sensor?"),
        (copy_into_test, "1 test images are training images under another name, first 'im5' = 'im0'"),
        (no_lists, "RANDOM SPLIT of set"),
        (marks_as_masks, "all 6 targets of the masks are single pixels"),
        (moved_points, "2 of 6 points lie on no target of the masks, and 2 of 6 targets hold no point"),
        (wide_targets, "6 of 6 targets are longer than 15 px (the longest: 18)"),
        (flat, "1 images hold a single value throughout, first 'im0'"),
    ],
)
def test_what_is_doubtful_is_said(folder, change, doubt):
    assert doubts_of(load_folder(folder)) == []
    change(folder)
    assert any(doubt in said for said in doubts_of(load_folder(folder)))


def test_inverted_images_are_those_of_a_black_hot_sensor(folder):
    before = load_folder(folder)
    invert(folder)
    after = load_folder(folder, sensor=SensorRange(polarity="black-hot"))
    assert all(np.allclose(a.image, b.image, atol=1e-6) for a, b in zip(before.samples, after.samples, strict=True))
    assert doubts_of(after) == []


def student(path, sensor=None):
    """A student whose probability is above the threshold where its input is above the mean of training."""
    torch_student = create_student("mlcl", 0.25)
    save_student(path, torch_student, "mlcl", 0.25, Normalisation(0.4, 0.2), sensor or SensorRange())
    return path


def test_the_sensor_rule_travels_with_the_student(tmp_path):
    rule = SensorRange(7000.0, 9550.5, polarity="black-hot")
    assert load_student(student(tmp_path / "s.safetensors", rule)).sensor == rule
    assert SensorRange.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule
    assert load_student(student(tmp_path / "t.safetensors")).sensor == SensorRange()


def test_detect_reads_images_by_the_rule_of_the_student(tmp_path, monkeypatch):
    frame = np.full((32, 40), 8000, np.uint16)
    frame[10:12, 20:22] = 9000
    save(tmp_path / "in" / "a,b.png", frame)
    rule = SensorRange(7000.0, 10000.0)
    seen = []

    class Watch:
        sensor = rule

        def __call__(self, image):
            seen.append(image)
            return image

    monkeypatch.setattr("istd.cli.common.load_student", lambda path, device: Watch())
    assert main(["detect", "s", "--images", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert np.allclose(seen[0], (frame - 7000.0) / 3000, atol=1e-6)
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {"image": "a,b", "x": "20.5", "y": "10.5", "area": "4", "probability": "0.667"}


@pytest.mark.parametrize("where", ["images", "labels", "masks_centroid"])
def test_inputs_are_never_overwritten(folder, where, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    calls = [["masks", "--data", str(folder)]]
    if where == "images":
        calls.append(["detect", str(student(tmp_path / "s.safetensors")), "--images", str(folder), "--threads", "1"])
    for call in calls:
        assert main([*call, "--out", str(folder / where), "--overwrite", "--quiet"]) == 2
        assert "im0.png would lie among the inputs; choose another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".txt"} == before
    for _ in range(2):
        assert main(["masks", "--data", str(folder), "--out", str(folder / "drawn"), "--overwrite", "--quiet"]) == 0


def test_evaluation_needs_no_points_and_tells_sets_apart(folder, tmp_path, capsys):
    other = fill(tmp_path / "other", "images", "masks", n=2)
    for path in (folder / "masks_centroid").iterdir():
        path.unlink()
    flags = ["--quiet", "--split", "all", "--json", str(tmp_path / "s.json"), "--threads", "1"]
    found = student(tmp_path / "student.safetensors")
    assert main(["evaluate", str(found), "--data", str(folder), str(other), *flags]) == 0
    said = capsys.readouterr().out
    assert "set+other, all: 8 images" in said
    assert "  set (6 images)" in said
    assert "  other (2 images)" in said
    content = json.loads((tmp_path / "s.json").read_text())
    assert set(content["sets"]) == {"set", "other"}
    assert content["provenance"][1]["test"] == "all images"


def test_training_prints_which_lists_it_used(folder, tmp_path, capsys, monkeypatch):
    seen = {}

    def stop(config, dataset, *rest, **named):
        seen["data"] = dataset
        raise ValueError("enough")

    monkeypatch.setattr("istd.cli.train.run", stop)
    flags = ["train", "--data", str(folder), "--out", str(tmp_path / "r"), "--preset", "smoke", "--quiet"]
    assert main([*flags, "--range", "0", "250"]) == 2
    assert "train mode/train.txt; val mode/val.txt; test mode/test.txt" in capsys.readouterr().out
    assert seen["data"].sensor == SensorRange(0.0, 250.0)
    no_lists(folder)
    assert main([*flags, "--overwrite"]) == 2
    assert "RANDOM SPLIT (60, 20 and 20 % of 6 images, drawn with seed 0)" in capsys.readouterr().out
    assert main([*flags, "--overwrite", "--range", "5", "5"]) == 2
    assert "must rise from LOW to HIGH, got 5 to 5" in capsys.readouterr().err


def test_a_run_on_several_sets_reports_each_by_itself(tmp_path):
    parts = [synthetic_dataset(6, 2, 2, SceneConfig(size=64), seed) for seed in (1, 2)]
    named = []
    for name, part in zip("ab", parts, strict=True):
        splits = (tuple(replace(s, set_name=name) for s in getattr(part, split)) for split in SPLITS)
        named.append(Dataset(name, *splits))
    config = configure("smoke", "plain", student="mlcl", width=0.25, crop=32, epochs=1)
    metrics = run(config, join(named), tmp_path, progress=False)
    assert metrics["dataset"] == "a+b"
    assert list(metrics["student_by_set"]) == ["a", "b"]
    predictor = load_student(tmp_path)
    for part in named:
        pairs = [(predictor(s.image) > 0.5, s.truth()) for s in part.test]
        assert metrics["student_by_set"][part.name] == pytest.approx(evaluate_masks(pairs))
    assert "\n  a by itself" in summary_table(metrics)
