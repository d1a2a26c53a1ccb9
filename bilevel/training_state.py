"""What a trainer's checkpoint must hold: all of it is checked before anything in the trainer is changed."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.batches import Walk
from bilevel.generators import generator_states, random_state, restore_generators, restore_random_state

FORMAT = 3
FIELDS = {
    "format": int,
    "config": Mapping,
    "epoch": int,
    "history": Sequence,
    "parts": Mapping,
    "walks": Mapping,
    "generators": Mapping,
    "random": Mapping,
}
# Optimizer states with one number per number of their parameter.
LIKE_THE_PARAMETER = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum"}


def collect(
    parts: Mapping[str, Any], walks: Mapping[str, Walk], config: Mapping[str, Any], epoch: int, history: Sequence[Any]
) -> dict[str, Any]:
    """The state of a run: of its parts, its walks, their generators and the global ones."""
    return {
        "format": FORMAT,
        "config": dict(config),
        "epoch": epoch,
        "history": list(history),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "walks": {name: walk.state_dict() for name, walk in walks.items()},
        "generators": {name: generator_states(walk.batches) for name, walk in walks.items()},
        "random": random_state(),
    }


def load(
    state: Mapping[str, Any], parts: Mapping[str, Any], walks: Mapping[str, Walk], config: Mapping[str, Any]
) -> None:
    """Give every part its state of `collect`, or, if one of them cannot take it, leave them all as they were.

    Raises:
        ValueError: if the state does not fit; nothing has changed then.
    """
    check_state(state, parts, config, walks)
    before = copy.deepcopy(collect(parts, walks, config, 0, ()))
    try:
        _hand_out(state, parts, walks)
    except BaseException as error:
        _hand_out(before, parts, walks)
        if isinstance(error, Exception):
            raise ValueError(
                f"The checkpoint could not be loaded ({type(error).__name__}: {error}); the trainer is as it was."
            ) from error
        raise


def _hand_out(state: Mapping[str, Any], parts: Mapping[str, Any], walks: Mapping[str, Walk]) -> None:
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    for name, walk in walks.items():
        walk.load_state_dict(state["walks"][name])
        restore_generators(walk.batches, state["generators"][name])
    restore_random_state(state["random"])


def check_state(
    state: Mapping[str, Any], parts: Mapping[str, Any], config: Mapping[str, Any], walks: Iterable[str]
) -> None:
    """Raise unless a state fits this trainer.

    Args:
        state: what a checkpoint holds.
        parts: the trainer's objects with a state, by name.
        config: the trainer's configuration.
        walks: the names of its walks.

    Raises:
        ValueError: naming the first thing that is missing, of another kind, shape or dtype, or impossible.
    """
    if state.get("format") != FORMAT:
        raise ValueError(f"This checkpoint has format {state.get('format')!r}; this version reads {FORMAT}.")
    for name, kind in FIELDS.items():
        field(state, name, kind)
    _check_config(state["config"], config)
    epoch, history = state["epoch"], state["history"]
    if epoch < 0 or len(history) != epoch or not all(isinstance(entry, Mapping) for entry in history):
        raise ValueError(
            f"The checkpoint says `epoch` = {epoch}, but its `history` has {len(history)} entries; one for every "
            "finished epoch is needed."
        )
    _same_names("parts", state["parts"], parts)
    for name in ("walks", "generators"):
        _same_names(name, state[name], dict.fromkeys(walks))
    for name, walk in state["walks"].items():
        if not isinstance(walk, Mapping) or walk.keys() != {"position", "pass"} or not _natural(walk["position"]):
            raise ValueError(f"The checkpoint's walk {name!r} is {walk!r:.80}; it needs `position` and `pass`.")
    missing = {"python", "numpy", "torch", "cuda"} - state["random"].keys()
    if missing:
        raise ValueError(f"The checkpoint's `random` lacks the generators {sorted(missing)}.")
    for name, part in parts.items():
        _check_part(name, state["parts"][name], part)


def field(state: Mapping[str, Any], name: str, kind: type) -> Any:
    """An entry of a state.

    Raises:
        ValueError: if it is missing or of another kind.
    """
    if name not in state:
        raise ValueError(f"The checkpoint lacks `{name}`.")
    value = state[name]
    if not isinstance(value, kind) or isinstance(value, (bool, str)):
        raise ValueError(f"The checkpoint's `{name}` is a {type(value).__name__}, not a {kind.__name__}.")
    return value


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_config(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in sorted(old.keys() | new.keys(), key=str):
        if old.get(key) != new.get(key):
            raise ValueError(
                f"The checkpoint was made with {key}={old.get(key)!r}, this run has {key}={new.get(key)!r}; resume "
                "with the old value, or start afresh."
            )


def _same_names(what: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    missing, unknown = sorted(present.keys() - saved.keys()), sorted(saved.keys() - present.keys())
    if missing:
        raise ValueError(f"The checkpoint's `{what}` lack {missing}, which this trainer has; start afresh without it.")
    if unknown:
        raise ValueError(
            f"The checkpoint's `{what}` hold {unknown}, which this trainer lacks; give them at construction, as in the "
            "run that wrote it."
        )


def _check_part(name: str, saved: Any, part: Any) -> None:
    if not isinstance(saved, Mapping):
        raise ValueError(f"The checkpoint's part {name!r} is a {type(saved).__name__}, not the state of an object.")
    if isinstance(part, nn.Module):
        present = part.state_dict()
        _same_names(name, saved, present)
        for key, value in present.items():
            # What a module keeps beside its tensors may grow as it trains: its own `set_extra_state` judges that.
            _compare(f"{name}.{key}", saved[key], value, shapes=not key.endswith("_extra_state"))
    elif isinstance(part, torch.optim.Optimizer):
        _check_optimizer(name, saved, part)
    else:
        _compare(name, saved, part.state_dict(), shapes=False)
        if isinstance(part, torch.optim.lr_scheduler.LRScheduler):
            missing = sorted(part.state_dict().keys() - saved.keys())
            if missing:
                raise ValueError(f"The checkpoint's part {name!r} lacks {missing}.")


def _compare(place: str, saved: Any, present: Any, shapes: bool) -> None:
    """Raise where two states hold tensors of different dtypes, or shapes, at the same place."""
    if isinstance(saved, Tensor) and isinstance(present, Tensor):
        if saved.dtype != present.dtype or (shapes and saved.shape != present.shape):
            raise ValueError(
                f"The checkpoint's {place} is a tensor of {saved.dtype} and shape {tuple(saved.shape)}; this trainer "
                f"has {present.dtype} and {tuple(present.shape)} there."
            )
    elif shapes and isinstance(present, Tensor):
        raise ValueError(f"The checkpoint's {place} is a {type(saved).__name__}, not a tensor.")
    elif isinstance(saved, Mapping) and isinstance(present, Mapping):
        for key in present:
            if key in saved:
                _compare(f"{place}.{key}", saved[key], present[key], shapes)


def _check_optimizer(name: str, saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    groups, states = field(saved, "param_groups", list), field(saved, "state", Mapping)
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    found = [len(group.get("params", ())) if isinstance(group, Mapping) else -1 for group in groups]
    if found != sizes:
        raise ValueError(f"The checkpoint's {name} has groups of {found} parameters, this trainer's of {sizes}.")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [i for group in groups for i in group["params"]]
    if not states.keys() <= set(numbers):
        raise ValueError(f"The checkpoint's {name} has a state for parameters that are in none of its groups.")
    for number, p in zip(numbers, parameters, strict=True):
        for key, value in states.get(number, {}).items():
            like = key in LIKE_THE_PARAMETER and isinstance(value, Tensor)
            if like and (value.shape != p.shape or value.dtype != p.dtype):
                raise ValueError(
                    f"The checkpoint's {name} holds a {key} of {value.dtype} and shape {tuple(value.shape)} for a "
                    f"parameter of {p.dtype} and {tuple(p.shape)}."
                )
