"""What frozen features know of small targets: a semantic head from points alone, judged on test images.

    python benchmarks/semantic_head.py --data DIR [DIR ...] --out benchmarks/results/semantic-head.md

Of every test image the 30 most prominent bright spots; one is a target if it lies on a true mask (1 px dilated). Heads
are fitted to the points of train and val alone. Each is the same logistic regression on other features at the spot: a
pretrained network's, the same network's with random weights, a patch of 17 x 17 pixels with its contrast and the
image's statistics, and pairs of them. `--every N` takes every N-th image of each split.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pages import write_page
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from istd.data.dataset import Sample
from istd.data.layouts import load_folder
from istd.teacher import FrozenVFM, SemanticHead, SpatialFeatures, bright_spots, load_vfm
from istd.teacher.semantic_head import Spots, training_spots

Describe = Callable[[Sample, NDArray[np.int64]], Tensor]
PATCH = 8  # half side


def patches(sample: Sample, places: NDArray[np.int64]) -> Tensor:
    """`(n, 17 * 17 + 6)`: pixels, contrast to the patch's median in three units, mean, deviation and maximum."""
    image = sample.image
    padded = np.pad(image, PATCH, mode="reflect")
    rows = []
    for r, c in places.tolist():
        patch = padded[r : r + 2 * PATCH + 1, c : c + 2 * PATCH + 1]
        contrast = float(image[r, c] - np.median(patch))
        spread, own = max(float(patch.std()), 1e-3), max(float(image.std()), 1e-3)
        facts = [contrast, contrast / spread, contrast / own, image.mean(), image.std(), image.max()]
        rows.append(np.concatenate([patch.ravel(), facts]))
    return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(places), (2 * PATCH + 1) ** 2 + 6))


def of_network(vfm: FrozenVFM, enlarge: float) -> Describe:
    """Features of all levels at full resolution, of one image at a time."""

    def describe(sample: Sample, places: NDArray[np.int64]) -> Tensor:
        found = SpatialFeatures.compute(vfm, [sample.image], enlarge=enlarge, cell=1, progress=False)
        return found.points(0, places)

    return describe


def on_target(sample: Sample, places: NDArray[np.int64]) -> NDArray[np.bool_]:
    truth = sample.truth()
    if truth is None:
        raise SystemExit(f"error: image {sample.name!r} has no true mask, which the scores need")
    wide = ndimage.binary_dilation(truth, np.ones((3, 3), dtype=bool))
    return np.asarray(wide[places[:, 0], places[:, 1]])


def table(name: str, learn: Sequence[Sample], test: Sequence[Sample], describe: dict[str, Describe]) -> list[str]:
    """Rows of one set: AP and AUROC of every head, and what its floor keeps and removes."""
    spots = [training_spots(s.image, s.points) for s in learn]
    judged = [bright_spots(s.image) for s in test]
    truth = np.concatenate([on_target(s, p) for s, p in zip(test, judged, strict=True)])
    rows = []
    parts: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for kind, of in describe.items():
        begun = time.process_time()
        parts[kind] = (
            [of(s, p.places) for s, p in zip(learn, spots, strict=True)],
            [of(s, p) for s, p in zip(test, judged, strict=True)],
        )
        print(f"{name}: {kind}, {time.process_time() - begun:.0f} s", file=sys.stderr, flush=True)
    for kinds in [(k,) for k in parts] + [(k, "patch") for k in parts if k != "patch"]:
        own, other = ([torch.cat(x, dim=1) for x in zip(*(parts[k][i] for k in kinds), strict=True)] for i in (0, 1))
        rows.append(f"| {name} | {' + '.join(kinds)} | {scores(own, spots, torch.cat(other), truth)} |")
    counts = [(int(sum(s.target.sum() for s in spots)), sum(len(s.places) for s in spots)), (truth.sum(), len(truth))]
    (own_targets, own_spots), (targets, others) = counts
    about = (
        f"({len(learn)} + {len(test)} images, targets are {own_targets} of {own_spots} training spots and {targets} of "
        f"{others} test spots)"
    )
    return [f"| {name} | {about} | | | | | |", *rows]


def scores(own: list[Tensor], spots: list[Spots], other: Tensor, truth: NDArray[np.bool_]) -> str:
    begun = time.process_time()
    head = SemanticHead.fit_spots(own, spots)
    seconds = time.process_time() - begun
    z = (other @ head.weight).double().numpy() + head.bias
    kept = z >= head.floor(0.99)
    ap, auroc = average_precision_score(truth, z), roc_auc_score(truth, z)
    return (
        f"{ap:.3f} | {auroc:.4f} | {100 * kept[truth].mean():.1f} | {100 * (~kept)[~truth].mean():.1f} | {seconds:.0f}"
    )


def main() -> int:
    """Measure and print, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="sets with masks")
    parser.add_argument("--every", type=int, nargs="+", default=[1], help="take every N-th image; one N, or one a set")
    parser.add_argument("--vfm", default="tf_efficientnet_lite2")
    parser.add_argument("--enlarge", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0, help="of the random network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here")
    args = parser.parse_args()
    every = args.every * len(args.data) if len(args.every) == 1 else args.every
    if len(every) != len(args.data) or min(every) < 1:
        parser.error(f"--every takes one positive number, or one for each of the {len(args.data)} sets, got {every}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    trained, random = load_vfm(args.vfm), load_vfm(args.vfm, random=True)
    describe = {"patch": patches, "random": of_network(random, args.enlarge)}
    describe |= {"pretrained": of_network(trained, args.enlarge)}
    lines = [
        "| set | features | AP | AUROC | targets kept % | clutter removed % | s to fit |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder, step in zip(args.data, every, strict=True):
        data = load_folder(folder)
        lines += table(folder.name, (data.train + data.val)[::step], data.test[::step], describe)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        steps = " ".join(str(n) for n in every)
        note = (
            f"`python benchmarks/semantic_head.py --data {' '.join(p.name for p in args.data)} --every {steps} --vfm "
            f"{args.vfm} --enlarge {args.enlarge:g} --seed {args.seed} --out {args.out}`, weights of {trained.source}. "
            "Features at bright spots, heads fitted to the points of train and val, scored on the bright spots of test "
            "images; targets kept and clutter removed by a veto at the floor that 99 % of the held-out training "
            "targets exceed."
        )
        write_page(args.out, "A semantic head from points", note, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
