"""Saving and loading students as safetensors, with all that inference needs in the file's own metadata."""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bilevel.checkpoint import write_atomically
from istd.data.normalisation import Normalisation
from istd.data.sensor import SENSOR, SensorRange
from istd.inference.predict import StudentPredictor
from istd.schema import Range, checked
from istd.students import create_student


def save_student(
    path: Path,
    student: nn.Module,
    name: str,
    width: float,
    normalisation: Normalisation,
    sensor: SensorRange = SENSOR,
    **facts: object,
) -> None:
    """Write a student atomically.

    Args:
        path: a `.safetensors` file.
        student: the bare network.
        name: its registry name.
        width: its width factor.
        normalisation: the constants of its training.
        sensor: how the images of its training became intensities (`Dataset.sensor`).
        **facts: further JSON data for the metadata (method, seed, dataset).
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in student.state_dict().items()}
    about: dict[str, Any] = {"student": name, "width": width, "in_channels": getattr(student, "in_channels", None)}
    about |= {"mean": normalisation.mean, "std": normalisation.std}
    about |= {"per_image": normalisation.per_image, "channels": normalisation.channels, "sensor": sensor.to_dict()}
    about |= facts
    about["digest"] = content_digest(tensors, about)
    content = save(tensors, metadata={"istd": json.dumps(about, allow_nan=False)})
    write_atomically(path, lambda file: file.write(content))


def load_student(path: Path | str, device: torch.device | str = "cpu") -> StudentPredictor:
    """Load a student for inference.

    Args:
        path: a file of `save_student`, or the folder of a run that holds `student.safetensors`.
        device: where to run.

    Returns:
        A predictor: `(H, W)` image in [0, 1] -> `(H, W)` probabilities.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it was not written by `save_student`, if a bit of it has changed since, or if it holds a value
            that is not finite.

    Warns:
        UserWarning: if it was written before students had a digest.

    Example:
        >>> predictor = load_student("runs/demo")  # doctest: +SKIP
        >>> probabilities = predictor(image)  # doctest: +SKIP
    """
    path = Path(path)
    if path.is_dir():
        path = path / "student.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"There is no student at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["istd"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if not isinstance(about, dict):
            raise TypeError(f"its metadata is a {type(about).__name__}")
        _check_content(path, tensors, about)
        in_channels = checked("in_channels", about.get("in_channels"), int, optional=True, limits=Range(1))
        student = create_student(about["student"], checked("width", about["width"], float), in_channels)
        student.load_state_dict(tensors)
        normalisation, sensor = _normalisation(about), SensorRange.from_dict(about.get("sensor", {}))
    except (SafetensorError, KeyError, TypeError, RuntimeError, RecursionError, OSError) as error:
        raise ValueError(f"{path} is no student written by this library ({type(error).__name__}: {error}).") from error
    except ValueError as error:
        raise (
            error if str(path) in str(error) else ValueError(f"{path} is no student that can be used: {error}")
        ) from None
    return StudentPredictor(student, normalisation, device, sensor)


def content_digest(tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> str:
    """A digest of a student's tensors and of all that the file says of it, as 32 hexadecimal digits."""
    found = hashlib.blake2b(json.dumps({**about, "digest": None}, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_content(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    if "digest" not in about:
        warnings.warn(
            f"{path} was written before students had a digest, so changed bits in it would not be noticed; train or "
            "save it again.",
            stacklevel=3,
        )
    elif about["digest"] != content_digest(tensors, about):
        raise ValueError(f"{path} has changed since it was written: its digest does not fit. Copy it again.")
    broken = next((k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()), None)
    if broken is not None:
        raise ValueError(f"{path} holds values that are not finite in {broken!r}; its training diverged.")


def _normalisation(about: Mapping[str, Any]) -> Normalisation:
    """The constants of training.

    Raises:
        ValueError: if one is not what it can be.
        KeyError: if one is missing.
    """
    return Normalisation(
        checked("mean", about["mean"], float, limits=Range(-math.inf)),
        checked("std", about["std"], float, limits=Range(0, above=True)),
        checked("per_image", about["per_image"], bool),
        checked("channels", about.get("channels", "repeat"), str, choices=("repeat", "contrast", "imagenet")),
    )
