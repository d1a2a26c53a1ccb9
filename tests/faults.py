"""Break runs on purpose, go on, and compare with the run that nothing happened to: `make faults`.

    python tests/faults.py --kills 100

SIGKILL at random moments of every phase (start and feature cache, training, the writing of a checkpoint, evaluation, a
grid and its workers), full disks, a folder that cannot be written, and two processes in one folder. After every fault
the same command line goes on with `--resume`; metrics and student must then be those of the uninterrupted run, bit for
bit. Prints what was done and what came of it; the exit code is 1 if anything was lost.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 4
RUN = (
    f"--preset smoke --student acm --width 0.25 --crop 32 --batch-size 4 --epochs {EPOCHS} --outer.every 2 "
    "--outer.steps 1 --updates.every 1 --evaluate-every 2 --vfm.name test_vit --vfm.random --vfm.size 32 --threads 1 "
    "--quiet"
).split()
PHASES = ("start", "training", "checkpoint", "evaluation", "grid")
PATIENCE = 600  # seconds for one command


def make_data(root: Path) -> Path:
    """A small set on disk, with points, masks and splits."""
    from istd.data.scenes import SceneConfig, synthetic_dataset

    scenes = synthetic_dataset(8, 4, 4, SceneConfig(size=64))
    for folder in ("images", "labels", "masks_centroid", "mode"):
        (root / folder).mkdir(parents=True)
    for split in ("train", "val", "test"):
        samples = getattr(scenes, split)
        (root / "mode" / f"{split}.txt").write_text("\n".join(s.name for s in samples))
        for s in samples:
            points = np.zeros(s.image.shape, bool)
            points[tuple(s.points.T)] = True
            for where, picture in (("images", s.image), ("labels", s.truth()), ("masks_centroid", points)):
                content = np.round(255 * picture.astype(np.float64)).astype(np.uint8)
                Image.fromarray(content).save(root / where / f"{s.name}.png")
    return root


def command(*words: object) -> list[str]:
    """A command line of `istd`."""
    return [sys.executable, "-m", "istd", *map(str, words)]


def start(words: list[str], limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command; `limit` bounds the size of every file that it writes, in bytes."""
    bound = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) if limit is not None else None
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, env=environment, preexec_fn=bound, start_new_session=True, **streams)


def finish(words: list[str], limit: int | None = None) -> tuple[int, str]:
    """Run a command to its end: exit code and output."""
    process = start(words, limit)
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def train(data: Path, out: Path) -> list[str]:
    """The command that starts a run in `out`, or goes on with the one that is there."""
    there = any((out / name).exists() for name in ("checkpoint.pt", "config.json"))
    return command("train", "--resume", "--out", out) if there else command("train", "--data", data, "--out", out, *RUN)


def ablate(data: Path, out: Path) -> list[str]:
    """A grid of two rows, two runs at a time."""
    flags = ["--data", data, "--out", out, *RUN, "--threads", 2, "--method", "no-vfm"]  # the last of two flags counts
    return command("ablate", *flags, "--rows", "plain", "--seeds", 0, "--jobs", 2)


def result(out: Path) -> dict[str, object]:
    """What a finished run amounts to: its metrics without its times, and its student's bytes."""
    metrics = json.loads((out / "metrics.json").read_text())
    return {
        **{key: value for key, value in metrics.items() if key not in ("seconds", "digest")},
        "student.safetensors": (out / "student.safetensors").read_bytes(),
    }


def results(out: Path, phase: str) -> list[dict[str, object]]:
    """Those of a run, or of both cells of a grid."""
    return [result(out / row / "seed0") for row in ("no-vfm", "plain")] if phase == "grid" else [result(out)]


def moment(phase: str, out: Path, process: subprocess.Popen[str], rng: np.random.Generator, seconds: float) -> None:
    """Wait for a random moment of a phase of a run that takes `seconds`, or for its end."""
    deadline = time.monotonic() + PATIENCE

    def until(condition: object) -> None:
        while process.poll() is None and not condition() and time.monotonic() < deadline:  # type: ignore[operator]
            time.sleep(0.002)

    if phase in ("start", "grid"):
        time.sleep(rng.uniform(0, seconds if phase == "grid" else 0.7 * seconds))
    elif phase == "training":
        until((out / "checkpoint.pt").exists)
        time.sleep(rng.uniform(0, 0.3 * seconds))
    elif phase == "checkpoint":
        until((out / "checkpoint.pt").exists)
        time.sleep(rng.uniform(0, 0.2 * seconds))
        until(lambda: any(out.glob(".bilevel-*.tmp")))
        time.sleep(rng.uniform(0, 0.005))
    else:
        until((out / "student.safetensors").exists)
        time.sleep(rng.uniform(0, 0.1 * seconds))


def victim(process: subprocess.Popen[str], phase: str, rng: np.random.Generator) -> int:
    """Whom to kill: the command itself, or in a grid one of its workers as often."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = children.read_text().split() if phase == "grid" and children.exists() else []
    return int(rng.choice(workers)) if workers and rng.uniform() < 0.5 else process.pid


def kill_and_go_on(phase: str, data: Path, out: Path, expected: object, seconds: float, seed: int) -> str:
    """One kill: `exact`, `came too late` (the run had ended), or what went wrong."""
    rng = np.random.default_rng(seed)
    again = ablate if phase == "grid" else train
    process = start(again(data, out))
    moment(phase, out, process, rng, seconds)
    late = process.poll() is not None
    if not late:
        os.kill(victim(process, phase, rng), signal.SIGKILL)
    process.communicate(timeout=PATIENCE)  # a grid whose worker was killed ends by itself
    if phase == "grid" or not late:
        code, output = finish(again(data, out))
        if code:
            return f"going on ended with exit code {code}: {output.strip().splitlines()[-1:]}"
        if "Traceback" in output:
            return "a traceback"
    return ("came too late" if late else "exact") if results(out, phase) == expected else "another result"


def full_disk(data: Path, out: Path, expected: object, limit: int) -> str:
    """A run whose files may not grow beyond `limit` bytes, and then on without that limit."""
    code, output = finish(train(data, out), limit)
    if code == 0:
        return "never full"
    if "Traceback" in output:
        return "a traceback"
    code, output = finish(train(data, out))
    return "exact" if code == 0 and results(out, "") == expected else f"lost: {output[-200:]}"


def read_only(data: Path, out: Path, expected: object) -> str:
    """A folder that cannot be written (for root, who may write anywhere: a file in the folder's place)."""
    if os.geteuid() == 0:
        out.write_text("")
    else:
        out.mkdir(mode=0o500)
    code, output = finish(command("train", "--data", data, "--out", out, *RUN))
    if code not in (1, 2) or "Traceback" in output:
        return f"exit code {code}: {output[-200:]}"
    out.unlink() if out.is_file() else out.chmod(0o700)
    code, output = finish(train(data, out))
    return "exact" if code == 0 and results(out, "") == expected else f"lost: {output[-200:]}"


def two_at_once(data: Path, out: Path, expected: object) -> str:
    """Two runs in one folder: one is refused, the other is as if alone."""
    both = [start(train(data, out)) for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in both]
    codes = sorted(process.returncode for process in both)
    if codes[0] != 0 or codes[1] not in (1, 2) or any("Traceback" in text for text in outputs):
        return f"exit codes {codes}"
    return "exact" if results(out, "") == expected else "another result"


def main(argv: list[str] | None = None) -> int:
    """Break, go on, compare, count."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--kills", type=int, default=100, help="[100]")
    p.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="of the kills [all]")
    p.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    p.add_argument("--kills-only", action="store_true", help="no full disks, read-only folders, or two at once")
    args = p.parse_args(argv)
    counts: Counter[tuple[str, str]] = Counter()

    def note(what: str, outcome: str) -> None:
        counts[what, outcome] += 1
        print(f"{what}: {outcome}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data, expected, seconds = make_data(root / "data"), {}, {}
        for phase in {"grid", "run"} if "grid" in args.phases else {"run"}:
            started = time.monotonic()
            code, output = finish((ablate if phase == "grid" else train)(data, root / phase))
            if code:
                print(output)
                return 1
            expected[phase], seconds[phase] = results(root / phase, phase), time.monotonic() - started
        for kill in range(args.kills):
            phase = args.phases[kill % len(args.phases)]
            kind = "grid" if phase == "grid" else "run"
            out = root / f"kill{kill}"
            note(
                f"SIGKILL, {phase}",
                kill_and_go_on(phase, data, out, expected[kind], seconds[kind], args.seed + kill),
            )
        if not args.kills_only:
            for limit in (2_000, 50_000, 200_000, 500_000, 1_000_000):
                note("full disk", full_disk(data, root / f"full{limit}", expected["run"], limit))
            note("read-only folder", read_only(data, root / "locked", expected["run"]))
            note("two runs in one folder", two_at_once(data, root / "two", expected["run"]))
    print()
    for (what, outcome), count in sorted(counts.items()):
        print(f"{count:4d}  {what}: {outcome}")
    good = {"exact", "came too late", "never full"}
    return int(any(outcome not in good for _, outcome in counts))


if __name__ == "__main__":
    sys.exit(main())
