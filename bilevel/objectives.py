"""Registries of inner and outer objectives, filled by plug-ins through the entry-point group `bilevel.plugins`.

An objective is a function `loss(inner_module, outer_module, batch) -> 0-d tensor`. A plug-in is a module that registers
some on import and names itself in its package metadata:

    [project.entry-points."bilevel.plugins"]
    istd = "istd.objectives"
"""

from importlib.metadata import entry_points

from bilevel.modules import ModuleLoss
from bilevel.registry import Registry

INNER_OBJECTIVES: Registry[ModuleLoss] = Registry("inner objective")
OUTER_OBJECTIVES: Registry[ModuleLoss] = Registry("outer objective")


def load_plugins() -> list[str]:
    """Import every installed plug-in and return their names."""
    found = entry_points(group="bilevel.plugins")
    for entry in found:
        entry.load()
    return sorted(entry.name for entry in found)


def resolve_objective(objective: ModuleLoss | str, registry: Registry[ModuleLoss]) -> ModuleLoss:
    """Return the function for a function or a registry name; unknown names are looked for in the plug-ins."""
    if not isinstance(objective, str):
        return objective
    if objective not in registry:
        load_plugins()
    return registry[objective]
