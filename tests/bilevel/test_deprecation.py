"""Old names: every row of the table works, warns of the new name, and gives the same thing."""

import importlib
import inspect

import pytest
import torch

import bilevel
from bilevel.deprecation import RENAMED
from bilevel.registry import Registry
from tests.bilevel.test_trainer import make


def found(path):
    """What a dotted path leads to."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(path)


def kind(place):
    value = found(place)
    return "module" if inspect.ismodule(value) else "registry" if isinstance(value, Registry) else "class"


def of_kind(wanted):
    rows = [row for row in RENAMED if kind(row.place) == wanted]
    return pytest.mark.parametrize("row", rows, ids=lambda row: f"{row.place}.{row.old}")


@of_kind("module")
def test_an_old_name_of_a_module_leads_to_the_new_one(row):
    module = importlib.import_module(row.place)
    with pytest.warns(DeprecationWarning, match=f"`{row.old}` is now called `{row.new}`") as said:
        assert getattr(module, row.old) is getattr(module, row.new)
    assert said[0].filename == __file__  # the caller's line is what it points at
    assert row.old not in getattr(module, "__all__", ())
    assert not hasattr(module, "no_such_name")


@of_kind("registry")
def test_an_old_key_leads_to_the_new_one(row):
    problem = bilevel.BilevelProblem(lambda w, a, _: (w - 3 * a) ** 2 / 2, lambda w, a, _: (w - 1) ** 2 / 2)
    w, a = torch.tensor(5.0), torch.tensor(2.0)
    with pytest.warns(DeprecationWarning, match=f"`{row.old}` is now called `{row.new}`") as said:
        old = bilevel.hypergradient(problem, w, a, [None], None, row.old)
    assert said[0].filename == __file__
    assert torch.equal(old.value, bilevel.hypergradient(problem, w, a, [None], None, row.new).value)
    assert row.old not in found(row.place)


MAKE = {
    bilevel.Schedule: (bilevel.Schedule, 3),
    bilevel.BilevelTrainer: (make, []),
}


@of_kind("class")
def test_an_old_argument_and_attribute_lead_to_the_new_ones(row):
    construct, value = MAKE[found(row.place)]
    with pytest.warns(DeprecationWarning, match=f"`{row.old}` is now called `{row.new}`"):
        old = construct(**{row.old: value})
    assert getattr(old, row.new) == value
    with pytest.warns(DeprecationWarning, match=f"`{row.old}` is now called `{row.new}`") as said:
        assert getattr(old, row.old) == value
    assert said[0].filename == __file__
    with pytest.raises(TypeError, match=f"both `{row.new}` and its old name `{row.old}`"):
        construct(**{row.old: value, row.new: value})
    assert row.new in inspect.signature(found(row.place)).parameters
    assert row.old not in inspect.signature(found(row.place)).parameters


def test_every_row_is_of_one_of_these_kinds():
    assert {kind(row.place) for row in RENAMED} == {"module", "registry", "class"}


def test_objects_with_some_of_a_callbacks_methods_still_serve():
    seen = []

    class Duck:
        def on_inner_step(self, trainer, epoch, step):
            seen.append(step)

    make(callbacks=[Duck(), bilevel.Callback()]).fit(1)
    assert seen == [0, 1, 2, 3]
