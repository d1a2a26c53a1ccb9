"""From what a sensor counts to intensities in [0, 1]: one rule for training, evaluation and detection.

How it plugs in: `read_image(path, sensor)` applies a `SensorRange`; `Dataset.sensor` says which one its images were
read with; an exported student carries it (`save_student(..., sensor=...)` writes `to_dict()`, `load_student` gives
`predictor.sensor` from `from_dict`), so `istd detect` and `istd evaluate` read images as training did.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

POLARITIES = ("white-hot", "black-hot")
_NEIGHBOURS = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


@dataclass(frozen=True)
class SensorRange:
    """Which raw values become 0 and 1, and which end is hot.

        x = clip((v - low) / (high - low), 0, 1),  and 1 - x for a black-hot sensor

    with v the raw value. With `low` and `high` given they hold for every frame, whatever its depth: radiometric frames
    stay comparable. Without, frames of 8 bits are divided by 255, and every deeper frame (16- or 32-bit integers,
    floating point) finds its own two values: percentiles of the frame, after each pixel has been limited to the range
    of its eight neighbours. A defective pixel has neighbours that are sound, so it does not count, however far it lies
    off; nor do defective clusters of up to 0.01 % of the pixels. On each side at most that share, and isolated peaks,
    saturate: a target of a few pixels keeps its contrast, which common display ranges such as 1 to 99 % would clip.

    Attributes:
        low: raw value that becomes 0, or None.
        high: raw value that becomes 1, or None.
        percentiles: of a frame deeper than 8 bits, where `low` and `high` are None.
        polarity: "white-hot" (hot is bright) or "black-hot", which is inverted, for all frames.

    Raises:
        ValueError: if only one of `low` and `high` is given, they do not rise, or a value is not finite.
    """

    low: float | None = None
    high: float | None = None
    percentiles: tuple[float, float] = (0.01, 99.99)
    polarity: str = "white-hot"

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise ValueError(f"`low` and `high` belong together, got {self.low} and {self.high}; give both or neither.")
        if self.low is not None and self.high is not None and not _rise(self.low, self.high):
            raise ValueError(f"The sensor's range must rise from LOW to HIGH, got {self.low:g} to {self.high:g}.")
        bottom, top = self.percentiles
        if not (_rise(bottom, top) and bottom >= 0 and top <= 100):
            raise ValueError(f"`percentiles` must rise within 0..100, got {self.percentiles}.")
        if self.polarity not in POLARITIES:
            raise ValueError(f"`polarity` must be one of {', '.join(POLARITIES)}, got {self.polarity!r}.")

    @property
    def fixed(self) -> bool:
        """Whether one range holds for all frames."""
        return self.low is not None

    def limits(self, raw: NDArray[np.generic]) -> tuple[float, float]:
        """The raw values that become 0 and 1 in a frame `(H, W)` deeper than 8 bits, or in any, if they are fixed."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        values = raw.astype(np.float64)
        sound = np.clip(
            values,
            ndimage.minimum_filter(values, footprint=_NEIGHBOURS, mode="mirror"),
            ndimage.maximum_filter(values, footprint=_NEIGHBOURS, mode="mirror"),
        )
        # Whole order statistics, so that in small frames the percentiles are the extremes themselves.
        low = np.percentile(sound, self.percentiles[0], method="lower")
        high = np.percentile(sound, self.percentiles[1], method="higher")
        return float(low), float(high)

    def __call__(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """Intensities of a frame.

        Args:
            raw: `(H, W)` of any real dtype.

        Returns:
            `(H, W)` float32 in [0, 1]; a frame of a single value becomes 0.

        Raises:
            ValueError: if a value is not finite, or the whole frame lies on one side of a fixed range.
        """
        if raw.dtype == np.uint8 and not self.fixed:  # of every value once
            shades = np.arange(256, dtype=np.float32) / np.float32(255)
            return np.asarray((1 - shades if self.polarity == "black-hot" else shades)[raw])
        smallest, largest = float(raw.min()), float(raw.max())
        if not (isfinite(smallest) and isfinite(largest)):
            raise ValueError("it holds values that are not finite; replace them in the frame")
        low, high = self.limits(raw)
        if self.fixed and (largest <= low or smallest >= high):
            raise ValueError(
                f"its values {smallest:g}..{largest:g} all lie on one side of the sensor's range {low:g}..{high:g}; "
                "give the range in the units of the files"
            )
        if high > low:
            values = (raw.astype(np.float64) - low) / (high - low)
        else:
            values = np.zeros(raw.shape)
        if self.polarity == "black-hot":
            values = 1.0 - values
        return np.clip(values, 0.0, 1.0).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the inverse of `from_dict`."""
        return asdict(self) | {"percentiles": list(self.percentiles)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "SensorRange":
        """The rule of `to_dict`.

        Raises:
            ValueError: for an unknown key, or a value of another type.
        """
        known = {"low", "high", "percentiles", "polarity"}
        if not isinstance(content, Mapping) or set(content) - known:
            raise ValueError(f"A sensor's range has the keys {', '.join(sorted(known))}, got {content!r}.")
        values = dict(content)
        try:
            for key in ("low", "high"):
                if values.get(key) is not None:
                    values[key] = float(values[key])
            if "percentiles" in values:
                bottom, top = values["percentiles"]
                values["percentiles"] = (float(bottom), float(top))
        except (TypeError, ValueError):
            raise ValueError(f"A sensor's range needs numbers, got {content!r}.") from None
        return cls(**values)

    def __str__(self) -> str:
        if self.fixed:
            what = f"{self.low:g}..{self.high:g} for every frame"
        else:
            what = "0..255 of 8-bit frames, percentiles {:g} and {:g} of deeper ones".format(*self.percentiles)
        return what + (", black-hot" if self.polarity == "black-hot" else "")


def _rise(low: float, high: float) -> bool:
    return isfinite(low) and isfinite(high) and low < high


SENSOR = SensorRange()
"""The rule where none is given."""
