"""Examples, benchmarks and the README do what they say."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.runs.run import run
from tests.istd.tiny import settings, tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_learned_weights_beat_uniform_ones_on_noisy_labels():
    """Seed 0 of the example: two standard deviations of an accuracy on 697 test images are below 0.04."""
    example = load(Path("examples/noisy_labels.py"))
    learned = example.train(0, example.TableWeights.per_sample(1000, bound=3.0))
    assert learned > example.train(0, example.UniformWeights()) + 0.05


def test_learned_weights_tell_careful_annotators_from_guessers():
    """Seed 0 of the example; on 737 test images two standard deviations of an accuracy are below 0.03."""
    example = load(Path("examples/noisy_annotators.py"))
    learned, weights = example.train(0, learned=True)
    assert learned > example.train(0, learned=False)[0] + 0.02
    assert float(weights[:3].min()) > 2 * float(weights[3:].max())


def test_the_fifteen_lines_of_the_readme_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    (code,) = [b for b in blocks if "BilevelTrainer" in b]
    assert code.count("\n") <= 18
    torch.manual_seed(0)
    given = {
        "model": torch.nn.Linear(4, 3),
        "x": torch.randn(20, 4),
        "noisy_labels": torch.randint(3, (20,)),
        "x_clean": torch.randn(6, 4),
        "y_clean": torch.randint(3, (6,)),
    }
    exec(code.replace("epochs=100", "epochs=2"), given)
    assert given["trainer"].epoch == 2
    assert float(given["weights"].logits.detach().abs().sum()) > 0


@pytest.fixture
def gpu(monkeypatch):
    module = load(Path("benchmarks/gpu.py"))
    monkeypatch.setattr(module, "configure", lambda preset, method, changes: tiny(method, epochs=3, **changes))
    monkeypatch.setattr(
        module,
        "synthetic_dataset",
        lambda config: __import__("istd.data.scenes", fromlist=["x"]).synthetic_dataset(6, 3, 3),
    )
    queue = module.cells("smoke")
    assert len({name for name, _ in queue}) == len(queue)
    wanted = [(n, c) for n, c in queue if c["student"] == "mlcl" and c.get("seed", 0) == 0][:2]
    monkeypatch.setattr(module, "cells", lambda preset: wanted)
    monkeypatch.setattr(module, "throughput", lambda name, device: {"student": name, "training_images_per_s": 1.0})
    return module


def test_the_gpu_queue_stops_in_time_resumes_and_never_starts_a_cell_twice(gpu, monkeypatch, tmp_path):
    flags = ["gpu.py", "--device", "cpu", "--preset", "smoke", "--out", str(tmp_path / "out"), "--work", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*flags, "--minutes", "0.0005"])
    assert gpu.main() == 0
    assert not (tmp_path / "out" / "smoke-semantic-priors-mlcl-seed0.json").exists()
    monkeypatch.setattr(sys, "argv", [*flags, "--minutes", "5"])
    assert gpu.main() == 0
    done = tmp_path / "out" / "smoke-semantic-priors-mlcl-seed0.json"
    assert json.loads(done.read_text())["card"] == "CPU"
    before = done.stat().st_mtime_ns
    assert gpu.main() == 0
    assert done.stat().st_mtime_ns == before
    assert "semantic-priors" in (tmp_path / "out" / "table.md").read_text()


def test_gpu_benchmark_needs_a_gpu(gpu, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_throughput_counts_images():
    found = load(Path("benchmarks/gpu.py")).throughput("mlcl", torch.device("cpu"), batch=1, side=32)
    assert all(v > 0 for k, v in found.items() if k.endswith("per_s"))


def test_nothing_committed_names_a_machine():
    """No absolute paths of a machine and no package hosts in what is shipped."""
    pattern = re.compile(r"(?<![\w.])/(work|root|home|farm)/|https?://(?!doi|arxiv)")
    for path in [
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        *(p for d in ("bilevel", "istd", "examples", "benchmarks") for p in (ROOT / d).rglob("*.py")),
    ]:
        assert not pattern.search(path.read_text()), path


def test_the_pseudo_mask_table_has_a_row_for_every_rule_and_kind_of_points():
    from istd.labels import INITIAL_MASKS

    text = load(Path("benchmarks/pseudo_masks.py")).table(synthetic_dataset(2, 1, 1))
    rows = [line for line in text.splitlines() if line.startswith("| ") and "rule" not in line]
    assert len(rows) == len(INITIAL_MASKS) * 2 * 5


def test_the_table_of_runs_gives_mean_and_deviation_over_seeds():
    block = {"IoU": 0.5, "nIoU": 0.6, "Pd": 0.9, "Fa": 2e-5}
    run = {
        "dataset": "d",
        "split": "s",
        "n_targets": 3,
        "selected_on": "val",
        "preset": "cpu",
        "method": "plain",
        "student_name": "alcl",
        "width": 0.5,
        "seed": 0,
        "student": block,
        "teacher": None,
        "vfm": None,
        "vfm_pretrained": None,
        "pseudo_masks": {"initial": block, "final": None},
        "seconds": 12.0,
        "threads": 2,
    }
    other = run | {"seed": 1, "student": block | {"IoU": 0.6}}
    learned = {"smallest": 0.7, "largest": 1.4, "mask_quality": -0.25}
    taught = {"method": "semantic-priors", "vfm": "vit.tag", "vfm_pretrained": False, "teacher": block}
    varied = run | taught | {"changes": {"updates.every": 5}, "learned_weights": learned}
    text = load(Path("benchmarks/table.py")).markdown([varied, run, other])
    assert "| student alcl x0.5: plain | 2 | 55.0 +- 7.1 | 60.0 +- 0.0 | 90.0 +- 0.0 | 20.0 +- 0.0 |" in text
    assert "| teacher: semantic-priors (random vit), updates.every=5 | 1 | 50.0 | 60.0 | 90.0 | 20.0 |" in text
    assert "final pseudo-masks" not in text
    assert "against plain" not in text  # one seed in common
    more = varied | {"seed": 1, "student": block | {"IoU": 0.7}}
    text = load(Path("benchmarks/table.py")).markdown([varied, more, run, other])
    assert "against plain in 2 pairs of seeds: IoU +5.0 (p = 0.50), nIoU +0.0\n" in text  # gains of 0 and 10
    assert "plain, seed 1: 12 s on 2 thread(s)\n" in text
    assert "weights of images 0.70 to 1.40, rank correlation with the IoU of their masks -0.25" in text


def test_chosen_and_last_weights_of_a_run_are_scored_beside_each_other(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(Path("benchmarks/last_weights.py"))
    data = synthetic_dataset(4, 2, 2, SceneConfig(size=64))
    config = settings("smoke", "plain", width=0.25, crop=32, epochs=4, evaluate_every=1, select_from=0.0)
    found = {}
    for name, start in (("chosen", 0.0), ("last", 1.0)):
        (tmp_path / name).mkdir()
        changed = config.changed(select_from=start)
        found[name] = run(changed, data, tmp_path / name, progress=False)["student"]
    row = module.measure(tmp_path / "chosen", data)
    assert row.chosen["test"] == pytest.approx(found["chosen"])
    assert row.last["test"] == pytest.approx(found["last"])  # what is chosen does not change how a run trains
    block = {"IoU": 0.5, "nIoU": 0.6, "Pd": 0.9, "Fa": 2e-5}
    better = {split: block | {"IoU": 0.6} for split in ("val", "test")}
    rows = [module.Row("plain", seed, 3, {"val": block, "test": block}, better) for seed in (0, 1)]
    text = module.markdown(rows)
    assert "| plain, seed 0 | 3 | 50.0 | 60.0 | 50.0/60.0/90.0/20.0 | 60.0/60.0/90.0/20.0 |" in text
    assert "| plain | 2 | 60.0 +- 0.0 | 60.0 +- 0.0 | 90.0 +- 0.0 | 20.0 +- 0.0 | +10.0 |  |" in text


def test_the_hypergradient_benchmark_measures_errors_beside_the_textbook_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(Path("benchmarks/hypergradients.py"))
    rows = module.measure("ridge d=200 n=500 float64", repeats=1)
    error = {(r["library"], r["method"]): r["error"] for r in rows}
    assert error["bilevel", "CG to 1e-10"] < 1e-9
    assert error["bilevel", "dense"] < 1e-12
    assert error["bilevel", "CG, 20"] == pytest.approx(error["by hand", "CG, 20"], rel=1e-3)
    assert all(r["ratio"] > 0 for r in rows)
    (floored,) = [r for r in rows if (r["library"], r["method"]) == ("bilevel", "CG, 20")]
    assert floored["floor"] > 0
    text = module.markdown(rows, "how")
    assert text.count("| bilevel |") == sum(r["library"] == "bilevel" for r in rows)
    slower = [r | ({k: 10 * r[k] for k in ("ratio", "median")} if r["library"] == "bilevel" else {}) for r in rows]
    assert module.peers_ahead(slower)[0].startswith("by hand is ahead in CG, 20: ")
    assert module.peers_ahead(slower)[0] in module.markdown(slower, "how")
    assert "bilevel" in module.compare(slower, rows)
    assert "+900%" in module.compare(slower, rows)
    assert module.compare(rows, []) == ""


def test_the_reweighting_benchmark_tells_right_labels_from_wrong_ones(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(Path("benchmarks/reweighting.py"))
    task = "digits, 40 % symmetric"
    rows = module.measure(
        {task: module.TASKS[task]}, ["uniform", "per sample", "L2RW", "small loss"], seeds=1, epochs=6
    )
    found = {r["strategy"]: r for r in rows}
    assert found["uniform"]["auroc"] == 0.5
    assert found["per sample"]["auroc"] > 0.7
    text = module.markdown(rows, "how")
    assert "| per sample |" in text
    module.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


STRATEGY = """
import torch
from torch import nn
from bilevel.reweighting import bounded_weights
from strategies import STRATEGIES, Strategy


class Temperature(nn.Module):
    '''Weights exp(-a loss): one outer variable.'''

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))

    def forward(self, indices, losses):
        return bounded_weights(-self.a * losses.detach(), 3.0)


STRATEGIES["temperature"] = Strategy(lambda task, model: Temperature(), outer_lr=0.3)
"""


def test_a_strategy_of_ones_own_is_one_file(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    (tmp_path / "mine.py").write_text(STRATEGY)
    flags = ["--strategies", "uniform", "temperature", "--tasks", "digits, 40 % symmetric", "--seeds", "1"]
    more = ["--epochs", "8", "--strategy-file", str(tmp_path / "mine.py"), "--json", str(tmp_path / "rows.json")]
    monkeypatch.setattr("sys.argv", ["reweighting.py", *flags, *more])
    assert load(Path("benchmarks/reweighting.py")).main() == 0
    assert "| temperature |" in capsys.readouterr().out
    rows = {r["strategy"]: r for r in json.loads((tmp_path / "rows.json").read_text())}
    assert rows["temperature"]["auroc"] > 0.7
    assert set(rows["uniform"]) == {"task", "strategy", "seed", "score", "auroc", "seconds_ratio"}


def test_corrupted_tasks_are_corrupted_as_they_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    tasks = load(Path("benchmarks/noisy_tasks.py")).TASKS
    rates = {name: 1 - float(make(0).right.float().mean()) for name, make in tasks.items()}
    for name, rate in rates.items():
        wanted = 0.0 if "imbalance" in name else int(re.search(r"(\d+) %", name)[1]) / 100
        assert rate == pytest.approx(wanted, abs=0.12), name
    given = tasks["digits, imbalance 1:100"](0).given.bincount()
    assert int(given[:5].min()) > 20 * int(given[5:].max())
    assert torch.equal(tasks["wine, 40 % symmetric"](3).given, tasks["wine, 40 % symmetric"](3).given)


def test_the_costs_of_weights_are_measured(monkeypatch):
    """A table's memory grows with its clusters, not with its samples; the page holds what was measured."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(Path("benchmarks/weight_costs.py"))
    assert module.memory(1000, 8)[0] == module.memory(100_000, 8)[0] == 4 * module.memory(1000, 2)[0]
    found = module.steps(module.mlp, rounds=1)
    assert min(found["graph"], found["kept"]) > found["weighted"] > 0.3
    assert module.clustering(2000, 4, 8) < 60


def test_students_are_measured_in_yardsticks(monkeypatch):
    """A chain as long as the yardstick costs a yardstick's memory; the table sets ours over the released figures."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(Path("benchmarks/students.py"))
    monkeypatch.setattr(module, "MODES", {"eval": (1, 32), "train": (2, 32)})
    megabyte = torch.empty(2**18)
    assert module.peak_memory(lambda: (megabyte + 1, None)[1]) == pytest.approx(1.0, rel=0.01)
    released = {"acm": {"eval": {"time": 1e-9, "memory": 1.0, "beside": 0.5}}}
    header, _, evaluated, trained = module.report(["acm"], 1, released).splitlines()
    assert header.startswith("| student | mode | time | of released")
    assert evaluated.startswith("| acm | eval |")
    assert float(evaluated.split("|")[4]) > 1e6
    assert evaluated.split("|")[5].strip() == "0.50"
    assert trained.split("|")[4].strip() == ""


def test_the_leaderboard_gives_every_method_one_budget():
    module = load(Path("benchmarks/leaderboard.py"))
    cells = module.rows("cpu", list(module.COMPARED), ["alcl"], None, {"vfm.random": True})
    assert list(cells) == list(module.COMPARED)
    for group in ("schedule", "optimisation", "data", "student", "width"):
        assert all(getattr(c, group) == getattr(cells["plain"], group) for c in cells.values()), group
    assert cells["lesps"].loss == "soft-focal"
    two = module.rows("cpu", ["plain"], ["alcl", "msh"], None, {})
    assert list(two) == ["plain, alcl", "plain, msh"]
    short = module.rows("cpu", ["pal", *module.VARIANTS], ["alcl"], 28, {})
    assert (short["pal"].schedule.epochs, short["pal"].updates.every) == (28, 1)
    judged = short["diffuse-to-detect, points judge"]
    assert (judged.outer.every, judged.outer.labels) == (6, "points")


def test_a_diffusion_learns_its_numbers_through_the_network_it_labels_for():
    """From masks less than half as good; 30 points are far beyond what chance gives on some 80 targets."""
    before, after, diffusion = load(Path("examples/learned_diffusion.py")).learn(0, epochs=12)
    assert after > before + 15
    assert all(p.isfinite() for p in diffusion.parameters())


def small_config(**changes):
    return tiny(epochs=2, **changes)


def test_directions_are_compared_with_the_exact_one(monkeypatch):
    """Our one-step unroll is the exact derivative; the published total is all direct; finite differences agree."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(Path("benchmarks/directions.py"))
    data = synthetic_dataset(8, 6, 1, SceneConfig(size=64))
    text = module.report(data, small_config(clusters__count=3), [0, 2], pairs=1, steps=1, progress=False)
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 2 * 2 * 3
    for line in lines:
        _, _, outer, variant, total, indirect, share, differences, _ = (x.strip() for x in line.split("|"))
        assert float(differences) < 1e-2  # what check_hypergradient itself asks for
        if "exact" in variant:
            assert float(total.split()[0]) == pytest.approx(1.0, abs=1e-6)
            assert float(indirect.split()[0]) == pytest.approx(1.0, abs=1e-6)
        assert (share == "no direct part") == (outer == "unweighted")


def test_the_cost_of_features_is_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = load(Path("benchmarks/feature_cache.py"))
    text = module.report(synthetic_dataset(8, 4, 1, SceneConfig(size=64)), small_config(), 1, torch.device("cpu"))
    shares = {line.split("|")[1].strip(): float(line.split("|")[4].strip(" %")) for line in text.splitlines()[2:4]}
    assert shares["cached, whole image"] < shares["every crop (published)"]


@pytest.mark.parametrize("method", ["full", "checkpointed", "recomputed"])
def test_the_memory_of_a_large_model_is_measured(method, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    threads = torch.get_num_threads()
    try:
        found = load(Path("benchmarks/hypergradient_memory.py")).measure(100_000, "adam", 2, method)
    finally:
        torch.set_num_threads(threads)
    assert found["gigabytes"] >= 0
    assert found["seconds"] > 0
