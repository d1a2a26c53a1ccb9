"""How far the published hypergradient of semantic-priors points from the exact one, on real batches.

    python benchmarks/directions.py --data DIR --vfm-random --out benchmarks/results/directions.md

Trains the teacher and student of a preset for some epochs and stops at several of them. At each stop, pairs of a
training and a validation batch are drawn, and `check_hypergradient` compares each variant with the exact derivative of
the validation loss after real inner steps, in float64, where finite differences confirm that derivative. `indirect` is
the part that goes through the inner variables, the one that makes the problem bilevel; `direct` is there only where the
outer loss is weighted by the weights that it learns, as published. Nothing is read from the test split.
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pages import add_run_flags, data_of, write_page

from bilevel import HypergradientCheck, Unrolled, check_hypergradient, sgd
from bilevel.modules import parameters_of, problem_from_modules
from istd.data.crops import Batch
from istd.data.layouts import Dataset
from istd.methods import HYPERGRADIENTS
from istd.objectives import StudentOuter
from istd.threads import use_threads
from istd.training.experiment import Experiment
from istd.training.presets import configure

COLUMNS = ("cosine", "indirect_cosine", "indirect_share")


def widened(batch: Batch) -> Batch:
    """The same batch in float64."""
    tokens = None if batch.tokens is None else batch.tokens.double()
    return batch._replace(image=batch.image.double(), target=batch.target.double(), tokens=tokens)


def batches(loader: Any, epoch: int, count: int) -> Iterator[Batch]:
    """The first batches of an epoch."""
    loader.set_epoch(epoch)
    for _, batch in zip(range(count), loader, strict=False):
        yield widened(batch)


def compare(experiment: Experiment, pairs: int, steps: int) -> dict[tuple[str, str], list[HypergradientCheck]]:
    """Checks of every variant on pairs of batches, by outer loss and variant."""
    trainer, c = experiment.trainer, experiment.settings
    lr, parts = c.optimisation.lr, experiment.parts
    network, weights = copy.deepcopy(parts.network).double().train(), copy.deepcopy(parts.weights).double()
    if trainer.epoch == 0:  # at equal weights nothing is told apart
        with torch.no_grad():
            next(weights.parameters()).normal_(0, 0.3, generator=torch.Generator().manual_seed(c.seed))
    w, a = parameters_of(network), parameters_of(weights)
    rule = sgd(lr)
    found: dict[tuple[str, str], list[HypergradientCheck]] = {}
    epoch = 10_000 + trainer.epoch  # crops that training has not seen
    drawn = zip(
        batches(trainer.inner_batches, epoch, pairs), batches(trainer.outer_batches, epoch, pairs), strict=False
    )
    for train, val in drawn:
        for weighted in (True, False):
            outer = StudentOuter(c.loss, weighted=weighted)
            problem = problem_from_modules(network, weights, trainer.inner_loss, outer)
            for name, method in {
                "published": HYPERGRADIENTS["rank-one-published"](lr, experiment.student, weights),
                "rank one, derived sign": HYPERGRADIENTS["rank-one"](lr, experiment.student, weights),
                "one exact step (ours)": Unrolled(rule, 1),
            }.items():
                check = check_hypergradient(
                    problem, w, a, [train], val, method, optimizer=rule, steps=steps, directions=1, step=1e-4
                )
                found.setdefault(("weighted" if weighted else "unweighted", name), []).append(check)
    return found


def rows(found: dict[tuple[str, str], list[HypergradientCheck]], state: str) -> list[str]:
    """Lines of the table: mean and deviation over pairs."""
    lines = []
    for (outer, name), checks in found.items():
        cells = []
        for column in COLUMNS:
            values = np.array([getattr(check, column) for check in checks])
            exact = outer == "unweighted" and column == "indirect_share"
            cells.append("no direct part" if exact else f"{values.mean():.3g} +- {values.std():.1g}")
        worst = max(check.finite_difference_error for check in checks)
        lines.append(f"| {state} | {outer} | {name} | " + " | ".join(cells) + f" | {worst:.0e} |")
    return lines


def report(dataset: Dataset, config: Any, stops: list[int], pairs: int, steps: int, progress: bool) -> str:
    """Train, stop, compare; the markdown table."""
    experiment = Experiment(config, dataset, progress=progress)
    lines = [
        "| epochs | outer loss | variant | cosine, total | cosine, indirect | indirect / direct | finite differences |"
    ]
    lines.append("|---" * 7 + "|")
    for stop in stops:
        if stop > experiment.trainer.epoch:
            experiment.trainer.fit(stop)
        lines += rows(compare(experiment, pairs, steps), str(stop))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_flags(p)
    p.add_argument("--width", type=float, help="of the student; default: the preset's")
    p.add_argument("--stops", type=int, nargs="+", default=[0, 10, 30], help="epochs after which to look [0 10 30]")
    p.add_argument("--pairs", type=int, default=6, help="pairs of batches at each stop [6]")
    p.add_argument("--steps", type=int, default=1, help="inner steps of the exact derivative [1]")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    use_threads(args.threads)
    data = data_of(args)
    changes = {"seed": args.seed, "vfm.random": args.vfm_random or not args.data}
    config = configure(args.preset, "semantic-priors", changes)
    config = config.changed(epochs=max(args.stops[-1], 1), width=args.width or config.width)
    text = report(data, config, sorted(args.stops), args.pairs, args.steps, progress=args.out is not None)
    print(text)
    if args.out:
        flags = [*(["--data DIR"] if args.data else []), *(["--vfm-random"] if args.vfm_random else [])]
        flags += [f"--width {config.width}", f"--stops {' '.join(map(str, args.stops))}", f"--pairs {args.pairs}"]
        flags += [f"--steps {args.steps}", f"--seed {args.seed}"]
        note = (
            f"`python benchmarks/directions.py {' '.join(flags)} --out FILE`: {data.name}, preset {config.preset}, "
            f"{config.student} x{config.width}, seed {config.seed}, {args.pairs} pairs of batches, mean and deviation; "
            f"exact derivative after {args.steps} inner step(s) of SGD at the preset's rate "
            f"{config.optimisation.lr:g}, float64."
        )
        write_page(args.out, "The published direction and the exact one", note, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
