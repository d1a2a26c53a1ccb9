"""`istd pretrain`: weights for a small ViT from one's own unlabelled infrared images, where no hub can be reached."""

import argparse
from pathlib import Path

from safetensors.torch import save

from bilevel.checkpoint import write_atomically
from istd.cli.common import add_device_flags, resolve_device
from istd.cli.sets import add_data_flags, read_sets
from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.teacher.pretraining import Pretraining, pretrain


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    p.description = (
        "Contrastive learning of a timm ViT on the training images of a folder, with rendered scenes "
        "among them. The file it writes is used by istd train --vfm NAME --vfm-weights FILE. No label is read."
    )
    add_data_flags(p)
    p.set_defaults(points="none")  # no label is read
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights to write (.safetensors)")
    p.add_argument("--vfm", default="vit_tiny_patch16_224", help="timm name of the ViT [vit_tiny_patch16_224]")
    p.add_argument("--scenes", type=int, default=64, help="rendered scenes to mix in [64]")
    for name, kind in (("steps", int), ("batch_size", int), ("size", int), ("lr", float), ("seed", int)):
        default = getattr(Pretraining, name)
        p.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"[{default}]")
    add_device_flags(p)
    p.set_defaults(run=pretrain_command)


def pretrain_command(args: argparse.Namespace) -> None:
    """Train, write the weights, and say whether anything was learned.

    Raises:
        ValueError: if the file's name does not end in .safetensors, or there is nothing to learn from.
    """
    if args.out.suffix != ".safetensors":
        raise ValueError(f"`--out` must end in .safetensors, got {args.out}.")
    recipe = Pretraining(args.steps, args.batch_size, args.size, lr=args.lr, seed=args.seed)
    device = resolve_device(args)
    scenes = synthetic_dataset(train=max(args.scenes, 0), val=4, test=1, config=SceneConfig(), seed=args.seed)
    images, held_out = [s.image for s in scenes.train], [s.image for s in scenes.val]
    if args.data is not None:
        dataset = read_sets(args)
        images += [s.image for s in dataset.train]
        held_out = [s.image for s in dataset.val]
    found = pretrain(args.vfm, images, held_out, recipe, device, not args.quiet)
    write_atomically(args.out, lambda file: file.write(save(found.weights)))
    print(
        f"{args.vfm}: {len(images)} images, {recipe.steps} steps; of {len(held_out)} held-out images "
        f"{100 * found.found:.0f} % are found again by another crop ({100 * found.found_before:.0f} % before).\n"
        f"Use it: istd train --vfm {args.vfm} --vfm-weights {args.out}"
    )
