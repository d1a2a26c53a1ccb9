"""Settings from flags, files and Python are checked by one schema, and written as strict JSON."""

import json
import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pytest

from istd.cli import main
from istd.files import as_json, read_settings
from istd.methods import METHODS
from istd.schema import OneOf, Range, changed, check, flat, settings_of
from istd.training.legacy import RENAMED, from_flat, settings_of_run
from istd.training.presets import PERIODS, PRESETS, configure, departures, usual_settings
from tests.istd.tiny import of_command


@pytest.mark.parametrize("method", list(METHODS))
def test_every_number_has_a_range_and_every_name_its_choices(method):
    known = settings_of(METHODS[method].settings)
    numbers = {path for path, s in known.items() if s.kind in (int, float)}
    assert numbers == {path for path, s in known.items() if s.range is not None}
    texts = {path for path, s in known.items() if s.kind is str and s.choices is None}
    assert texts <= {"method", "preset", "vfm.name", "vfm.weights"}
    for preset in PRESETS:
        for path, value in flat(usual_settings(preset, method)).items():
            assert value is None or known[path].range is None or value in known[path].range


def test_a_preset_names_settings_that_some_method_has():
    known = {path for method in METHODS for path in settings_of(METHODS[method].settings)}
    for preset in PRESETS:
        assert set(PRESETS[preset]) <= known
    assert set(RENAMED.values()) <= known


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", "3", "`epochs` must be an integer, got '3'"),
        ("epochs", 3.0, "`epochs` must be an integer, got 3.0"),
        ("epochs", True, "`epochs` must be an integer, got True"),
        ("lr", "0.1", "`lr` must be a number, got '0.1'"),
        ("lr", float("nan"), "`lr` must be a finite number greater than 0, got nan"),
        ("optimisation.lr", float("inf"), "`lr` must be a finite number greater than 0, got inf"),
        ("optimisation.lr", -1.0, "`lr` must be a finite number greater than 0"),
        ("scale", -1.0, r"`scale` must lie in \[1, 8\], got -1.0"),
        ("labels.leaks_mask_area", "false", "`leaks_mask_area` must be true or false, got 'false'"),
        ("loss", None, "`loss` must be a text, got None"),
        ("loss", ["bce"], "`loss` must be a text"),
        ("clusters.count", 0, "`count` must be at least 1, got 0"),
        ("scam.strength", "strong", "`strength` must be a number or null, got 'strong'"),
        ("ema_decay", 1, r"`ema_decay` must lie in \[0, 1\)"),
        ("crop", 50, "`crop` must be a positive multiple of 32"),
        ("seed", -1, r"`seed` must lie in \[0, 2.14748e\+09\], got -1"),
        ("vfm.weights", 3, "`weights` must be a text or null, got 3"),
        ("outer", 3, "has no setting 'outer'; did you mean"),
    ],
)
def test_impossible_values_are_refused_from_python_and_from_a_file(name, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        configure("paper", None, {name: value})
    (tmp_path / "c.json").write_text(json.dumps({name: value}))
    if value == value:  # NaN has no place in JSON
        with pytest.raises(ValueError, match=message):
            of_command("--config", str(tmp_path / "c.json"))


def test_numbers_of_other_libraries_become_plain_data():
    found = configure("paper", None, lr=np.float64(0.5), epochs=np.int64(7), weight_decay=0)
    values = (found.optimisation.lr, found.schedule.epochs, found.optimisation.weight_decay)
    assert [type(v) for v in values] == [float, int, float]


def test_unknown_settings_name_the_nearest_known_one(tmp_path, capsys):
    for content, message in (
        ('{"epoch": 3}', "the method 'semantic-priors' has no setting 'epoch'; did you mean 'schedule.epochs'?"),
        ('{"vfm": {"sice": 3}}', "did you mean 'vfm.size'?"),
        ('{"qqqqqq": 3}', "no setting 'qqqqqq'; known: admission.first"),
        ('{"every": 3}', "`every` may be updates.every or outer.every; give the whole name"),
        ('{"lr": 0.1, "lr": 0.2}', "the field 'lr' stands twice"),
        ('{"lr": NaN}', "NaN is no value"),
        ("[" * 100_000, "is not JSON"),
        ('{"method": null}', "`method` must be a text, got None"),
        ('{"preset": "gpu"}', "Unknown preset 'gpu'"),
        ('"lr"', "must hold an object of fields"),
    ):
        (tmp_path / "c.json").write_text(content)
        assert main(["train", "--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "r")]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    assert main(["train", "--config", str(tmp_path / "c.json"), "--out", str(tmp_path / "r")]) == 2
    (tmp_path / "c.yaml").write_text("lr: [1")
    assert main(["train", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "r")]) == 2
    assert "is not YAML" in capsys.readouterr().err
    (tmp_path / "c.ini").write_text("")
    assert main(["train", "--config", str(tmp_path / "c.ini"), "--out", str(tmp_path / "r")]) == 2
    assert "must end in .json, .yaml, .yml, .toml" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_json_is_strict_and_settings_survive_it(tmp_path):
    whole = configure("smoke", "pal", lr=0.25)
    assert whole.evolution.cap == math.inf
    text = as_json(whole.as_dict())
    assert "Infinity" not in text
    (tmp_path / "c.json").write_text(text)
    assert of_command("--config", str(tmp_path / "c.json")) == whole
    assert settings_of_run(read_settings(tmp_path / "c.json")) == whole
    assert json.loads(as_json({"a": [float("nan"), -math.inf]})) == {"a": [None, "-inf"]}


def test_configurations_of_earlier_releases_mean_what_they_meant():
    old = {"method": "diffuse-to-detect", "preset": "smoke", "variant": "published", "labels_lr": 0.5, "lr": 0.25}
    old |= {"vfm_size": 64, "evolve_every": 3, "epochs": 7}  # of components that this method does not have
    found = settings_of_run(old)
    assert (found.outer.hypergradient, found.diffusion_lr, found.optimisation.lr) == ("output-alignment", 0.5, 0.25)
    assert found.schedule.epochs == 7
    assert from_flat("smoke", "semantic-priors", variant="published").outer.hypergradient == "rank-one-published"
    with pytest.raises(ValueError, match="no setting 'nonsense'"):
        from_flat("smoke", "plain", nonsense=3)


def test_a_range_says_what_it_allows():
    assert str(Range(0, 1, below=True)) == "lie in [0, 1)"
    assert str(Range(0, infinite=True)) == "be a number at least 0"
    assert math.inf in Range(0, infinite=True)
    assert math.inf not in Range(0)
    assert "1" not in Range(0)


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Range(1)] = 2
    kind: Annotated[str, OneOf(("a", "b"))] = "a"

    def __post_init__(self):
        check(self)


@dataclass(frozen=True)
class Outer:
    size: Annotated[float | None, Range(0)] = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self):
        check(self)


def test_nested_settings_are_changed_by_path():
    found = changed(Outer(), {"size": 1, "inner.size": 3, "kind": "b"})
    assert found == Outer(1.0, Inner(3, "b"))
    assert flat(found) == {"size": 1.0, "inner.size": 3, "inner.kind": "b"}
    with pytest.raises(ValueError, match="`kind` must be one of a, b, got 'c'"):
        changed(Outer(), {"inner.kind": "c"})
    with pytest.raises(ValueError, match="`inner` must be a Inner"):
        Outer(inner=3)


def test_periods_scale_with_the_epochs_unless_they_are_given():
    """20 epochs of the cpu preset would otherwise end before the first of its periods of 28."""
    cpu = flat(usual_settings("cpu"))
    found = of_command("--preset", "cpu", "--epochs", "20")
    assert [flat(found)[p] for p in PERIODS] == [round(cpu[p] * 20 / cpu["schedule.epochs"]) for p in PERIODS]
    assert found.outer.every == 4
    assert of_command("--preset", "cpu", "--epochs", "20", "--outer.every", "7").outer.every == 7
    assert of_command("--preset", "cpu", "--epochs", str(cpu["schedule.epochs"])) == usual_settings("cpu")
    assert departures(found) == {"schedule.epochs": 20}
    changes = {"schedule.epochs": 20, "outer.every": 28}
    assert departures(found.changed(**{"outer.every": 28})) == changes


def test_periods_of_a_file_belong_to_the_epochs_that_it_names(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"preset": "cpu", "epochs": 140, "outer": {"every": 14}}))
    assert of_command("--config", str(tmp_path / "c.json")).outer.every == 14
    assert of_command("--config", str(tmp_path / "c.json"), "--epochs", "20").outer.every == 2
    (tmp_path / "c.json").write_text(json.dumps({"preset": "cpu", "outer": {"every": 14}}))
    assert of_command("--config", str(tmp_path / "c.json"), "--epochs", "20").outer.every == 14
