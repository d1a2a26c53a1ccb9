"""The methods, one a file; a file's docstring says what the method is and where it departs from its source."""

# The order of the imports is that of the listings.
from istd.methods import semantic_priors  # isort: skip
from istd.methods import diffuse_to_detect, fdep  # isort: skip
from istd.methods import plain, lesps, pal, mclc  # isort: skip
from istd.methods.registry import METHODS, Method
from istd.methods.variants import VARIANTS, hypergradient_variant

__all__ = [
    "METHODS",
    "VARIANTS",
    "Method",
    "diffuse_to_detect",
    "fdep",
    "hypergradient_variant",
    "lesps",
    "mclc",
    "pal",
    "plain",
    "semantic_priors",
]
