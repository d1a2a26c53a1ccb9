"""Checkpoints of released code: read without running anything they hold, matched by order and shape.

A network of ours lists its tensors in the published order with the published shapes, whatever their names there, so the
k-th tensor of a checkpoint is the k-th of the network. Releases wrap their weights in different ways; `read_checkpoint`
knows those of LESPS and BasicIRSTD (`state_dict`, names under `model.`), PAL (`state_dict`, `module.`), MSHNet (`net`,
or bare) and semantic-prior (`state_dict`; of a teacher's, what lies under `base.`).
"""

import pickle
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from istd.students.base import Student
from istd.students.registry import STUDENTS, create_student

WRAPPERS = ("state_dict", "net", "model", "student", "weights")
PREFIXES = ("module", "model", "net", "student", "base")
# Counts of batches seen, and the operation counts that a profiler leaves in a network that it has measured.
BOOKKEEPING = ("num_batches_tracked", "total_ops", "total_params")
STANDARD = {"weight", "bias", "running_mean", "running_var"}
CHANNELS = (None, 1, 3)  # of the input: as published, or of another release
OTHER_WIDTHS = (0.25, 0.5, 0.75, 1.5, 2.0)

State = dict[str, Tensor]


@dataclass(frozen=True)
class Match:
    """A published checkpoint as a student.

    Attributes:
        student: the network, with the checkpoint's weights.
        pairs: (published name, our name) of every tensor, in order.
        skipped: published names of tensors that our form of the network lacks (`StudentInfo.left_out`).
    """

    student: Student
    pairs: tuple[tuple[str, str], ...]
    skipped: tuple[str, ...]


def load_published(path: Path | str, name: str) -> Student:
    """A published checkpoint as a student of ours, in eval mode.

    Args:
        path: a file of `torch.save`, or a `.safetensors` file.
        name: registry name of the network; one or three input channels are told apart by the weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for an unknown name, or a checkpoint that is damaged, holds pickled code, or is of another network
            or width; the message says what comes nearest.

    Example:
        >>> student = load_published("ACM_NUAA-SIRST.pth.tar", "acm-lesps")  # doctest: +SKIP
    """
    return match_published(read_checkpoint(path), name).student


def read_checkpoint(path: Path | str) -> State:
    """The weights in a checkpoint of released code, in their order, under their names less common prefixes.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds pickled code, or no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    state = _without_prefixes(_weights(_read(path), path))
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: {key} is not finite; these are weights of a training that diverged.")
    return state


def match_published(state: State, name: str) -> Match:
    """Give a student the weights of a published state, matched by order, each checked by shape and kind.

    Args:
        state: what `read_checkpoint` returns.
        name: registry name of the student.

    Raises:
        ValueError: for an unknown name, or if a tensor does not match; the message names the first that does not, and
            the network that comes nearest.
    """
    state = _parameters(state)
    for channels in CHANNELS:
        pairs = _pairs(state, name, create_on_meta(name, in_channels=channels))
        if pairs is not None:
            student = create_student(name, in_channels=channels).eval()
            student.load_state_dict(
                {ours: state[theirs] for theirs, ours in pairs}
                | {k: v for k, v in student.state_dict().items() if k.split(".")[-1] in BOOKKEEPING}
            )
            matched = {theirs for theirs, _ in pairs}
            return Match(student, pairs, tuple(k for k in state if k not in matched))
    channels = max(CHANNELS, key=lambda c: _likeness(state, name, in_channels=c))
    difference = _first_difference(state, name, create_on_meta(name, in_channels=channels))
    raise ValueError(f"This checkpoint is no {name!r}: {difference}. {_nearest(state, name)}")


def create_on_meta(name: str, width: float = 1.0, in_channels: int | None = None) -> Student:
    """A student without memory for its weights: names and shapes alone."""
    with torch.device("meta"):
        return create_student(name, width, in_channels)


def _read(path: Path) -> Any:
    numpy_scalar = np.float64(0).__reduce__()[0]  # metrics of the training are often saved beside the weights
    harmless: list[Any] = [numpy_scalar, np.dtype, *(type(np.dtype(t)) for t in (np.float64, np.float32, np.int64))]
    harmless += [(numpy_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(harmless):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        EOFError,
        OSError,
        RuntimeError,
        KeyError,
        AttributeError,
        SafetensorError,
    ) as error:
        code = re.search(r"GLOBAL ([\w.]+)|type (\S+) was not an allowed", str(error))
        if code is not None:
            raise ValueError(
                f"{path} holds pickled code ({code.group(1) or code.group(2)}), which is not run. Save the weights "
                "alone where that code is: torch.save(network.state_dict(), FILE)."
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no checkpoint, or is cut short ({reason}). Fetch it again.") from error


def _weights(content: Any, path: Path) -> State:
    """The dictionary of tensors in what a file holds, at any depth of the known wrappers."""
    if isinstance(content, dict):
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if len(tensors) > 1:
            return tensors
        for key in WRAPPERS:
            if isinstance(content.get(key), dict):
                return _weights(content[key], path)
    keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise ValueError(f"{path} holds no weights that are known: it has {keys}; expected one of {', '.join(WRAPPERS)}.")


def _without_prefixes(state: State) -> State:
    """Names without what all have in common; of a student and its teacher's parts, the student."""
    student = {k: v for k, v in state.items() if k.startswith("base.")}
    state = student or state
    while len(heads := {k.split(".")[0] for k in state}) == 1 and next(iter(heads)) in PREFIXES:
        state = {k.split(".", 1)[1]: v for k, v in state.items()}
    return state


def _kept(state: State, name: str) -> list[str]:
    left_out = STUDENTS[name].left_out
    return [k for k in state if not any(k == part or k.startswith(part + ".") for part in left_out)]


def _parameters(state: State) -> State:
    """A state without counts."""
    return {k: v for k, v in state.items() if k.split(".")[-1] not in BOOKKEEPING}


def _agree(theirs: str, ours: str, a: Tensor, b: Tensor) -> bool:
    kinds = {theirs.split(".")[-1], ours.split(".")[-1]}
    return a.shape == b.shape and (len(kinds) == 1 or not kinds <= STANDARD)


def _pairs(state: State, name: str, student: Student) -> tuple[tuple[str, str], ...] | None:
    kept, tensors = _kept(state, name), _parameters(student.state_dict())
    if len(kept) != len(tensors):
        return None
    pairs = tuple(zip(kept, tensors, strict=True))
    return pairs if all(_agree(a, b, state[a], tensors[b]) for a, b in pairs) else None


def _first_difference(state: State, name: str, student: Student) -> str:
    kept, tensors = _kept(state, name), _parameters(student.state_dict())
    for k, (theirs, ours) in enumerate(zip(kept, tensors, strict=False), start=1):
        if not _agree(theirs, ours, state[theirs], tensors[ours]):
            return (
                f"tensor {k} is {theirs!r} of shape {tuple(state[theirs].shape)}, and that of {name!r} is {ours!r} of "
                f"shape {tuple(tensors[ours].shape)}"
            )
    return f"it has {len(kept)} tensors, and {name!r} has {len(tensors)}"


@cache
def _shapes(name: str, width: float, in_channels: int | None) -> Counter[torch.Size]:
    return Counter(v.shape for v in _parameters(create_on_meta(name, width, in_channels).state_dict()).values())


def _likeness(state: State, name: str, width: float = 1.0, in_channels: int | None = None) -> float:
    """Share of the tensors of both that have a counterpart of their shape, in [0, 1]."""
    ours, theirs = _shapes(name, width, in_channels), Counter(state[k].shape for k in _kept(state, name))
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


def _nearest(state: State, name: str) -> str:
    """Which registered network, or which width of the named one, the checkpoint resembles most."""
    asked = [(candidate, 1.0) for candidate in STUDENTS] + [(name, width) for width in OTHER_WIDTHS]
    candidate, width = max(asked, key=lambda pair: _likeness(state, *pair))
    score = max(_likeness(state, candidate, width, channels) for channels in CHANNELS)
    what = f"{candidate!r} ({STUDENTS[candidate].title})" + (f" at width {width:g}" if width != 1 else "")
    advice = "; published networks have width 1" if width != 1 else ""
    return f"Nearest is {what}, with {score:.0%} of the tensors in shape{advice}."
