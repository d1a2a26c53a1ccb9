"""A run's vision foundation model: its settings, the frozen model, and its tokens of the run's images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from istd.schema import OneOf, Range, check
from istd.teacher.features import cached_tokens, crop_tokens, image_tokens
from istd.teacher.frozen import FrozenVFM
from istd.teacher.spatial_features import SpatialFeatures
from istd.teacher.vfm import load_vfm

DEFAULT_VFM = "vit_small_plus_patch16_dinov3.lvd1689m"

Images = Sequence[NDArray[np.float32]]


@dataclass(frozen=True)
class VFM:
    """The frozen vision foundation model of a teacher.

    Attributes:
        name: timm name of the model.
        weights: local weight file, or None for an installed package of weights, the hub's cache, or the hub.
        random: use random weights, labelled as such everywhere.
        view: what the model sees: the whole "image", once, whatever the crop; every "crop" (published); or "aligned":
            the whole image, enlarged, once, and of its features those that lie where the crop lies.
        size: side in pixels that it sees in the image view.
        enlarge: factor by which images are enlarged in the aligned view.
        tokens: "normed": every block's tokens pass the final norm, or "published": the embedding output is a map too,
            and the last block's tokens alone are normed.
    """

    name: str = DEFAULT_VFM
    weights: str | None = None
    random: bool = False
    view: Annotated[str, OneOf(("image", "crop", "aligned"))] = "image"
    size: Annotated[int, Range(16, 8192)] = 256
    enlarge: Annotated[float, Range(0.25, 8)] = 2.0
    tokens: Annotated[str, OneOf(("normed", "published"))] = "normed"

    def __post_init__(self) -> None:
        check(self)

    @property
    def spatial(self) -> bool:
        """Whether tokens lie where a crop's features lie, as fusion in space needs."""
        return self.view != "image"

    def load(self, device: torch.device) -> FrozenVFM:
        """The model, on its device.

        Raises:
            VFMWeightsError: if its weights cannot be had.
        """
        published = self.tokens == "published"
        norm = "last" if published else "all"
        return load_vfm(self.name, self.weights, self.random, embedding=published, norm=norm).to(device)


@dataclass(frozen=True, eq=False)
class Vision:
    """A frozen model and what it sees in the labelled images of a run.

    Attributes:
        settings: of the model.
        model: the model.
        features: of the run's images: tokens `(N, K, T, D)` in half precision on the CPU, or maps in the aligned view.
        stride: sides of images are padded to multiples of it in prediction.
        device: where the model runs.
        progress: show a bar where features are computed.
    """

    settings: VFM
    model: FrozenVFM
    features: Tensor | SpatialFeatures
    stride: int
    device: torch.device
    progress: bool

    @classmethod
    def open(cls, settings: VFM, images: Images, stride: int, device: torch.device, progress: bool) -> "Vision":
        """Load the model and compute its features of the run's images."""
        model = settings.load(device)
        features = _features(settings, model, images, device, progress)
        return cls(settings, model, features, stride, device, progress)

    def loader_arguments(self, crop: int) -> dict[str, Any]:
        """How a `CropLoader` for crops of this side gets its tokens."""
        if self.settings.view == "crop":
            return {"tokens": crop_tokens(self.model)}
        if isinstance(self.features, Tensor):
            return {"tokens": cached_tokens(self.features)}
        features = self.features
        return {"aligned_tokens": lambda index, places: features.tokens(index, places, crop)}

    def whole(self, i: int) -> Tensor:
        """Tokens of labelled image i, as the teacher takes them in prediction: `(1, K, ...)`, float32."""
        return self._whole(self.features, i)

    def wholes(self, images: Images) -> Callable[[int], Tensor]:
        """The same for other images."""
        features = _features(self.settings, self.model, images, self.device, self.progress)
        return lambda i: self._whole(features, i)

    def _whole(self, features: Tensor | SpatialFeatures, i: int) -> Tensor:
        one = features[i][None] if isinstance(features, Tensor) else features.whole(i, self.stride)
        return one.to(self.device).float()

    def descriptors(self, further: Images = ()) -> NDArray[np.float64]:
        """`(N + n, D)`: the mean token of the last depth of every image, and of further ones.

        Raises:
            ValueError: in the aligned view, which keeps no tokens of whole images.
        """
        if not isinstance(self.features, Tensor):
            raise ValueError("`clusters.descriptors` 'vfm' needs `vfm.view` 'image' or 'crop'; use 'statistics'.")
        parts = [self.features]
        if further:
            parts.append(image_tokens(self.model, further, self.settings.size, self.device, self.progress))
        return np.asarray(torch.cat([t[:, -1].float().mean(1) for t in parts]).double().numpy())


def _features(
    settings: VFM, model: FrozenVFM, images: Images, device: torch.device, progress: bool
) -> Tensor | SpatialFeatures:
    if settings.view == "aligned":
        return SpatialFeatures.compute(model, images, device, enlarge=settings.enlarge, progress=progress)
    return image_tokens(model, images, settings.size, device, progress)
