"""What the frozen VFM costs in training: looked up from the cache, and run on every crop as published.

    python benchmarks/feature_cache.py --data DIR --vfm-random --out benchmarks/results/feature-cache.md

Times whole inner steps (batch, features, forward, backward, optimizer) of the teacher method, and within them the part
that asks for features, interleaved in one process; medians over steps. The cache is filled once, before training.
"""

import argparse
import sys
import time
from itertools import chain, repeat
from typing import Any

import numpy as np
import torch
from pages import add_run_flags, data_of, write_page

from istd.data.layouts import Dataset
from istd.precision import has_bfloat16
from istd.threads import use_threads
from istd.training.experiment import Experiment
from istd.training.presets import configure


class Stopwatch:
    """Wraps a token source and adds up its seconds."""

    def __init__(self, source: Any) -> None:
        self.source, self.seconds = source, 0.0

    def __call__(self, *args: Any) -> Any:
        """Ask the source, on the clock."""
        _wait()
        started = time.perf_counter()
        out = self.source(*args)
        _wait()
        self.seconds += time.perf_counter() - started
        return out


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def steps(experiment: Experiment, count: int) -> list[tuple[float, float]]:
    """Seconds of some inner steps, and of asking for features in them."""
    trainer, loader = experiment.trainer, experiment.trainer.inner_batches
    watch = Stopwatch(loader.tokens)  # type: ignore[attr-defined]
    loader.tokens, source = watch, loader.tokens  # type: ignore[attr-defined]
    bfloat16 = experiment.precision == "bfloat16"
    times = []
    try:
        batches = chain.from_iterable(repeat(loader))
        for _ in range(count):
            watch.seconds = 0.0
            _wait()
            started = time.perf_counter()
            batch = next(batches)
            with torch.autocast(experiment.device.type, torch.bfloat16, enabled=bfloat16):
                loss = trainer.inner_loss(experiment.parts.network, experiment.parts.weights, batch)
            trainer.inner_optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            trainer.inner_optimizer.step()
            _wait()
            times.append((time.perf_counter() - started, watch.seconds))
    finally:
        loader.tokens = source  # type: ignore[attr-defined]
    return times


def report(dataset: Dataset, config: Any, rounds: int, device: torch.device) -> str:
    """The markdown table."""
    cached = Experiment(config.changed(**{"vfm.view": "image"}), dataset, device, progress=False)
    crops = Experiment(config.changed(**{"vfm.view": "crop"}), dataset, device, progress=False)
    images, vision = [s.image for s in cached.context.samples], cached.parts.vision
    assert vision is not None
    vision.wholes(images[:1])  # warm
    started = time.perf_counter()
    vision.wholes(images)
    fill = time.perf_counter() - started
    found: dict[str, list[tuple[float, float]]] = {"cached, whole image": [], "every crop (published)": []}
    for _ in range(rounds + 1):
        for name, experiment in zip(found, (cached, crops), strict=True):
            found[name] += steps(experiment, 4)[1:]
    lines = ["| features | step, ms | of it for features, ms | share |", "|---|---|---|---|"]
    for name, times in found.items():
        whole, part = (1e3 * float(np.median([t[i] for t in times[3:]])) for i in (0, 1))
        lines.append(f"| {name} | {whole:.0f} | {part:.2f} | {100 * part / whole:.1f} % |")
    tokens = vision.features
    lines += [
        "",
        f"Filling the cache: {fill:.1f} s for {len(images)} images, once; it takes "
        f"{tokens.numel() * tokens.element_size() / 2**20:.0f} MB.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print, or write."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_run_flags(p)
    p.add_argument("--rounds", type=int, default=6)
    args = p.parse_args()
    use_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = data_of(args)
    config = configure(args.preset, "semantic-priors", {"vfm.random": args.vfm_random or not args.data})
    text = report(data, config, args.rounds, device)
    print(text)
    if args.out:
        precision = "bfloat16" if config.optimisation.precision == "bfloat16" and has_bfloat16(device) else "float32"
        note = (
            f"`python benchmarks/feature_cache.py --data DIR --out FILE`: {data.name}, preset {config.preset}, "
            f"{config.student} x{config.width}, {config.flat()['vfm.name']}, {config.optimisation.batch_size} crops of "
            f"{config.data.crop} px a step, "
            f"{precision}, {args.threads} CPU threads, {device.type}; medians."
        )
        write_page(args.out, "What the frozen VFM costs in training", note, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
