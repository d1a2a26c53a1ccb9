"""How released code normalises its input: constants that a published checkpoint needs and does not hold."""

from istd.data.crops import Normalisation


def grey_levels(mean: float, std: float) -> Normalisation:
    """`(x - mean) / std` with constants in grey levels, 0 to 255, as published code states them."""
    return Normalisation(mean / 255, std / 255)


NORMALISATIONS: dict[str, Normalisation] = {
    "nuaa-sirst": grey_levels(101.06385040283203, 34.619606018066406),
    "nudt-sirst": grey_levels(107.80905151367188, 33.02274703979492),
    "irstd-1k": grey_levels(87.4661865234375, 39.71953201293945),
    "nudt-sirst-sea": grey_levels(43.62403869628906, 18.91838264465332),
    "sirst3": grey_levels(95.010, 41.511),
    "imagenet": Normalisation(0.0, 1.0, channels="imagenet"),
}
"""By training set, those of LESPS and BasicIRSTD, which others took over; `imagenet`, that of MSHNet."""
