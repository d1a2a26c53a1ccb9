"""Imports run one way: a room may import from rooms above it in the list, never from those below."""

import ast
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = {
    "bilevel": [
        [
            "results",
            "tree",
            "registry",
            "files",
            "checkpoint",
            "generators",
            "forward_rules",
            "weight_norm",
            "spectral_norm",
            "attention",
            "statistics",
            "adam_step",
            "deprecation",
        ],
        ["inner_optimizers", "linear_solvers", "reweighting", "products", "events"],
        ["problem", "torch_optimizers"],
        ["modules", "batched"],
        ["hypergradients"],
        ["diagnostics", "objectives", "schedule", "batches", "divergence", "trainer_checks"],
        ["training_state", "inner_epoch", "outer_phase"],
        ["old_checkpoints", "resumable"],
        ["trainer"],
        ["__init__"],
    ],
    "istd": [
        ["regions", "losses", "precision", "threads", "schema", "files", "figures", "batchnorm", "pretrained"],
        ["data"],
        ["metrics", "students", "labels"],
        ["settings"],
        ["inference", "teacher", "weights"],
        ["objectives"],
        ["methods"],
        ["training"],
        ["runs"],
        ["cli"],
        ["__main__"],
        ["__init__"],
    ],
}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            yield node.module


def room(path, package):
    return path.relative_to(ROOT / package).with_suffix("").parts[0]


@pytest.mark.parametrize("package", LAYERS)
def test_imports_run_one_way(package):
    rank = {name: i for i, layer in enumerate(LAYERS[package]) for name in layer}
    for path in sorted((ROOT / package).rglob("*.py")):
        own = room(path, package)
        assert own in rank, f"{path} is in no layer of this test: place it"
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[0] == package and len(parts) > 1 and parts[1] != own:
                assert rank[parts[1]] <= rank[own], f"{path.relative_to(ROOT)} imports {module}, which is downstream"


def test_bilevel_knows_neither_its_plugin_nor_image_libraries():
    forbidden = {"istd", "timm", "PIL", "skimage", "matplotlib", "torchvision"}
    plots = ROOT / "bilevel" / "reweighting" / "history.py"  # imports matplotlib when asked to draw
    for path in (ROOT / "bilevel").rglob("*.py"):
        allowed = {"matplotlib"} if path == plots else set()
        assert not (forbidden - allowed) & {m.split(".")[0] for m in imported_modules(path)}, path


def test_only_one_room_imports_timm_and_istd_uses_public_names_of_bilevel():
    for path in (ROOT / "istd").rglob("*.py"):
        modules = list(imported_modules(path))
        if any(m.split(".")[0] == "timm" for m in modules):
            assert path == ROOT / "istd" / "teacher" / "vfm.py"
        private = {"bilevel.trainer", "bilevel.products", "bilevel.hypergradients", "bilevel.problem", "bilevel.tree"}
        assert not private & set(modules), path


def test_inference_sees_neither_teacher_nor_methods():
    for path in (ROOT / "istd" / "inference").rglob("*.py"):
        rooms = {m.split(".")[1] for m in imported_modules(path) if m.startswith("istd.")}
        assert not rooms & {"teacher", "weights", "objectives", "methods", "training", "runs", "cli"}, path


def test_files_stay_small():
    lengths = {}
    for package in LAYERS:
        for path in (ROOT / package).rglob("*.py"):
            lengths[path] = len(path.read_text().splitlines())
    longest = max(lengths, key=lengths.__getitem__)
    assert lengths[longest] <= 350, f"{longest}: is it one thing?"
    assert statistics.median(lengths.values()) <= 130
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 260


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
