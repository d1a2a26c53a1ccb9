"""`istd import`: a published checkpoint becomes a student file."""

import argparse
import hashlib
from pathlib import Path

from istd.data.normalisation import NORMALISATIONS, Normalisation, grey_levels
from istd.inference.export import save_student
from istd.students import STUDENTS
from istd.students.published import match_published, read_checkpoint


def add(p: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    p.description = (
        "Read a checkpoint of released code (LESPS, BasicIRSTD, PAL, MSHNet, semantic-prior and the like) "
        "without running what it holds, check it tensor by tensor, and write DIR/student.safetensors, which "
        "`istd evaluate` and `istd detect` take."
    )
    p.add_argument("checkpoint", type=Path, help="file of torch.save (.pth, .pth.tar, .pkl) or .safetensors")
    p.add_argument("--student", choices=list(STUDENTS), required=True, help="the network (see `istd list students`)")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder to write to [imported/STUDENT]")
    p.add_argument("--overwrite", action="store_true", help="replace a student that is there")
    p.add_argument(
        "--normalisation",
        choices=list(NORMALISATIONS),
        help="how its training normalised images: by the constants that LESPS and BasicIRSTD give for the training "
        "set, or by ImageNet's (MSHNet)",
    )
    p.add_argument("--mean", type=float, help="instead: mean of its training images in grey levels, 0 to 255")
    p.add_argument("--std", type=float, help="their standard deviation in grey levels")
    p.set_defaults(run=import_checkpoint)


def import_checkpoint(args: argparse.Namespace) -> None:
    """Read, match, write, and say what became of which tensor.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        FileExistsError: if a student would be overwritten and `--overwrite` was not given.
        ValueError: if the checkpoint is not of this network, or its normalisation is neither known nor given.
    """
    normalisation = normalisation_of(args)
    path = (Path("imported") / args.student if args.out is None else args.out) / "student.safetensors"
    if path.exists() and not args.overwrite:
        raise FileExistsError(f"{path} is there already; choose another --out, or replace it with --overwrite.")
    state = read_checkpoint(args.checkpoint)
    match = match_published(state, args.student)
    if normalisation.channels != "repeat" and match.student.in_channels != 3:
        raise ValueError(
            f"`--normalisation {args.normalisation}` gives three channels, and this checkpoint takes "
            f"{match.student.in_channels}; name its training set, or give --mean and --std."
        )
    digest = hashlib.sha256(args.checkpoint.read_bytes()).hexdigest()
    source = {"file": args.checkpoint.name, "sha256": digest}
    save_student(path, match.student, args.student, 1.0, normalisation, imported=source)
    numbers = sum(state[name].numel() for name, _ in match.pairs)
    print(f"{len(match.pairs)} tensors ({numbers:,} numbers) of {args.checkpoint} agree with {args.student!r}: {path}")
    if match.skipped:
        print(f"{len(match.skipped)} tensors, which no output depends on or which are fixed, were left out:")
        print("  " + ", ".join(sorted({name.rsplit(".", 1)[0] for name in match.skipped})))


def normalisation_of(args: argparse.Namespace) -> Normalisation:
    """What the flags say of the checkpoint's input.

    Raises:
        ValueError: unless either `--normalisation`, or `--mean` and a positive `--std` were given.
    """
    own = args.mean is not None or args.std is not None
    if (args.normalisation is not None) == own:
        raise ValueError(
            "A checkpoint does not say how its images were normalised: give either `--normalisation` (one of "
            f"{', '.join(NORMALISATIONS)}), or `--mean` and `--std` in grey levels."
        )
    if args.normalisation is not None:
        return NORMALISATIONS[args.normalisation]
    if args.mean is None or args.std is None or args.std <= 0:
        raise ValueError(f"`--mean` and a positive `--std` belong together, got {args.mean} and {args.std}.")
    return grey_levels(args.mean, args.std)
