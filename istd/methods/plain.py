"""The two ends that every method lies between: pseudo-masks kept as they start, and true masks.

`plain` trains on the start masks and does nothing else: no teacher, no evolution, no weights, no outer problem. It is
the row that every cleverer method must beat in the same budget.

`full` trains on true masks: what points give away. It is a ceiling, not a competitor, and its row says so.
Validation, too, is by true masks.
"""

from istd.methods.registry import METHODS, Method

METHODS.register("plain", Method("the start masks, kept fixed: no teacher, no evolution, no weights", about=__doc__))
METHODS.register("full", Method("true masks: the supervised ceiling", truth=True, about=__doc__))
