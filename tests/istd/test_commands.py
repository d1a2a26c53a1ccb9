"""The subcommands as a user types them, and the flags that come from the dataclass."""

import csv
import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits

from bilevel import TrainingDiverged
from istd.cli import main
from istd.cli.ablate import QUESTIONS, ROWS, THIN, rows_of, thinned
from istd.cli.flags import CHOSEN, COMMON
from istd.cli.main import parse
from istd.data.layouts import load_samples
from istd.data.normalisation import Normalisation
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.data.sensor import SensorRange
from istd.inference.export import save_student
from istd.methods import METHODS
from istd.metrics import OperatingCurve, evaluate_masks
from istd.regions import find_regions
from istd.runs.grid import run_grid
from istd.schema import settings_of
from istd.students import STUDENTS, create_student
from istd.threads import use_threads
from istd.training.experiment import Experiment
from istd.training.presets import alike, configure
from tests.istd.tiny import of_command

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", list(METHODS))
def test_every_setting_has_a_flag_with_help(method, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--method", method, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for path in settings_of(METHODS[method].settings):
        group, _, last = path.rpartition(".")
        flag = f"--{last}" if group in COMMON else f"--{path}"
        assert path in CHOSEN or flag.replace("_", "-") in shown, path
    assert "--preset" in shown


def test_flags_reach_their_settings():
    flags = "--lr 0.5 --clusters.count 7 --no-cosine --outer.hypergradient rank-one-published --evolution.cap inf"
    changes = {"lr": 0.5, "clusters.count": 7, "cosine": False, "evolution.cap": math.inf}
    changes["outer.hypergradient"] = "rank-one-published"
    assert of_command(*flags.split()) == configure("smoke", None, changes)
    assert of_command("--vfm.weights", "x.pth").vfm.random is False  # naming weights asks for trained ones
    assert of_command("--vfm.weights", "None", "--clusters.count", "None").clusters.count is None


def test_flags_of_earlier_releases_are_understood_with_a_note(capsys):
    old = of_command("--evolve-every", "3", "--vfm-random", "--averaging", "0.5", "--no-evolve-relative")
    assert (old.updates.every, old.vfm.random, old.optimisation.ema_decay) == (3, True, 0.5)
    assert old.evolution.relative is False
    notes = capsys.readouterr().err
    assert "note: --evolve-every is called --updates.every now" in notes
    assert "note: --averaging is called --ema-decay now" in notes
    assert "note: --no-evolve-relative is called --evolution.no-relative now" in notes


def test_flags_override_a_file_which_overrides_the_preset(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"preset": "cpu", "lr": 0.25, "epochs": 9}))
    found = of_command("--config", str(tmp_path / "c.json"), "--epochs", "3")
    assert found == configure("cpu", None, epochs=3, lr=0.25)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.yaml", "method: pal\noptimisation:\n  lr: 1e-3\nevolution:\n  cap: .inf\n"),
        ("c.toml", 'method = "pal"\noptimisation.lr = 1e-3\n[evolution]\ncap = inf\n'),
        ("c.json", '{"method": "pal", "optimisation": {"lr": 1e-3}, "evolution": {"cap": "inf"}}'),
        ("old.json", '{"method": "pal", "lr": 1e-3, "evolve_cap": "inf", "vfm_size": 32}'),
    ],
)
def test_files_of_every_form_say_the_same(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    assert of_command("--config", str(tmp_path / name)) == configure("smoke", "pal", lr=1e-3)


def test_a_setting_of_another_method_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--method", "plain", "--updates.every", "3"])
    assert "Unrecognized options: --updates.every" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--epoch", "3"])
    assert "--epochs INT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", "x", "--data", "y", "--treshold", "0.5"])
    assert "did you mean --threshold?" in capsys.readouterr().err


def test_a_named_vfm_is_meant_to_be_trained():
    assert of_command().vfm.random
    assert not of_command("--vfm.name", "vit_tiny_patch16_224").vfm.random
    assert of_command("--vfm.name", "vit_tiny_patch16_224", "--vfm.random").vfm.random


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "must hold an object"),
    ],
)
def test_bad_config_files_are_named(content, message, tmp_path, capsys):
    (tmp_path / "c.json").write_text(content)
    assert main(["train", "--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "r")]) == 2
    assert message in capsys.readouterr().err
    assert main(["train", "--config", "nowhere.json", "--out", str(tmp_path / "r")]) == 2
    assert "not a file" in capsys.readouterr().err


@pytest.fixture
def folder(tmp_path):
    """Three images with points and masks, without split files."""
    data = synthetic_dataset(3, 1, 1, seed=5).train
    for name in ("images", "labels", "masks_centroid"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for s in data:
        save = {"images": s.image, "labels": s.truth(), "masks_centroid": np.zeros(s.image.shape, dtype=bool)}
        save["masks_centroid"][tuple(s.points.T)] = True
        for where, picture in save.items():
            content = np.round(255 * picture.astype(np.float64)).astype(np.uint8)
            Image.fromarray(content).save(tmp_path / "data" / where / f"{s.name}.png")
    return tmp_path / "data"


def test_masks_are_drawn_for_every_image_and_scored_where_the_truth_is_known(folder, tmp_path, capsys):
    assert main(["masks", "--data", str(folder), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "3 masks of" in printed
    assert "against the true masks of 3 images" in printed
    for sample in load_samples(folder):
        mask = np.asarray(Image.open(tmp_path / "out" / f"{sample.name}.png"))
        assert mask.shape == sample.image.shape
        assert set(np.unique(mask)) <= {0, 255}
        assert mask[tuple(sample.points[0])] == 255
    assert (tmp_path / "out" / "doubtful.csv").read_text().startswith("image,x,y")
    assert (tmp_path / "out" / "overview.jpg").stat().st_size > 5000


def test_masks_need_points_not_truth(folder, tmp_path, capsys):
    for path in (folder / "labels").iterdir():
        path.unlink()
    (folder / "labels").rmdir()
    assert main(["masks", "--data", str(folder), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "against" not in capsys.readouterr().out
    for path in (folder / "masks_centroid").iterdir():
        path.unlink()
    assert main(["masks", "--data", str(folder), "--out", str(tmp_path / "o2"), "--quiet"]) == 2
    assert "has no point label file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["masks", "detect"])
def test_no_picture_is_overwritten_unasked(command, folder, tmp_path, capsys):
    student = tmp_path / "student.safetensors"
    save_student(student, create_student("mlcl", 0.25), "mlcl", 0.25, Normalisation(0.4, 0.2))
    before = {path: path.read_bytes() for path in (folder / "images").iterdir()}
    given = ["--data", str(folder)] if command == "masks" else [str(student), "--images", str(folder)]
    flags = [command, *given, "--quiet", "--out", str(folder / "images")]
    assert main(flags) == 2
    assert "would lie among the inputs; choose another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / "images").iterdir()} == before
    flags[-1] = str(tmp_path / "new")
    assert [main(flags), main(flags), main([*flags, "--overwrite"])] == [0, 2, 0]
    assert "is there already; choose another --out" in capsys.readouterr().err


def test_detections_are_the_components_of_the_masks_that_are_written(folder, tmp_path, capsys, monkeypatch):
    class Echo:
        sensor = SensorRange()

        def __call__(self, image):
            return image

    monkeypatch.setattr("istd.cli.common.load_student", lambda path, device: Echo())
    flags = ["detect", "any", "--images", str(folder), "--out", str(tmp_path / "out"), "--quiet", "--threshold", "0.7"]
    assert main(flags) == 0
    samples = load_samples(folder)
    expected = []
    for sample in samples:
        mask = np.asarray(Image.open(tmp_path / "out" / f"{sample.name}.png"))
        assert np.array_equal(mask == 255, sample.image > 0.7)
        regions = find_regions(mask)
        peaks = [sample.image[regions.mask(i)].max() for i in range(len(regions))]
        rows = [(c[1], c[0], a, p) for c, a, p in zip(regions.centroids, regions.areas, peaks, strict=True)]
        expected += [(sample.name, *row) for row in sorted(rows, key=lambda row: -row[3])]
    with (tmp_path / "out" / "detections.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["image"] for row in found] == [name for name, *_ in expected]
    for row, (_, x, y, area, peak) in zip(found, expected, strict=True):
        assert (float(row["x"]), float(row["y"])) == pytest.approx((x, y), abs=0.051)
        assert (int(row["area"]), float(row["probability"])) == (area, pytest.approx(peak, abs=5.1e-4))
    assert f"{len(expected)} detections in {len(samples)} images" in capsys.readouterr().out
    assert (tmp_path / "out" / "overview.jpg").stat().st_size > 5000


def test_detection_needs_images_and_a_threshold(folder, tmp_path, capsys):
    student = tmp_path / "student.safetensors"
    save_student(student, create_student("mlcl", 0.25), "mlcl", 0.25, Normalisation(0.4, 0.2))
    flags = ["detect", str(student), "--out", str(tmp_path / "out"), "--quiet", "--images"]
    (tmp_path / "empty").mkdir()
    for images, message in ((tmp_path / "empty", "has no image"), (tmp_path / "none", "is not a folder")):
        assert main([*flags, str(images)]) == 2
        assert message in capsys.readouterr().err
    assert main([*flags, str(folder), "--threshold", "1"]) == 2
    assert "must lie in (0, 1), got 1.0" in capsys.readouterr().err
    assert main([*flags, str(folder / "images")]) == 0  # an untrained student finds nothing, which is no error
    assert "0 detections in 3 images" in capsys.readouterr().out
    assert (tmp_path / "out" / "detections.csv").read_text() == "image,x,y,area,probability\n"


def test_an_interrupted_command_says_what_it_leaves(folder, tmp_path, capsys, monkeypatch):
    def interrupt(path, mask):
        raise KeyboardInterrupt

    monkeypatch.setattr("istd.cli.masks.write_mask", interrupt)
    assert main(["masks", "--data", str(folder), "--out", str(tmp_path / "out"), "--quiet"]) == 130
    assert f"the masks written so far are in {tmp_path / 'out'}" in capsys.readouterr().err


def test_a_student_is_scored_over_all_thresholds(folder, tmp_path, capsys):
    (folder / "mode").mkdir()
    names = [s.name for s in load_samples(folder)]
    for split, name in zip(("train", "val", "test"), names, strict=True):
        (folder / "mode" / f"{split}.txt").write_text(name + "\n")
    student = tmp_path / "student.safetensors"
    save_student(student, create_student("mlcl", 0.25), "mlcl", 0.25, Normalisation(0.4, 0.2))
    flags = ["--data", str(folder), "--quiet", "--json", str(tmp_path / "s.json"), "--curve", str(tmp_path / "c.png")]
    assert main(["evaluate", str(tmp_path), *flags]) == 0  # a folder with student.safetensors
    assert "1 images" in capsys.readouterr().out
    found = json.loads((tmp_path / "s.json").read_text())
    assert 0 <= found["IoU"] <= 1
    assert len(found["curve"]) == 19
    assert (tmp_path / "c.png").stat().st_size > 5000
    assert main(["evaluate", str(student), "--data", str(folder), "--threshold", "1"]) == 2
    assert "must lie in (0, 1)" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "none"), "--data", str(folder)]) == 2
    assert "no student at" in capsys.readouterr().err


def test_the_curve_agrees_with_single_thresholds():
    rng = np.random.default_rng(0)
    images = [(rng.random((40, 40), dtype=np.float32) ** 2, rng.random((40, 40)) > 0.98) for _ in range(3)]
    curve = OperatingCurve((0.2, 0.6))
    for p, truth in images:
        curve.update(p, truth)
    for point in curve.compute():
        masks = [(p > point["threshold"], truth) for p, truth in images]
        single = evaluate_masks(masks)
        assert (point["Pd"], point["Fa"]) == (single["Pd"], single["Fa"])
        hits = sum((m & t).sum() for m, t in masks)
        assert point["TPR"] == hits / sum(t.sum() for _, t in masks)
        assert point["FPR"] == (sum(m.sum() for m, _ in masks) - hits) / sum((~t).sum() for _, t in masks)
    with pytest.raises(ValueError, match="must rise inside"):
        OperatingCurve((0.5, 0.2))


def test_lists_are_readable_by_people_and_programs(capsys):
    assert main(["list", "methods"]) == 0
    assert "semantic-priors" in capsys.readouterr().out
    assert main(["list", "students", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == list(STUDENTS)
    for row in rows:
        assert row["parameters"] == sum(p.numel() for p in create_student(row["name"]).parameters())
        assert row["GFLOPs"] > 0.1
        assert all(len(stage) == 2 for stage in row["stages"])
    assert main(["list", "vfms"]) == 0
    assert "vit_small_plus_patch16_dinov3" in capsys.readouterr().out


def test_no_command_prints_the_choices(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "train a student from points" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "invalid choice: 'trian'" in capsys.readouterr().err


ABLATION = ["ablate", "--preset", "smoke", "--student", "mlcl", "--width", "0.25", "--crop", "32", "--epochs", "2"]
ABLATION += ["--outer.every", "1", "--outer.steps", "1", "--evaluate-every", "1", "--updates.every", "1"]
ABLATION += ["--vfm.size", "32", "--threads", "1", "--quiet"]


def test_an_ablation_is_one_table_and_resumes_cell_by_cell(tmp_path, capsys, monkeypatch):
    data = synthetic_dataset(8, 4, 3, SceneConfig(size=64))
    monkeypatch.setattr("istd.cli.ablate.dataset_of", lambda args: data)
    flags = [*ABLATION, "--method", "no-vfm", "--out", str(tmp_path), "--seeds", "0", "1", "--rows", "plain"]
    assert main(flags) == 0
    first = capsys.readouterr().out
    assert first.count("seed") >= 4
    assert "| no-vfm | 2 |" in first
    assert "istd ablate --data DIR --preset smoke --method no-vfm --student mlcl" in first
    assert "--seeds 0 1 --rows plain`" in first
    assert (tmp_path / "ablation.png").stat().st_size > 5000
    found = json.loads((tmp_path / "ablation.json").read_text())
    assert list(found) == ["no-vfm", "plain"]
    assert [r["seed"] for r in found["plain"]] == [0, 1]
    (tmp_path / "plain" / "seed1" / "metrics.json").unlink()  # as if stopped before its end
    assert main(flags) == 0
    again = capsys.readouterr().out
    assert again.count("plain, seed 1") == 1
    assert "plain, seed 0:" not in again
    second = json.loads((tmp_path / "ablation.json").read_text())
    assert second["plain"][1]["student"] == found["plain"][1]["student"]
    assert main([*flags, "--epochs", "1"]) == 0  # another configuration: every cell is made anew
    assert "plain, seed 0:" in capsys.readouterr().out


def test_threads_are_those_of_every_library_and_at_least_one():
    before = torch.get_num_threads()
    with threadpool_limits():  # puts the pools back
        use_threads(1)
        assert {pool["num_threads"] for pool in threadpool_info()} == {torch.get_num_threads()} == {1}
    torch.set_num_threads(before)
    with pytest.raises(ValueError, match="`threads` must be at least 1, got 0"):
        use_threads(0)


def test_cells_side_by_side_are_those_one_after_the_other(tmp_path):
    data = synthetic_dataset(4, 2, 1, SceneConfig(size=64))
    config = configure("smoke", "plain", student="mlcl", width=0.25, crop=32, epochs=1, evaluate_every=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = run_grid({"plain": config}, [0, 1], data, tmp_path / "one", progress=False)
    both = run_grid({"plain": config}, [0, 1], data, tmp_path / "both", progress=False, jobs=2)
    torch.set_num_threads(threads)
    for a, b in zip(one["plain"], both["plain"], strict=True):
        assert a["student"] == b["student"]
    assert [r["seed"] for r in both["plain"]] == [0, 1]
    with pytest.raises(ValueError, match="`jobs`"):
        run_grid({"plain": config}, [0], data, tmp_path / "none", jobs=0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_diverges_does_not_stop_the_others(tmp_path, jobs):
    data = synthetic_dataset(4, 2, 1, SceneConfig(size=64))
    config = configure("smoke", "plain", student="mlcl", width=0.25, crop=32, epochs=2, evaluate_every=1)
    rows = {"wild": config.changed(lr=1e30), "plain": config}
    with pytest.raises(TrainingDiverged, match=r"1 of 2 runs diverged(.|\n)*wild, seed 0: .* (not finite|is nan)"):
        run_grid(rows, [0], data, tmp_path, progress=False, jobs=jobs)
    assert (tmp_path / "plain" / "seed0" / "metrics.json").is_file()
    assert not (tmp_path / "wild" / "seed0" / "metrics.json").exists()


def test_an_ablation_of_the_cpu_preset_is_thin_unless_told_otherwise(tmp_path):
    (tmp_path / "c.json").write_text('{"schedule": {"evaluate_every": 7}}')
    flags = ["ablate", "--preset", "cpu", "--config", str(tmp_path / "c.json"), "--epochs", "50"]
    found = thinned(parse(flags))
    assert (found.schedule.epochs, found.schedule.evaluate_every) == (50, 7)
    whole = configure("cpu")
    assert found.updates.every == round(50 * whole.updates.every / whole.schedule.epochs)
    assert thinned(parse(["ablate", "--preset", "cpu"])) == configure("cpu", epochs=THIN)
    assert thinned(parse(["ablate", "--preset", "paper"])) == configure("paper")
    with pytest.raises(ValueError, match="must be semantic-priors or a part of it, got 'pal'"):
        thinned(parse(["ablate", "--method", "pal"]))


def test_an_ablation_of_the_cpu_preset_asks_the_first_questions(tmp_path, monkeypatch, capsys):
    asked = []

    def note_rows(rows, *args, **kwargs):
        asked.append(list(rows))
        raise KeyboardInterrupt

    monkeypatch.setattr("istd.cli.ablate.run_grid", note_rows)
    monkeypatch.setattr("istd.cli.ablate.dataset_of", lambda args: synthetic_dataset(4, 2, 1, SceneConfig(size=64)))
    for preset, rows in (("cpu", QUESTIONS), ("paper", list(ROWS))):
        assert main(["ablate", "--preset", preset, "--vfm.name", "vit_tiny_patch16_224", "--out", str(tmp_path)]) == 130
        assert f"interrupted; what has run is in {tmp_path}" in capsys.readouterr().err
        assert asked[-1] == ["semantic-priors", *rows]
    assert set(QUESTIONS) < set(ROWS)


def test_every_row_of_the_ablation_trains(tmp_path):
    data = synthetic_dataset(8, 4, 2, SceneConfig(size=64))
    base = of_command(*ABLATION[1:], command="ablate")
    rows = rows_of(base)
    assert "random VFM" not in rows
    assert set(rows_of(base.changed(**{"vfm.random": False}))) == {"semantic-priors", *ROWS}
    for name, one in rows.items():
        experiment = Experiment(one, data, progress=False)
        experiment.fit()
        learned = [p for p in experiment.parts.weights.parameters()]
        assert bool(learned) == (one.method in ("semantic-priors", "no-vfm", "no-evolution")), name
        assert experiment.best.best["score"] >= 0


def test_true_validation_masks_stay_as_they_are_and_no_other_is_opened():
    data = synthetic_dataset(8, 4, 2, SceneConfig(size=64))
    hidden = replace(data, train=tuple(replace(s, mask_source=None) for s in data.train))
    base = of_command(*ABLATION[1:], "--labels.validation", "true", command="ablate")
    experiment = Experiment(base, hidden, progress=False)
    experiment.fit()
    for i, sample in zip(experiment.context.validation, data.val, strict=True):
        assert np.array_equal(experiment.parts.labels.hard(int(i)), sample.truth())
    with pytest.raises(ValueError, match="image 'train_0000' has none"):
        Experiment(alike(base, "full"), hidden, progress=False)


@pytest.mark.parametrize(
    ("flags", "message"), [(["--seeds", "1", "1"], "`--seeds` must differ"), (["--data", "nowhere"], "not a folder")]
)
def test_impossible_ablations_are_refused(flags, message, tmp_path, capsys):
    assert main([*ABLATION, "--out", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_reader_that_has_enough_gets_no_error_message():
    with subprocess.Popen(
        [sys.executable, "-m", "istd", "list", "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        message = process.stderr.read()
    assert (process.returncode, message) == (141, b"")


def test_a_command_line_that_needs_no_vfm_does_not_load_timm():
    code = "import sys; from istd.cli import main; main(['list', 'methods']); assert 'timm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
