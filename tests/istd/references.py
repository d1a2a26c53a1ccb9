"""Reference values of published networks: the recipe that fills a network with numbers, and the files they lie in.

A reference file holds what a published network computes in float64 when its weights, its statistics and its input are
given by formulas (`numbers`, `value`, `image`). A network of ours that is the published one computes the same. The
values were computed by running the released code at the commit that `source` names.

Two sets of files have one form. `tests/istd/students/NAME.json` is committed: the map used at test on the first image,
all stages, and one letter for the kind of each tensor. The full set (all maps on all images, and the names and shapes
of all published tensors) is larger and lies beside the checkout, in `../shared/facts/students`, where it is present.
`python -m tests.istd.references NAME ...` writes the committed files from the full ones.
"""

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from istd.students import STUDENTS

FULL = Path(__file__).resolve().parents[3] / "shared" / "facts" / "students"
COMMITTED = Path(__file__).resolve().parent / "students"
KINDS = {"w": "w", "scale": "g", "shift": "b", "mean": "m", "var": "v", "const": "c"}
LEFT_OUT = "-"
LIGHT = ("acm", "acm-lesps", "alcnet", "alcnet-lesps", "mlcl", "msh", "repisd")
"""Networks whose step at width 1 takes a fraction of a second."""


def numbers(i: int, n: int) -> np.ndarray:
    """The first n members of sequence i, in [-1, 1)."""
    t = (np.arange(n, dtype=np.int64) + 7919 * i) % 1000003
    return 2 * ((271829 * t * t + 17 * t) % 1000003) / 1000003 - 1


def by_cost(names: Iterable[str]) -> list[Any]:
    """Names as parameters of a test at width 1: slow ones but for the light networks."""
    return [name if name in LIGHT else pytest.param(name, marks=pytest.mark.slow) for name in names]


def value(kind: str, i: int, shape: tuple[int, ...], gain: float) -> Tensor:
    """Tensor number i of a published state, by its kind (a letter of `KINDS`)."""
    n = math.prod(shape)
    u = numbers(i, n)
    fan = n / shape[0] if shape else 1
    filled = {"w": gain * math.sqrt(6 / fan) * u, "g": 1 + 0.2 * u, "b": 0.1 * u, "m": 0.1 * u, "v": 1 + 0.5 * u}[kind]
    return torch.from_numpy(filled.reshape(shape))


def image(b: int, c: int, h: int, w: int) -> Tensor:
    """The input, `(b, c, h, w)`."""
    b_, c_, y, x = np.ogrid[:b, :c, :h, :w]
    wave = 0.6 * np.sin(0.13 * y + 0.29 * x + 0.7 * c_ + 1.1 * b_)
    return torch.from_numpy(wave + 0.4 * numbers(0, b * c * h * w).reshape(b, c, h, w))


class Published(NamedTuple):
    """One tensor of a published state: its number, its name there, its shape and its kind."""

    number: int
    name: str
    shape: tuple[int, ...]
    kind: str


def published_state(lines: list[str]) -> list[Published]:
    """All tensors of a published state in order, from the `state` of a full file."""
    found: list[Published] = []

    def add(module: str, leaf: str, shape: tuple[int, ...], kind: str | None) -> None:
        if kind is None:
            by_name = {"weight": "scale", "running_mean": "mean", "running_var": "var"}
            kind = "w" if len(shape) > 1 else by_name.get(leaf, "shift")
        name = leaf if module == "." else f"{module}.{leaf}"
        found.append(Published(len(found) + 1, name, shape, KINDS[kind]))

    for line in lines:
        module, *parts = line.split()
        if parts[0] == "bn":
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                add(module, leaf, (int(parts[1]),), None)
            continue
        for part in parts:
            leaf, shape, *kind = part.split(":")
            add(module, leaf, tuple(int(n) for n in shape.split("x")), kind[0] if kind else None)
    return found


def is_left_out(name: str, left_out: tuple[str, ...]) -> bool:
    """Whether a published tensor is one of those that our form of the network lacks."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in left_out)


def load(name: str) -> dict[str, Any]:
    """The full reference of a network where it is present, else the committed one; both in the committed form."""
    path = FULL / f"{name}.json"
    if path.is_file():
        return as_ours(json.loads(path.read_text()))
    found: dict[str, Any] = json.loads((COMMITTED / f"{name}.json").read_text())
    return found


def as_ours(full: dict[str, Any]) -> dict[str, Any]:
    """A full reference with `kinds` beside `state`, and the sums of statistics less those of layers left out."""
    out = json.loads(json.dumps(full))
    state = published_state(full["state"])
    left_out = STUDENTS[full["student"]].left_out if full["student"] in STUDENTS else ()
    gone = [t for t in state if is_left_out(t.name, left_out)]
    out["kinds"] = "".join(LEFT_OUT if t in gone else t.kind for t in state)
    # Statistics are no parameters; fixed filters are where the publication counts parameters that are not trained.
    uncounted = "mv" if full["trainable"] < full["parameters"] else "mvc"
    out["left_out_parameters"] = sum(math.prod(t.shape) for t in gone if t.kind not in uncounted)
    for kind, key in (("m", "running_mean_sum_after"), ("v", "running_var_sum_after")):
        if key in out["train"]:
            unused = sum(float(value(kind, t.number, t.shape, 1.0).sum()) for t in gone if t.kind == kind)
            out["train"][key] = float(f"{out['train'][key] - unused:.12g}")
    return out


def as_committed(full: dict[str, Any]) -> dict[str, Any]:
    """The part of a full reference that is committed: no names, and of the maps the one at test on the first image."""
    out = as_ours(full)
    for mode in ("eval", "train"):
        for maps in out[mode]["outputs"]:
            if maps["name"] == out["test_output"]:
                maps["grid"] = maps["grid"][:1]
            else:
                maps.pop("grid", None)
    keep = ("recipe", "student", "source", "torch", "input", "gain", "last_bias_add", "parameters", "test_output")
    return {k: out[k] for k in (*keep, "left_out_parameters", "kinds", "eval", "train")}


def fill(network: nn.Module, reference: dict[str, Any]) -> None:
    """Give a network the recipe's numbers, matched by order.

    Raises:
        AssertionError: if the network has not as many tensors as the published one has less those left out, or, where
            the published shapes are known, a tensor of another shape.
    """
    ours = [(k, t) for k, t in network.state_dict().items() if not k.endswith("num_batches_tracked")]
    kept = [(i, kind) for i, kind in enumerate(reference["kinds"], start=1) if kind != LEFT_OUT]
    state = published_state(reference["state"]) if "state" in reference else None
    for (name, tensor), (i, _) in zip(ours, kept, strict=False):
        if state is not None:
            shape = state[i - 1].shape
            assert tuple(tensor.shape) == shape, f"{name} {tuple(tensor.shape)} is published as {state[i - 1]}"
    assert len(ours) == len(kept), f"{len(ours)} tensors of ours, {len(kept)} published ones less those left out"
    with torch.no_grad():
        for (_, tensor), (i, kind) in zip(ours, kept, strict=True):
            if kind != "c":
                tensor.copy_(value(kind, i, tuple(tensor.shape), reference["gain"]))
        ours[-1][1].add_(reference["last_bias_add"])


def main() -> None:
    """Write the committed references of the students named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=list(STUDENTS))
    for name in parser.parse_args().names:
        full = json.loads((FULL / f"{name}.json").read_text())
        (COMMITTED / f"{name}.json").write_text(json.dumps(as_committed(full), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
