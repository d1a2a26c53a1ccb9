"""Hostile configurations, flags, student files, checkpoints and weight files: refused by name, or sound.

`FUZZ_CASES` sets the number of cases (default: few, for the suite); `make fuzz` runs 10,000. A case is a function of
its number alone, so a failure names what to run again. What each case may raise is exactly what the commands turn
into a message; anything else is a finding. Files that are accepted must mean what they say: a configuration survives
being written and read, a changed file is never read as the old one.
"""

import contextlib
import io
import json
import math
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from bilevel.checkpoint import load_checkpoint, save_checkpoint
from istd.cli.flags import COMMON
from istd.data.normalisation import Normalisation
from istd.files import as_json, read_json
from istd.inference.export import load_student, save_student
from istd.methods import METHODS
from istd.schema import settings_of
from istd.students import create_student
from istd.teacher.vfm import VFMWeightsError, load_vfm
from tests.istd.tiny import of_command

CASES = int(os.environ.get("FUZZ_CASES", "0"))
NAMES = sorted({path for method in METHODS for path in settings_of(METHODS[method].settings)})
NUMBERS = [0, 1, -1, 3, 32, 2**31, 2**63, -(2**70), 0.5, -0.0, 1e-300, 1e308, math.inf, -math.inf, math.nan]
TEXTS = ["", "3", "0.1", "true", "false", "null", "inf", "nan", "plain", "alcl", "-1", "1e3", "\x00", "a" * 5000, "é"]
WILD = [None, True, False, *NUMBERS, *TEXTS, [], [1], {}, {"a": 1}, [[[]]]]


def cases(few):
    return range(CASES // 5 if CASES else few)


def outcome(call, *errors):
    """What a call returns and None, or None and the message that it ends with."""
    try:
        return call(), None
    except errors as error:
        return None, str(error)


def sound(settings):
    """Every number lies in its range, every name among its choices, every type is its own."""
    known = settings_of(type(settings))
    for path, value in settings.flat().items():
        kind, optional, limits, choices, _ = known[path]
        assert (optional and value is None) or type(value) is kind, (path, value)
        assert value is None or limits is None or value in limits, (path, value)
        assert choices is None or value in choices, (path, value)


def mutated(rng, content):
    """Bytes with a few of them flipped, cut off, doubled or replaced."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place, kind = int(rng.integers(max(len(data), 1))), rng.integers(5)
        if kind == 0 and data:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            data[place:place] = data[place : place + int(rng.integers(1, 64))]
        elif kind == 3:
            data[place : place + 8] = rng.bytes(8)
        else:
            data += rng.bytes(int(rng.integers(1, 32)))
    return bytes(data)


def test_configurations_from_files(tmp_path):
    path = tmp_path / "c.json"
    for case in cases(300):
        rng = np.random.default_rng((1, case))
        content = {
            NAMES[rng.integers(len(NAMES))]: WILD[rng.integers(len(WILD))] for _ in range(int(rng.integers(1, 5)))
        }
        text = json.dumps(content).encode()
        path.write_bytes(mutated(rng, text) if rng.uniform() < 0.3 else text)
        found, message = outcome(lambda: of_command("--config", str(path)), ValueError)
        if message is not None:
            assert message, case
            continue
        sound(found)
        path.write_text(as_json(found.as_dict()))
        assert of_command("--config", str(path)) == found, case


@pytest.mark.slow
def test_flags():
    texts = [*map(str, NUMBERS), *TEXTS, "1e400", "0x10", "1_000", "٣", "1j", "--lr", "1,5"]
    for case in cases(150):
        rng = np.random.default_rng((2, case))
        words = []
        for _ in range(int(rng.integers(1, 4))):
            group, _, last = NAMES[rng.integers(len(NAMES))].rpartition(".")
            flag = last if group in (*COMMON, "") else f"{group}.{last}"
            words += ["--" + flag.replace("_", "-"), texts[rng.integers(len(texts))]]
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found, message = outcome(lambda w=words: of_command(*w), ValueError, SystemExit)
        if found is not None:
            sound(found)
        else:
            assert message, case  # a sentence, or 2: argparse has said what is wrong


def test_student_files(tmp_path):
    path = tmp_path / "student.safetensors"
    save_student(path, create_student("acm", 0.25), "acm", 0.25, Normalisation(0.4, 0.2))
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        about, tensors = (
            json.loads(file.metadata()["istd"]),
            {
                k: file.get_tensor(k).clone()  # not a map of the file that the cases overwrite
                for k in file.keys()  # noqa: SIM118 (not a dict)
            },
        )
    for case in cases(60):
        rng = np.random.default_rng((3, case))
        if rng.uniform() < 0.7:
            content = mutated(rng, whole)
        else:
            keys = list(about)
            changed = {**about, keys[rng.integers(len(keys))]: WILD[rng.integers(len(WILD))]}
            if changed == about:
                continue
            content = save(tensors, {"istd": json.dumps(changed)})
        path.write_bytes(content)
        if content == whole:
            continue
        with pytest.raises(ValueError, match=r"student\.safetensors"):
            load_student(path)


def test_checkpoints(tmp_path):
    path = tmp_path / "checkpoint.pt"
    state = {"format": 2, "epoch": 1, "config": {"lr": 0.1}, "parts": {"inner": {"w": torch.arange(64.0)}}}
    save_checkpoint(path, state)
    whole = path.read_bytes()
    for case in cases(80):
        rng = np.random.default_rng((4, case))
        content = mutated(rng, whole)
        path.write_bytes(content)
        found, message = outcome(lambda: load_checkpoint(path), ValueError)
        if message is not None:
            assert "checkpoint.pt" in message, case
            continue
        # An archive has bytes that mean nothing (padding, dates); what is accepted must hold what was saved.
        assert found["epoch"] == 1, case
        assert torch.equal(found["parts"]["inner"]["w"], state["parts"]["inner"]["w"]), case


@pytest.mark.slow
def test_weight_files(tmp_path):
    path = tmp_path / "vit.safetensors"
    name = "test_vit"
    model = load_vfm(name, random=True).model
    own = model.state_dict()
    keys = list(own)
    for case in cases(3):
        rng = np.random.default_rng((5, case))
        kind, key = rng.integers(4), keys[rng.integers(len(keys))]
        if kind == 0:
            save_file({"unrelated": torch.zeros(3)}, path)
        elif kind == 1:
            save_file({k: v.contiguous() for k, v in own.items() if k != key}, path)
        elif kind == 2:
            save_file({k: v.clone().fill_(math.nan) if k == key else v.contiguous() for k, v in own.items()}, path)
        else:
            path.write_bytes(mutated(rng, b"\x10\x00\x00\x00\x00\x00\x00\x00" + b"{}" * 8))
        with pytest.raises(VFMWeightsError, match=r"vit\.safetensors"):
            load_vfm(name, path)


def test_metrics_files(tmp_path):
    path = tmp_path / "metrics.json"
    text = as_json({"student": {"IoU": 0.5}, "notes": []}).encode()
    for case in cases(60):
        rng = np.random.default_rng((6, case))
        path.write_bytes(mutated(rng, text))
        found, message = outcome(lambda: read_json(path), ValueError)
        assert isinstance(found, dict) or str(path) in message, case


def test_a_case_reaches_the_settings():
    """The fuzz of flags must reach the settings: a sound command line is accepted."""
    assert of_command("--lr", "0.5", "--epochs", "7").schedule.epochs == 7
