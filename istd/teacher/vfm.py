"""The frozen vision foundation model: any timm ViT, in eval mode for good, never trained and never saved.

This is the only module that imports timm, and it does so only where a model is asked for, so that commands without a
VFM start sooner. Weights come from the hub, from its local cache, or from a file of the user's; without any of them
loading stops, because a randomly initialised teacher must be asked for by name.
"""

import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

REMEDY = (
    "Three ways out: (1) pass --vfm-weights FILE with a local .safetensors or .pth (timm or original DINOv3 keys); "
    "(2) load the model once on a machine with network so that the hub's cache holds it, and copy the cache; "
    "(3) pass --vfm-random to train with a randomly initialised model, which every table will say."
)


class VFMWeightsError(RuntimeError):
    """Pretrained weights were asked for and could not be had; the message names the ways out."""


class FrozenVFM(nn.Module):
    """A frozen ViT that turns images into the patch tokens of all its blocks.

    Args:
        model: a timm vision transformer.
        name: its timm name.
        pretrained: whether its weights are trained; tables and reports carry this.
        embedding: also return the embedding output in front of the first block, as the release of semantic-priors does.
        norm: which token maps pass the model's final norm: `"all"`, or `"last"`: the last alone, as that release does.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, name: str, pretrained: bool, embedding: bool = False, norm: str = "all"
    ) -> None:
        import timm

        super().__init__()
        if norm not in ("all", "last"):
            raise ValueError(f"`norm` must be 'all' or 'last', got {norm!r}.")
        frozen: Any = model.eval().requires_grad_(False)
        self.model: Any = frozen
        self.name, self.pretrained, self.embedding, self.norm = name, pretrained, embedding, norm
        config = timm.data.resolve_model_data_config(model)
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.patch = int(np.ravel(self.model.patch_embed.patch_size)[0])
        self.fixed_size = None if getattr(self.model, "dynamic_img_size", False) else config["input_size"][-2:]

    @property
    def depth(self) -> int:
        """Number of token maps K that `tokens` returns."""
        return len(self.model.blocks) + int(self.embedding)

    @property
    def dim(self) -> int:
        """Channels D of a token."""
        return int(self.model.embed_dim)

    def train(self, mode: bool = True) -> "FrozenVFM":
        """Stay in eval mode: in train mode DINOv3 rescales its position encoding at random, call by call."""
        return super().train(False)

    @torch.no_grad()
    def tokens(self, images: Tensor, size: int | None = None) -> Tensor:
        """Patch tokens of all blocks.

        Args:
            images: `(B, 1, H, W)` intensities in [0, 1].
            size: resize to `size x size` first; else sides are resized to the next multiple of the patch.

        Returns:
            `(B, K, N, D)`, block by block, prefix tokens removed, normalised by the model's final norm as `norm` says.
        """
        target = (size, size) if size else tuple(-(-s // self.patch) * self.patch for s in images.shape[-2:])
        if self.fixed_size is not None:
            target = tuple(self.fixed_size)
        if tuple(images.shape[-2:]) != target:
            images = F.interpolate(images, target, mode="bilinear", align_corners=False, antialias=True)
        x = (images.expand(-1, 3, -1, -1) - self.mean) / self.std
        first: list[Tensor] = []
        hook = None
        if self.embedding:
            hook = self.model.blocks[0].register_forward_pre_hook(lambda _, inputs: first.append(inputs[0]))
        _, maps = self.model.forward_intermediates(x, norm=self.norm == "all", output_fmt="NLC")
        if self.norm == "last":
            maps = [*maps[:-1], self.model.norm(maps[-1])]
        if hook is not None:
            hook.remove()
            prefix = first[0].shape[1] - maps[0].shape[1] if first[0].ndim == 3 else 0
            maps = [first[0].flatten(1, -2)[:, prefix:], *maps]
        return torch.stack(maps, dim=1)


def load_vfm(
    name: str, weights: Path | str | None = None, random: bool = False, embedding: bool = False, norm: str = "all"
) -> FrozenVFM:
    """Build a frozen VFM.

    Args:
        name: any timm ViT name, for example `vit_small_plus_patch16_dinov3.lvd1689m`.
        weights: local file with its weights, in timm's or the original DINOv3 key format.
        random: use random weights, seeded by torch's generator.
        embedding: also return the embedding output as a token map.
        norm: which token maps are normalised, `"all"` or `"last"`.

    Raises:
        ValueError: for an unknown name, a model that is no ViT, or both `weights` and `random`.
        VFMWeightsError: if pretrained weights cannot be had, or the file does not fit the model.
    """
    import timm

    if weights is not None and random:
        raise ValueError("`--vfm-weights` and `--vfm-random` exclude each other; drop one.")
    if not timm.is_model(name):
        close = ", ".join(timm.list_models("*vit*dinov3*")[:6])
        raise ValueError(f"Unknown `vfm` {name!r}: not a timm model. DINOv3 models are {close}, ...")
    source = None if random else Path(weights) if weights is not None else _hub_file(name)
    given = read_weights(source) if source is not None else None
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # not every ViT knows dynamic_img_size
        model = timm.create_model(name, pretrained=False, num_classes=0)
    if not hasattr(model, "forward_intermediates") or not hasattr(model, "blocks"):
        raise ValueError(f"`vfm` {name!r} is not a vision transformer; SCAM needs the token maps of its blocks.")
    if given is not None:
        _load(model, given, name, source)
    return FrozenVFM(model, name, pretrained=not random, embedding=embedding, norm=norm)


def _load(model: nn.Module, weights: dict[str, Tensor], name: str, source: Path | None) -> None:
    """Load weights of which every tensor of the model is one; what the file holds beside them (a head, say) stays out.

    Raises:
        VFMWeightsError: if a tensor of the model is missing, has another shape, or is not finite.
    """
    # timm's module of a model knows how to read its published files (renamed keys, resized position tables).
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        found = convert(dict(weights), model) if convert is not None else weights
        own = model.state_dict()
        fitting = {k for k, v in own.items() if k in found and found[k].shape == v.shape}
    except Exception as error:
        raise VFMWeightsError(f"{source} does not fit the VFM {name!r} ({type(error).__name__}). {REMEDY}") from error
    if len(fitting) < len(own):
        first = next(k for k in own if k not in fitting)
        what = f"has the shape {tuple(found[first].shape)}" if first in found else "is missing"
        raise VFMWeightsError(
            f"{source} does not fit the VFM {name!r}: {len(fitting)} of the model's {len(own)} tensors match "
            f"({len(fitting) / len(own):.0%}), {first!r} {what}. {REMEDY}"
        )
    broken = next((k for k in own if not found[k].isfinite().all()), None)
    if broken is not None:
        raise VFMWeightsError(f"{source} holds values that are not finite in {broken!r}. {REMEDY}")
    model.load_state_dict({k: found[k] for k in own})


def vfm_names() -> list[str]:
    """Names of timm's plain vision transformers that have pretrained weights, the DINOv3 ones first."""
    import timm

    names = timm.list_models("vit_*", module="vision_transformer", pretrained=True)
    names = timm.list_models("vit_*dinov3*", pretrained=True) + names
    return list(dict.fromkeys(names))


def _hub_file(name: str) -> Path:
    """The model's weight file, from the hub's local cache or downloaded into it.

    Raises:
        VFMWeightsError: at once if it is not cached and the hub's name does not resolve, else if the download fails.
    """
    import timm

    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if not repository:
        raise VFMWeightsError(f"timm knows no pretrained weights for the VFM {name!r}. {REMEDY}")
    repository = repository if "/" not in repository or not repository.endswith("/") else repository + name
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
