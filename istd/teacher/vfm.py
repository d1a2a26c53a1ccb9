"""The frozen vision foundation model by name: any timm ViT or pyramid, with weights or random on request.

This is the only module that imports timm, and it does so only where a model is asked for, so that commands without a
VFM start sooner. Without weights loading stops, because a randomly initialised teacher must be asked for by name.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from istd.pretrained import PACKAGES, PretrainedWeightsError, matched_in_order
from istd.teacher.frozen import FrozenVFM
from istd.teacher.pyramid import FrozenPyramid, Level
from istd.teacher.weights import REMEDY, FoundWeights, VFMWeightsError, find_weights


class FrozenViT(FrozenVFM):
    """A frozen ViT that turns images into the patch tokens of all its blocks.

    Args:
        model: a timm vision transformer.
        name: its timm name.
        pretrained: whether its weights are trained; tables and reports carry this.
        source: where the weights come from.
        embedding: also return the embedding output in front of the first block, as the release of semantic-priors does.
        norm: which token maps pass the model's final norm: `"all"`, or `"last"`: the last alone, as that release does.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        pretrained: bool,
        source: str = "",
        embedding: bool = False,
        norm: str = "all",
    ) -> None:
        if norm not in ("all", "last"):
            raise ValueError(f"`norm` must be 'all' or 'last', got {norm!r}.")
        mean, std, size = _input_of(model)
        fixed = None if getattr(model, "dynamic_img_size", False) else size
        super().__init__(model, name, pretrained, source, mean, std, fixed)
        self.embedding, self.norm = embedding, norm
        self.patch = int(np.ravel(self.model.patch_embed.patch_size)[0])
        self.widths = (int(self.model.embed_dim),) * (len(self.model.blocks) + int(embedding))

    @torch.no_grad()
    def maps(self, images: Tensor, enlarge: float = 1.0) -> list[Tensor]:
        """Patch tokens of all blocks as maps `(B, D, h, w)`; see `FrozenVFM.maps`."""
        x = self._enlarged(images, enlarge)
        height, width = (n // self.patch for n in x.shape[-2:])
        return [m.transpose(1, 2).reshape(len(m), -1, height, width) for m in self._blocks(x)]

    @torch.no_grad()
    def tokens(self, images: Tensor, size: int | None = None) -> Tensor:
        """Patch tokens of all blocks.

        Args:
            images: `(B, 1, H, W)` intensities in [0, 1].
            size: resize to `size x size` first; else sides are resized to the next multiple of the patch.

        Returns:
            `(B, K, N, D)`, block by block, prefix tokens removed, normalised by the model's final norm as `norm` says.
        """
        return torch.stack(self._blocks(self.prepared(images, (size, size) if size else None)), dim=1)

    def _blocks(self, x: Tensor) -> list[Tensor]:
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
        return list(maps)


def load_vfm(
    name: str, weights: Path | str | None = None, random: bool = False, embedding: bool = False, norm: str = "all"
) -> FrozenVFM:
    """Build a frozen VFM.

    Args:
        name: any timm ViT, for example `vit_small_plus_patch16_dinov3.lvd1689m`, or any timm model whose levels are
            maps, for example `tf_efficientnet_lite2`, whose weights are a package (extra `pretrained`).
        weights: local file with its weights, in timm's or the original DINOv3 key format; without it, an installed
            package, the hub's cache and the hub are tried in this order.
        random: use random weights, seeded by torch's generator.
        embedding: also return the embedding output of a ViT as a token map.
        norm: which token maps of a ViT are normalised, `"all"` or `"last"`.

    Raises:
        ValueError: for an unknown name, a model without spatial features, an option of ViTs for another model, or both
            `weights` and `random`.
        VFMWeightsError: if pretrained weights cannot be had, or do not fit the model.
    """
    import timm

    if weights is not None and random:
        raise ValueError("`--vfm-weights` and `--vfm-random` exclude each other; drop one.")
    if not timm.is_model(name):
        close = ", ".join(timm.list_models("*vit*dinov3*")[:6])
        raise ValueError(f"Unknown `vfm` {name!r}: not a timm model. DINOv3 models are {close}, ...")
    found = None if random else find_weights(name, weights, _repository(name))
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # not every model knows dynamic_img_size
        model = timm.create_model(name, pretrained=False, num_classes=0)
    levels = _levels_of(model, name)
    if found is not None:
        _load(model, found, name)
    source = "random" if found is None else found.source
    if levels is None:
        return FrozenViT(model, name, not random, source, embedding, norm)
    if embedding or norm != "all":
        raise ValueError(f"`embedding` and `norm` are options of ViTs, and {name!r} is none; leave them out.")
    mean, std, size = _input_of(model)
    fixed = size if model.pretrained_cfg.get("fixed_input_size", False) else None
    return FrozenPyramid(model, levels, name, not random, source, mean, std, fixed)


def _levels_of(model: Any, name: str) -> list[Level] | None:
    """The levels of a pyramid, or None for a ViT.

    Raises:
        ValueError: if the model gives no maps that lie on the image.
    """
    info = getattr(model, "feature_info", None) or ()
    if hasattr(model, "forward_intermediates"):
        if (
            hasattr(model, "blocks")
            and hasattr(model, "patch_embed")
            and isinstance(getattr(model, "embed_dim", None), int)
        ):
            return None
        levels = [Level(int(i["num_chs"]), int(i["reduction"])) for i in info]
        if len({level.stride for level in levels}) > 1:
            return levels
    raise ValueError(
        f"`vfm` {name!r} has no spatial features: a teacher needs the token maps of a vision transformer's blocks or "
        "the levels of a pyramid (timm's `features_only`)."
    )


def _input_of(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, int]]:
    """Mean, standard deviation and size `(H, W)` of the images that a timm model was trained on."""
    import timm

    config = timm.data.resolve_model_data_config(model)
    height, width = config["input_size"][-2:]
    return tuple(config["mean"]), tuple(config["std"]), (height, width)


def _load(model: nn.Module, weights: FoundWeights, name: str) -> None:
    """Load weights of which every tensor of the model is one; what they hold beside them (a head, say) stays out.

    Raises:
        VFMWeightsError: if a tensor of the model is missing, has another shape, or is not finite.
    """
    import timm

    source, given = weights.source, weights.tensors
    # timm's module of a model knows how to read its published files (renamed keys, resized position tables).
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        if weights.in_order:
            with torch.device("meta"):
                whole = timm.create_model(name, pretrained=False).state_dict()
            found = matched_in_order(given, whole, source)
        else:
            found = convert(dict(given), model) if convert is not None else given
        own = model.state_dict()
        fitting = {k for k, v in own.items() if k in found and found[k].shape == v.shape}
    except PretrainedWeightsError as error:
        raise VFMWeightsError(f"{error} {REMEDY}") from error
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
    """Names of what serves as a teacher: models whose weights are a package, then timm's plain ViTs, DINOv3 first."""
    import timm

    names = timm.list_models("vit_*", module="vision_transformer", pretrained=True)
    names = timm.list_models("vit_*dinov3*", pretrained=True) + names
    return list(dict.fromkeys([*PACKAGES, *names]))


def _repository(name: str) -> str | None:
    """The model's repository on the hub."""
    import timm

    repository = timm.get_pretrained_cfg(name).hf_hub_id
    if repository and repository.endswith("/"):
        return f"{repository}{name}"
    return repository or None
