"""Saving and loading students as safetensors, with all that inference needs in the file's own metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from bilevel.checkpoint import write_atomically
from istd.data.crops import Normalisation
from istd.data.sensor import SENSOR, SensorRange
from istd.predict import StudentPredictor
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
    content = save(tensors, metadata={"istd": json.dumps(about)})
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
        ValueError: if it was not written by `save_student`.

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
        student = create_student(about["student"], about["width"], about.get("in_channels"))
        student.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is no student written by this library ({type(error).__name__}: {error}).") from error
    sensor = SensorRange.from_dict(about.get("sensor", {}))
    constants = (about["mean"], about["std"], about["per_image"], about.get("channels", "repeat"))
    return StudentPredictor(student, Normalisation(*constants), device, sensor)
