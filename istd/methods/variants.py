"""Which hypergradient moves the sample weights of semantic-priors: as derived, or as published."""

from bilevel import HypergradientMethod, RankOneGaussNewton, Unrolled, sgd

VARIANTS = ("implicit", "gauss-newton", "published")


def hypergradient_variant(name: str, inner_lr: float) -> HypergradientMethod:
    """The hypergradient of semantic-priors as derived, or as published.

    Args:
        name: `"implicit"`: one exactly differentiated inner step, the derivative of the validation loss after it;
            `"gauss-newton"`: the rank-one form with the implicit function theorem's sign;
            `"published"`: the rank-one form with the published sign and scale.
        inner_lr: the inner learning rate.

    Raises:
        ValueError: for another name.
    """
    if name not in VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(VARIANTS)}, got {name!r}.")
    if name == "implicit":
        return Unrolled(sgd(inner_lr), steps=1)
    if name == "gauss-newton":
        return RankOneGaussNewton(warn=False)
    return RankOneGaussNewton(as_published=True, step_size=inner_lr, warn=False)
