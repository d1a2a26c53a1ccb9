"""The methods, one a file; a file's docstring says what the method is and where it departs from its source.

Every file of this folder is imported here, so a new method is a new file.
"""

from bilevel.registry import import_folder
from istd.methods.base import METHODS, Context, Method, OuterProblem, Parts
from istd.methods.outer import HYPERGRADIENTS, OuterSteps

import_folder(__name__, __path__)

__all__ = ["HYPERGRADIENTS", "METHODS", "Context", "Method", "OuterProblem", "OuterSteps", "Parts"]
