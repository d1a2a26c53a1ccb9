"""`istd list`: what there is to choose from."""

import argparse
import json
from typing import Any

import torch

from istd.methods import METHODS
from istd.students import STUDENTS, create_student, stages_of
from istd.teacher import vfm_names

SIZE = 256


def add(subparsers: Any) -> None:
    """Declare the flags."""
    p = subparsers.add_parser("list", help="list methods, students or VFMs", description="List what there is.")
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
    from torch.utils.flop_counter import FlopCounterMode

    rows = []
    for name in STUDENTS:
        # Shapes alone are counted: on the meta device nothing is computed.
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            network = create_student(name).eval()
            network(torch.zeros(1, network.in_channels, SIZE, SIZE))
        rows.append(
            {
                "name": name,
                "title": STUDENTS[name].title,
                "parameters": sum(p.numel() for p in network.parameters()),
                "GFLOPs": round(counter.get_total_flops() / 1e9, 2),
                "stages": [tuple(stage) for stage in stages_of(network)],
            }
        )
    return rows


def vfms() -> list[dict[str, Any]]:
    """Names of timm's vision transformers with pretrained weights on the hub."""
    return [{"name": name} for name in vfm_names()]
