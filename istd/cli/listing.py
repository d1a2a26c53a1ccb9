"""`istd list`: what there is to choose from."""

import argparse
import json
from typing import Any

from istd.methods import METHODS
from istd.students import STUDENTS, stages_of
from istd.students.published import create_on_meta
from istd.teacher import vfm_names


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    p.description = "List what there is."
    p.add_argument("what", choices=("methods", "students", "vfms"))
    p.add_argument("name", nargs="?", help="with methods: a page on this one")
    p.add_argument("--json", action="store_true", help="machine-readable")
    p.set_defaults(run=show)


def show(args: argparse.Namespace) -> None:
    """Print the list, or the page on one method.

    Raises:
        ValueError: for an unknown method, or a name where there is no page.
    """
    if args.name is not None:
        if args.what != "methods":
            raise ValueError(f"`istd list {args.what}` takes no name, got {args.name!r}; only methods have a page.")
        print(METHODS[args.name].about)
        return
    rows = {"methods": methods, "students": students, "vfms": vfms}[args.what]()
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        name, *rest = row.values()
        print(f"{name:<18} " + "  ".join(str(x) for x in rest))


def methods() -> list[dict[str, Any]]:
    """Name and summary of every method."""
    return [{"name": name, "summary": METHODS[name].summary} for name in METHODS]


def students() -> list[dict[str, Any]]:
    """Name, title, parameters, GFLOPs (two per multiply-add) at 1 x C x 256 x 256, stages as (channels, stride)."""
    rows = []
    for name in STUDENTS:
        network = create_on_meta(name)
        rows.append(
            {
                "name": name,
                "title": STUDENTS[name].title,
                "parameters": sum(p.numel() for p in network.parameters()),
                "GFLOPs": STUDENTS[name].gflops,
                "stages": [tuple(stage) for stage in stages_of(network)],
            }
        )
    return rows


def vfms() -> list[dict[str, Any]]:
    """Names of timm's vision transformers with pretrained weights on the hub."""
    return [{"name": name} for name in vfm_names()]
