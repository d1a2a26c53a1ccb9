"""Whole runs, small: what they write, what they never read, and how they stop, resume and refuse."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel import TrainingDiverged
from bilevel.reweighting import TableWeights
from istd.cli import main
from istd.data.layouts import Dataset, Sample
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.inference.export import load_student
from istd.metrics import evaluate_masks
from istd.runs import load_run, run
from istd.runs.evaluation import learned_weights
from istd.runs.holding import check_folder
from istd.runs.notes import notes_on
from istd.runs.summary import summary_table
from istd.students import STUDENTS
from istd.teacher import cached_tokens, image_tokens
from istd.training.experiment import Experiment
from istd.training.presets import configure, departures
from tests.istd.tiny import tiny

pytestmark = pytest.mark.slow

TINY = tiny()
BLOCK = {"IoU", "nIoU", "Pd", "Fa"}
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "istd_point.py"
TIMEOUT = 240  # seconds; a guard against hanging, far above what a slow machine needs


@pytest.fixture(scope="module")
def scenes():
    return synthetic_dataset(8, 4, 4, SceneConfig(size=64))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # bitwise comparisons of tiny runs, without oversubscribing the machine
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    torch.set_num_threads(1)  # set up before `one_thread`
    return out, run(TINY, scenes, out, progress=False)


def test_a_run_writes_its_results(finished, scenes):
    out, metrics = finished
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert set(metrics["student"]) == set(metrics["teacher"]) == BLOCK
    assert set(metrics["pseudo_masks"]["initial"]) == set(metrics["pseudo_masks"]["final"]) == BLOCK
    wanted = "dataset split n_images n_targets method selected_epoch selected_on seconds seed preset vfm vfm_pretrained"
    assert set(wanted.split()) <= set(metrics)
    learned = {"smallest": 0.5, "largest": 1.5, "mask_quality": 0.25}
    assert "0.50 to 1.50; rank correlation" in summary_table(metrics | {"learned_weights": learned})
    assert metrics["vfm_pretrained"] is False
    assert metrics["n_images"] == 4
    assert (out / "report.png").stat().st_size > 20_000
    assert json.loads((out / "config.json").read_text())["student"] == "mlcl"


def test_a_finished_run_can_be_looked_at_again(finished, scenes, tmp_path):
    out, metrics = finished
    experiment = load_run(out, scenes)
    assert experiment.trainer.epoch == TINY.schedule.epochs
    experiment.load_best()
    found = evaluate_masks([(experiment.predict_student(s.image) > 0.5, s.truth()) for s in scenes.test])
    assert found == pytest.approx(metrics["student"])
    with pytest.raises(FileNotFoundError, match=r"no checkpoint\.pt; give the folder of a run"):
        load_run(tmp_path, scenes)
    assert load_run(out, replace(scenes, name="others")).trainer.epoch == TINY.schedule.epochs  # a name is not the data
    with pytest.raises(ValueError, match="The checkpoint was made with images="):
        load_run(out, replace(scenes, test=scenes.test[1:]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_learned_weights_are_held_against_the_masks_they_weigh(scenes, sign):
    experiment = Experiment(tiny(labels__rule="canny"), scenes, progress=False)
    weights = TableWeights.per_sample(len(experiment.context.samples))
    experiment.parts = replace(experiment.parts, weights=weights)
    found = learned_weights(experiment)
    assert found == {"smallest": 1.0, "largest": 1.0, "mask_quality": None}  # uniform before training
    pairs = [[(experiment.parts.labels.hard(i), s.truth())] for i, s in enumerate(experiment.context.samples)]
    quality = torch.tensor([evaluate_masks(p)["IoU"] for p in pairs], dtype=torch.float32)
    assert quality[experiment.context.training].unique().numel() > 2
    weights.logits.data = sign * quality
    found = learned_weights(experiment)
    assert found["mask_quality"] == pytest.approx(sign)
    assert found["smallest"] < 1 < found["largest"]


def test_a_run_says_what_it_changed(finished):
    assert finished[1]["changes"]["data.crop"] == 32
    assert not {"seed", "student", "width", "vfm.random"} & finished[1]["changes"].keys()
    usual = configure("smoke", "fdep")
    assert departures(usual) == {}
    assert departures(usual.changed(crop=32)) == {"data.crop": 32}


def test_the_exported_student_predicts_what_was_scored(finished, scenes):
    out, metrics = finished
    predictor = load_student(out / "student.safetensors")
    found = evaluate_masks([(predictor(s.image) > 0.5, s.truth()) for s in scenes.test])
    assert found == pytest.approx(metrics["student"])


def test_the_input_channels_travel_with_the_exported_student(scenes, tmp_path):
    config = tiny("plain", epochs=1, channels="contrast")
    metrics = run(config, scenes, tmp_path, progress=False)
    from istd.metrics import evaluate_masks

    predictor = load_student(tmp_path / "student.safetensors")
    assert predictor.normalisation.channels == "contrast"
    found = evaluate_masks([(predictor(s.image) > 0.5, s.truth()) for s in scenes.test])
    assert found == pytest.approx(metrics["student"])
    with pytest.raises(ValueError, match="repeat, contrast"):
        tiny(channels="rgb")


def test_the_outer_step_on_shared_weights_follows_the_inner_rate(scenes):
    following, constant = (Experiment(tiny(epochs=2, outer__student_lr=x), scenes, progress=False) for x in (None, 0.1))
    rates = []
    for experiment in (following, constant):
        experiment.fit()
        rates.append(experiment.trainer.outer_optimizer.param_groups[-1]["lr"])
    assert rates == [pytest.approx(0.1 * 0.01 * TINY.optimisation.lr), 0.1]  # the cosine ends at 1 % of the peak


def test_inference_needs_neither_timm_nor_the_teacher(finished):
    out, _ = finished
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "timm" or name.startswith("istd.teacher"):
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
import numpy as np, istd
print(istd.load_student({str(out / "student.safetensors")!r})(np.zeros((50, 70), np.float32)).shape)
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "(50, 70)"


class Poison:
    """A mask that must not be opened while training: reading it before `armed` is cleared fails the test."""

    armed = True

    def __init__(self, mask):
        self.mask = mask

    @property
    def shape(self):
        assert not Poison.armed, "training opened a true mask"
        return self.mask.shape

    def __array__(self, *args, **kwargs):
        assert not Poison.armed, "training opened a true mask"
        return np.asarray(self.mask)


@pytest.mark.parametrize("method", ["semantic-priors", "plain"])
def test_training_never_opens_a_true_mask(scenes, method):
    def poisoned(samples):
        return tuple(Sample(s.name, s.image, s.points, Poison(s.mask_source)) for s in samples)

    data = Dataset("poisoned", poisoned(scenes.train), poisoned(scenes.val), poisoned(scenes.test))
    Poison.armed = True
    experiment = Experiment(tiny(method, epochs=2), data, progress=False)
    experiment.fit()
    experiment.load_best()
    with pytest.raises(AssertionError, match="opened a true mask"):
        data.test[0].truth()  # the poison works


@pytest.mark.parametrize("method", ["plain", "full"])
def test_methods_without_a_teacher(scenes, tmp_path, method):
    metrics = run(tiny(method, epochs=1), scenes, tmp_path, progress=False)
    assert metrics["teacher"] is None
    assert metrics["vfm"] is None
    assert metrics["learned_weights"] is None
    initial = metrics["pseudo_masks"]["initial"]
    assert (initial["IoU"] == 1.0) is (method == "full")
    assert initial == metrics["pseudo_masks"]["final"]


@pytest.mark.parametrize("method", ["semantic-priors", "plain"])
@pytest.mark.parametrize("student", list(STUDENTS))
def test_every_student_trains_with_a_teacher_and_without(scenes, student, method):
    experiment = Experiment(tiny(method, student=student, epochs=1), scenes, progress=False)
    before = [p.detach().clone() for p in experiment.student.parameters()]
    experiment.fit()
    moved = [not torch.equal(a, b) for a, b in zip(before, experiment.student.parameters(), strict=True)]
    assert np.mean(moved) > 0.9
    prediction = experiment.predict_student(scenes.test[0].image)
    assert prediction.shape == scenes.test[0].image.shape
    assert np.isfinite(prediction).all()


@pytest.mark.parametrize(
    "changes",
    [
        {
            "outer__hypergradient": "rank-one-published",
            "teaching__weighted_outer": True,
            "teaching__student_loss_weight": 0.0,
            "loss": "bce",
            "teaching__share_batch_norm": True,
        },
        {
            "outer__hypergradient": "rank-one",
            "vfm__view": "crop",
            "labels__rule": "canny",
            "evolution__anchors": "ones",
            "student": "alcl",
        },
        {
            "clusters__count": 3,
            "teaching__teacher_share": 0.5,
            "scale": 1.3,
            "gain": 1.2,
            "noise": 0.01,
            "select_on": "test",
        },
    ],
)
def test_published_forms_and_options_run(scenes, tmp_path, changes):
    metrics = run(tiny(epochs=2, **changes), scenes, tmp_path, progress=False)
    assert 0.0 <= metrics["student"]["IoU"] <= 1.0
    assert metrics["selected_on"] == changes.get("select_on", "val")


def test_without_any_truth_the_report_leaves_out_what_needs_it(scenes, tmp_path):
    def blind(samples):
        return tuple(Sample(s.name, s.image, s.points) for s in samples)

    data = Dataset("blind", blind(scenes.train), blind(scenes.val), blind(scenes.test))
    metrics = run(tiny(epochs=2), data, tmp_path, progress=False)
    assert metrics["student"] is None
    assert metrics["pseudo_masks"] == {"initial": None, "final": None}
    assert (tmp_path / "report.png").is_file()
    assert (tmp_path / "student.safetensors").is_file()


def test_images_without_targets_are_legal(scenes, tmp_path):
    empty = Sample("empty", np.full((64, 64), 0.3, np.float32), np.zeros((0, 2), np.int64), np.zeros((64, 64), bool))
    data = Dataset("with empty", (*scenes.train, empty), (*scenes.val, empty), (*scenes.test, empty))
    metrics = run(tiny("plain", epochs=1), data, tmp_path, progress=False)
    assert metrics["n_images"] == 5


def test_a_resumed_run_gives_the_same_metrics(scenes, finished, tmp_path):
    _, expected = finished

    class Stop:
        def on_inner_step(self, trainer, epoch, step):
            if (epoch, step) == (3, 1):
                raise KeyboardInterrupt

    class Counting:
        seen = 0

        def on_inner_step(self, trainer, epoch, step):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    before, after = Counting(), Counting()
    with pytest.raises(KeyboardInterrupt):
        run(TINY, scenes, tmp_path, progress=False, callbacks=[before, Stop()])
    metrics = run(TINY, scenes, tmp_path, resume=True, progress=False, callbacks=[after])
    assert (
        after.seen == TINY.schedule.epochs * (before.seen - 2) // 2
    )  # two epochs and two steps of the third were counted
    for key in ("student", "teacher", "pseudo_masks", "selected_epoch"):
        assert metrics[key] == expected[key], key


@pytest.fixture
def example():
    """Starts the example in another process; whatever is left of it ends with the test."""
    started = []

    def start(out, *flags, **settings):
        command = [sys.executable, str(EXAMPLE), "--out", str(out), "--epochs", "6", "--threads", "1", "--quiet"]
        # A child inherits ignored interrupts (those of a shell's background job) but not a handler.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen(
                [*command, *flags], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings
            )
        finally:
            signal.signal(signal.SIGINT, before)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    """A SIRST3 folder on disk, for runs in another process."""
    from PIL import Image

    root = tmp_path_factory.mktemp("data")
    scenes = synthetic_dataset(8, 4, 4, SceneConfig(size=64))
    for folder in ("images", "labels", "masks_centroid", "mode"):
        (root / folder).mkdir()
    for split in ("train", "val", "test"):
        samples = getattr(scenes, split)
        (root / "mode" / f"{split}.txt").write_text("\n".join(s.name for s in samples))
        for s in samples:
            points = np.zeros(s.image.shape, np.uint8)
            points[s.points[:, 0], s.points[:, 1]] = 255
            Image.fromarray((s.image * 255).round().astype(np.uint8)).save(root / "images" / f"{s.name}.png")
            Image.fromarray(s.mask_source.astype(np.uint8) * 255).save(root / "labels" / f"{s.name}.png")
            Image.fromarray(points).save(root / "masks_centroid" / f"{s.name}.png")
    return root


def wait_for_checkpoint(out, process, delay):
    deadline = time.monotonic() + TIMEOUT
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(delay)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_signal_keeps_the_checkpoint_and_exits_with_its_code(example, tiny_folder, tmp_path, number, code):
    flags = ("--data", str(tiny_folder), "--preset", "smoke", "--student", "mlcl", "--width", "0.25", "--epochs", "500")
    process = example(tmp_path, *flags, start_new_session=True)
    wait_for_checkpoint(tmp_path, process, delay=0.5)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, errors
    assert "continue with --resume" in errors


def test_a_folder_with_a_run_is_refused(finished, capsys):
    out, _ = finished
    with pytest.raises(FileExistsError, match=r"--resume.*--overwrite"):
        check_folder(out, resume=False, overwrite=False)
    with pytest.raises(ValueError, match="exclude each other"):
        check_folder(out, resume=True, overwrite=True)
    assert main(["train", "--out", str(out)]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (out / "metrics.json").is_file()


def test_resume_with_another_config_names_the_difference(finished, scenes):
    out, _ = finished
    with pytest.raises(ValueError, match=r"optimisation\.lr=0\.004, this run has optimisation\.lr=0\.1"):
        run(tiny(lr=0.1), scenes, out, resume=True, progress=False)


def test_nan_in_an_image_names_the_batch_and_keeps_the_checkpoint(scenes, tmp_path):
    bad = scenes.train[2]
    image = bad.image.copy()
    data = replace(scenes, train=(*scenes.train[:2], Sample(bad.name, image, bad.points), *scenes.train[3:]))
    experiment = Experiment(tiny("plain"), data, checkpoint=tmp_path / "checkpoint.pt", progress=False)
    image[:] = np.nan  # after the statistics were fitted
    with pytest.raises(TrainingDiverged, match=rf"(?s)images .*{bad.name}.*checkpoint of epoch 0 is kept"):
        experiment.fit()
    assert (tmp_path / "checkpoint.pt").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data", "nowhere"], "not a folder"),
        (["--vfm.name", "no_such_vit", "--vfm.random"], "not a timm model"),
        (["--vfm.weights", "nowhere.pth"], "not a file"),
        (["--device", "cuda"], "no CUDA device"),
        (["--epochs", "0"], "`epochs` must be at least 1"),
        (["--width", "9"], "`width` must lie in (0, 4], got 9.0"),
    ],
)
def test_bad_flags_end_with_a_message_and_exit_code_2(flags, message, tmp_path, capsys):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert main(["train", "--out", str(tmp_path / "run"), "--quiet", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"vfm__view": "half"}, {"crop": 50}, {"outer__hypergradient": "exact"}, {"method": "magic"}, {"loss": "l2"}],
)
def test_impossible_configs_are_refused(change):
    with pytest.raises(ValueError, match=r"must be|Unknown"):
        tiny(**change)


def test_batches_of_one_image_train(scenes):
    """One image is a single value in the global gates of ACM, which have BatchNorm in the form of LESPS."""
    experiment = Experiment(tiny(student="acm-lesps", batch_size=1, epochs=1), scenes, progress=False)
    experiment.fit()
    assert np.isfinite(experiment.predict_student(scenes.test[0].image)).all()
    assert any("met a single value per channel" in note for note in notes_on(experiment, None))


def on_the_spot(experiment):
    def tokens(index, crops):
        images = [torch.from_numpy(experiment.context.samples[i].image)[None, None] for i in index.tolist()]
        return torch.cat([experiment.parts.vision.model.tokens(image, TINY.vfm.size) for image in images])

    return tokens


def test_a_cache_in_full_precision_trains_exactly_like_features_computed_on_the_spot(scenes):
    histories = []
    for cached in (True, False):
        experiment = Experiment(tiny(student="acm"), scenes, progress=False)
        images = [s.image for s in experiment.context.samples]
        cache = image_tokens(
            experiment.parts.vision.model, images, TINY.vfm.size, torch.device("cpu"), False, torch.float32
        )
        source = cached_tokens(cache) if cached else on_the_spot(experiment)
        experiment.trainer.inner_batches.tokens = experiment.trainer.outer_batches.tokens = source
        histories.append(experiment.trainer.fit(2))
    assert histories[0] == histories[1]


def test_half_precision_in_the_cache_moves_a_loss_by_no_more_than_its_rounding_implies(scenes):
    """|L(t + e) - L(t)| <= sum |dL/dt| |e| to first order, with |e| <= 2^-11 |t| + 2^-25, the rounding of float16.

    The second order is a thousandth of the first here and the float32 sums of both losses err by 1e-6: a twentieth of
    the bound covers the one, an absolute term the other.
    """
    experiment = Experiment(tiny(student="acm"), scenes, progress=False)
    trainer, (batch, *_) = experiment.trainer, experiment.trainer.inner_batches
    experiment.parts.network.eval()  # the loss of one batch, without the moving statistics
    exact = on_the_spot(experiment)(batch.index, None)
    assert float((batch.tokens - exact).abs().max()) > 0
    assert bool(((batch.tokens - exact).abs() <= 2**-11 * exact.abs() + 2**-25).all())
    exact.requires_grad_(True)
    loss = trainer.inner_loss(trainer.inner, trainer.outer, batch._replace(tokens=exact))
    (slope,) = torch.autograd.grad(loss, exact)
    bound = float((slope.abs() * (2**-11 * exact.detach().abs() + 2**-25)).sum())
    moved = abs(float(trainer.inner_loss(trainer.inner, trainer.outer, batch).detach()) - float(loss.detach()))
    assert moved <= 1.05 * bound + 1e-6


@pytest.mark.parametrize(
    "changes",
    [{"clusters__descriptors": "vfm"}, {"transductive": True}, {"sharing": "nested"}, {"sharing": "smoothed"}],
)
def test_clusters_in_every_form_train(scenes, changes):
    experiment = Experiment(tiny(epochs=2, clusters__count=3, outer__every=1, **changes), scenes, progress=False)
    experiment.fit()
    assert len(experiment.parts.weights.groups) == len(scenes.train) + len(scenes.val)
    assert float(next(experiment.parts.weights.parameters()).detach().abs().sum()) > 0  # the weights have moved


@pytest.mark.parametrize(
    ("method", "changes"), [("semantic-priors", {"scam__place": "spatial"}), ("semantic-priors", {}), ("fdep", {})]
)
def test_features_that_lie_where_the_crop_lies_train_a_teacher(scenes, tmp_path, method, changes):
    """Both forms of SCAM and SAMF on a pyramid's features, which are computed once and cut out with the crop."""
    backbone = {"vfm__name": "tf_efficientnet_lite0", "vfm__random": True, "vfm__view": "aligned"}
    settings = tiny(method, epochs=2, scale=1.3, **backbone, **changes)
    metrics = run(settings, scenes, tmp_path, progress=False)
    assert set(metrics["teacher"]) == BLOCK
    assert metrics["vfm_source"] == "random"
    assert metrics["vfm_pretrained"] is False
    with pytest.raises(ValueError, match=r"'spatial' needs `vfm.view` 'aligned' or 'crop', got 'image'"):
        tiny(scam__place="spatial")


def test_vfm_descriptors_need_a_vfm(scenes):
    with pytest.raises(ValueError, match=r"`clusters\.descriptors` is 'vfm'"):
        Experiment(tiny("no-vfm", clusters__descriptors="vfm"), scenes, progress=False)
