"""Settings from flags, files and Python are checked by one schema, and written as strict JSON."""

import json
import math
from dataclasses import fields, replace
from typing import get_type_hints

import numpy as np
import pytest

from istd.cli import main, parser
from istd.config import CHOICES, PERIODS, PRESETS, RANGES, Config, configure, departures
from istd.flags import config_from
from istd.schema import Range, as_json, plain_type


def config(*flags):
    return config_from(parser().parse_args(["train", *flags]))


def test_every_number_has_a_range_and_every_name_its_choices():
    hints = {name: plain_type(hint)[0] for name, hint in get_type_hints(Config).items()}
    numbers = {name for name, kind in hints.items() if kind in (int, float)}
    assert numbers == set(RANGES)
    texts = {name for name, kind in hints.items() if kind is str}
    assert texts - set(CHOICES) == {"preset", "vfm", "vfm_weights"}
    for preset in PRESETS:
        for field in fields(Config):
            value = getattr(PRESETS[preset], field.name)
            assert value is None or field.name not in RANGES or value in RANGES[field.name]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", "3", "`epochs` must be an integer, got '3'"),
        ("epochs", 3.0, "`epochs` must be an integer, got 3.0"),
        ("epochs", True, "`epochs` must be an integer, got True"),
        ("lr", "0.1", "`lr` must be a number, got '0.1'"),
        ("lr", float("nan"), "`lr` must be a finite number greater than 0, got nan"),
        ("lr", float("inf"), "`lr` must be a finite number greater than 0, got inf"),
        ("lr", -1.0, "`lr` must be a finite number greater than 0"),
        ("scale", -1.0, r"`scale` must lie in \[1, 8\], got -1.0"),
        ("leaks_mask_area", "false", "`leaks_mask_area` must be true or false, got 'false'"),
        ("method", None, "`method` must be a text, got None"),
        ("method", ["plain"], "`method` must be a text"),
        ("clusters", 0, "`clusters` must be at least 1, got 0"),
        ("scam_strength", "strong", "`scam_strength` must be a number or null, got 'strong'"),
        ("averaging", 1, r"`averaging` must lie in \[0, 1\)"),
        ("crop", 50, "`crop` must be a positive multiple of 32"),
        ("seed", -1, r"`seed` must lie in \[0, 2.14748e\+09\], got -1"),
        ("vfm_weights", 3, "`vfm_weights` must be a text or null, got 3"),
    ],
)
def test_impossible_values_are_refused_from_python_and_from_a_file(field, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        replace(Config(), **{field: value})
    (tmp_path / "c.json").write_text(json.dumps({field: value}))
    if value == value:  # NaN has no place in JSON
        with pytest.raises(ValueError, match=message):
            config("--config", str(tmp_path / "c.json"))


def test_numbers_of_other_libraries_become_plain_data():
    found = Config(lr=np.float64(0.5), epochs=np.int64(7), weight_decay=0)
    assert (type(found.lr), type(found.epochs), type(found.weight_decay)) == (float, int, float)


def test_unknown_fields_name_the_nearest_known_one(tmp_path, capsys):
    for content, message in (
        ('{"epoch": 3}', "unknown field 'epoch'; did you mean 'epochs'?"),
        ('{"qqqqqq": 3}', "unknown field 'qqqqqq'; known: alarms"),
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
    assert not (tmp_path / "r").exists()


def test_json_is_strict_and_a_configuration_survives_it(tmp_path):
    whole = replace(configure("smoke", "pal"), lr=0.25)
    assert whole.evolve_cap == math.inf
    text = as_json(whole.as_dict() | {"preset": "smoke"})
    assert "Infinity" not in text
    (tmp_path / "c.json").write_text(text)
    assert config("--config", str(tmp_path / "c.json")) == whole
    assert json.loads(as_json({"a": [float("nan"), -math.inf]})) == {"a": [None, "-inf"]}


def test_a_range_says_what_it_allows():
    assert str(Range(0, 1, below=True)) == "lie in [0, 1)"
    assert str(Range(0, infinite=True)) == "be a number at least 0"
    assert math.inf in Range(0, infinite=True)
    assert math.inf not in Range(0)
    assert "1" not in Range(0)


def test_periods_scale_with_the_epochs_unless_they_are_given():
    """20 epochs of the cpu preset would otherwise end before the first of its periods of 28."""
    cpu = PRESETS["cpu"]
    found = config("--preset", "cpu", "--epochs", "20")
    assert [getattr(found, p) for p in PERIODS] == [round(getattr(cpu, p) * 20 / cpu.epochs) for p in PERIODS]
    assert found.bilevel_every == 4
    assert config("--preset", "cpu", "--epochs", "20", "--bilevel-every", "7").bilevel_every == 7
    assert config("--preset", "cpu", "--epochs", str(cpu.epochs)) == replace(cpu)
    assert departures(found) == {"epochs": 20}
    assert departures(replace(found, bilevel_every=28)) == {"epochs": 20, "bilevel_every": 28}


def test_periods_of_a_file_belong_to_the_epochs_that_it_names(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"preset": "cpu", "epochs": 140, "bilevel_every": 14}))
    assert config("--config", str(tmp_path / "c.json")).bilevel_every == 14
    assert config("--config", str(tmp_path / "c.json"), "--epochs", "20").bilevel_every == 2
    (tmp_path / "c.json").write_text(json.dumps({"preset": "cpu", "bilevel_every": 14}))
    assert config("--config", str(tmp_path / "c.json"), "--epochs", "20").bilevel_every == 14
