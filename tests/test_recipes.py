"""The recipes of CONTRIBUTING: a new part is one new file, and what lists or uses such parts finds it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RECIPES = {
    "a method": (
        "istd/methods/dimmest.py",
        '''
"""Training on true masks, and nothing else: an example."""

from dataclasses import dataclass

from istd.methods.base import METHODS, Context, Method, Parts
from istd.methods.plain import build
from istd.settings import Settings


@dataclass(frozen=True)
class Dimmest(Settings):
    """Settings of the example."""

    loss: str = "bce"


METHODS.register("dimmest", Method("an example", Dimmest, build, __doc__))
''',
        "from istd.training.presets import configure; print(configure('smoke', 'dimmest').loss)",
        "bce",
    ),
    "a student": (
        "istd/students/dot.py",
        '''
"""One convolution: an example."""

from torch import nn

from istd.students.base import Stage, Student
from istd.students.registry import STUDENTS, StudentInfo


class Dot(Student):
    """A 1x1 convolution."""

    stages = (Stage(3, 1),)

    def __init__(self, width=1.0, in_channels=3):
        super().__init__()
        self.head = nn.Conv2d(in_channels, 1, 1)

    def encode(self, x):
        return [x]

    def decode(self, features):
        return self.head(features[0])


STUDENTS.register("dot", StudentInfo(Dot, "Dot (nobody)", 4, 0.0))
''',
        "from istd.training.presets import configure; print(configure('smoke', student='dot').student)",
        "dot",
    ),
    "a rule for start masks": (
        "istd/labels/nothing.py",
        '''
"""No mask at all: an example."""

import numpy as np

from istd.labels.initial import INITIAL_MASKS, InitialMask


def nothing(sample):
    """An empty mask, which no point can rely on."""
    return InitialMask(np.zeros(sample.image.shape, dtype=bool), np.zeros(len(sample.points), dtype=bool))


INITIAL_MASKS.register("nothing", nothing)
''',
        "from istd.training.presets import configure; "
        "print(configure('smoke', 'pal', {'labels.rule': 'nothing'}).labels.rule)",
        "nothing",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of both packages, in which files may be added."""
    root = tmp_path_factory.mktemp("copy")
    for package in ("bilevel", "istd"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def run(root, code):
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=root)


@pytest.mark.slow
def test_a_new_part_is_one_new_file(copy):
    """Each part is added by its file alone; the command line lists the method; without the files nothing is known."""
    for name, source, _, _ in RECIPES.values():
        (copy / name).write_text(source.lstrip())
    codes = [code for _, _, code, _ in RECIPES.values()]
    found = run(copy, "\n".join([*codes, "from istd.cli import main; main(['list', 'methods', '--json'])"]))
    for name, _, _, _ in RECIPES.values():
        (copy / name).unlink()
    lines = found.stdout.splitlines()
    assert lines[: len(codes)] == [expected for _, _, _, expected in RECIPES.values()], found.stderr
    assert {"name": "dimmest", "summary": "an example"} in json.loads("\n".join(lines[len(codes) :]))
    tries = [f"try:\n    {code}\nexcept ValueError as e: print('unknown' in str(e).lower())" for code in codes]
    assert run(copy, "\n".join(tries)).stdout.split() == ["True"] * len(codes)
