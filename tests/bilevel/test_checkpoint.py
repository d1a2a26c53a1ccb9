"""Checkpoints: nothing damaged or foreign is loaded, a failed load changes nothing, and no process disturbs another."""

import copy
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import bilevel
from bilevel import F2SA, ConjugateGradient, Implicit, RecomputedUnrolled, WarmStart, files
from bilevel.checkpoint import ResumeWarning, digest, load_checkpoint, plain, save_checkpoint, write_atomically
from bilevel.files import FileInUseError, exclusive, sweep
from tests.bilevel.test_trainer import make, network, same_state

ROOT = Path(__file__).resolve().parents[2]


class Counting:
    """A callback with a state."""

    def __init__(self, name=None):
        self.seen = 0
        if name is not None:
            self.name = name

    def on_inner_step(self, trainer, epoch, step):
        self.seen += 1

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"]


def fingerprint(trainer):
    """Every bit of the trainer and of the global generators."""
    return digest(trainer.state_dict())


# --- the file --------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused_or_harmless(tmp_path):
    """200 seeded flips over the file: what loads equals what was saved."""
    make(tmp_path).fit(1)
    path = tmp_path / "checkpoint.pt"
    good, content = path.read_bytes(), digest(load_checkpoint(path))
    rng, refused = np.random.default_rng(0), 0
    for _ in range(200):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        path.write_bytes(bad)
        try:
            assert digest(load_checkpoint(path)) == content
        except ValueError:
            refused += 1
    assert refused > 100


def test_a_flipped_weight_is_called_damage(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, {"weights": torch.full((64,), 1.0)})
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(8).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged: its content differs from the digest"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content",
    [
        {"a": [1, 2.5, "x", None, True, (3,)]},
        {"x": torch.tensor(1.0), "y": torch.arange(6).reshape(2, 3).T, "z": torch.ones(2, dtype=torch.bfloat16)},
        {"n": np.float64(0.5), "i": np.int64(3), 4: {"c": torch.ones(3, dtype=torch.complex64).conj()}},
        nn.BatchNorm1d(2).state_dict(),
        {"big": 2**127, "empty": torch.zeros(0), "bool": torch.tensor([True, False])},
        {
            "one": torch.empty_strided((1,), (0,)).fill_(2.0),
            "none": torch.ones(1, 1)[:, :0],
            "repeated": torch.ones(1).expand(3),
            "backwards": torch.arange(4).flip(0),
            "column": torch.ones(3, 2)[:, :1],
        },
    ],
    ids=["plain", "tensors", "numpy", "module", "extremes", "strides"],
)
def test_what_is_saved_is_what_is_loaded(tmp_path, content):
    save_checkpoint(tmp_path / "x.pt", content)
    found = load_checkpoint(tmp_path / "x.pt")
    assert found.keys() == content.keys()
    assert digest(found) == digest(plain(content))
    save_checkpoint(tmp_path / "y.pt", found)
    assert digest(load_checkpoint(tmp_path / "y.pt")) == digest(found)


def test_digests_tell_types_shapes_order_and_bits_apart():
    contents = [
        {"a": 1},
        {"a": 1.0},
        {"a": True},
        {"a": "1"},
        {"a": [1]},
        {"a": (1,)},
        {"a": torch.tensor(1)},
        {"a": torch.tensor([1])},
        {"a": torch.tensor(1.0)},
        {"a": torch.tensor(0.0)},
        {"a": torch.tensor(-0.0)},
        {"a": torch.tensor(float("nan"))},
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        {"ab": ""},
        {"a": "b"},
    ]
    assert len({digest(c) for c in contents}) == len(contents)


def test_what_could_not_be_read_again_is_refused_when_it_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"state\['labels'\]\[1\] is a ndarray"):
        save_checkpoint(tmp_path / "x.pt", {"labels": [1, np.ones(2)]})
    assert not list(tmp_path.iterdir())


def test_checkpoints_without_a_digest_load_with_a_note(tmp_path):
    torch.save({"format": 1, "epoch": 3}, tmp_path / "old.pt")
    with pytest.warns(ResumeWarning, match="carries no digest"):
        assert load_checkpoint(tmp_path / "old.pt")["epoch"] == 3
    torch.save({"format": 2, "epoch": 3}, tmp_path / "new.pt")
    with pytest.raises(ValueError, match="holds no state with its digest"):
        load_checkpoint(tmp_path / "new.pt")


def old_format(state, callbacks):
    """The state as the format before this one had it."""
    parts = {}
    for name, part in state["parts"].items():
        kind, _, rest = name.partition(".")
        parts[f"hook.{callbacks.index(rest)}" if kind == "callback" else name] = part
    kept = {k: v for k, v in state.items() if k not in ("walks", "generators", "parts")}
    return copy.deepcopy({**kept, "format": 1, "parts": parts, "outer_taken": 2})


def test_finished_runs_of_the_format_before_still_load(tmp_path):
    first = make(callbacks=[Counting("one"), Counting("two")])
    first.fit(2)
    torch.save(old_format(first.state_dict(), ["one", "two"]), tmp_path / "checkpoint.pt")
    second = make(tmp_path, callbacks=[Counting("one"), Counting("two")])
    with pytest.warns(ResumeWarning, match="no digest"):
        assert second.resume()
    same_state(first, second)
    assert second.epoch == 2
    third = make(tmp_path, callbacks=[Counting("one")])
    with pytest.warns(ResumeWarning), pytest.raises(ValueError, match="callback number 1"):
        third.resume()


def format_2(state):
    """The state as the last format had it: callbacks were called hooks."""
    parts = {name.replace("callback.", "hook."): part for name, part in state["parts"].items()}
    return copy.deepcopy({**state, "format": 2, "parts": parts})


def test_callbacks_of_format_2_are_found(tmp_path):
    first = make(tmp_path, callbacks=[Counting("one"), Counting("two")])
    first.fit(2)
    save_checkpoint(first.checkpoint, format_2(first.state_dict()))
    second = make(tmp_path, callbacks=[Counting("two"), Counting("one")])
    assert second.resume()
    same_state(first, second)
    assert [callback.seen for callback in second.callbacks] == [8, 8]


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        (lambda: Implicit(ConjugateGradient(3, damping=1.0), warn=False), {}),
        (lambda: Implicit(WarmStart(ConjugateGradient(3, damping=1.0)), warn=False), "the same"),
        (lambda: F2SA(bilevel.sgd(0.1), 2, growth=0.5), {"calls": 2, "companion": None}),
    ],
    ids=["stateless", "warm start", "f2sa"],
)
def test_what_methods_kept_in_earlier_versions_still_loads(tmp_path, method, kept):
    """An empty state of methods without one, and a companion that F2SA never had."""
    whole = make(method=method())
    whole.fit(4)
    first = make(tmp_path, method=method())
    first.fit(2)
    state = format_2(first.state_dict())
    if kept != "the same":
        state["parts"]["method"] = kept
    save_checkpoint(first.checkpoint, state)
    resumed = make(tmp_path, method=method())
    assert resumed.resume()
    resumed.fit(4)
    same_state(whole, resumed)


def test_runs_whose_products_were_not_kept_compare_them_once_more(tmp_path):
    method = RecomputedUnrolled(bilevel.sgd(0.1), 2, "forward")
    first = make(tmp_path, method=method)
    first.fit(2)
    state = format_2(first.state_dict())
    assert state["parts"].pop("method")["whole"]["settled"] == "forward"
    save_checkpoint(first.checkpoint, state)
    resumed = make(tmp_path, method=method)
    assert resumed.resume()
    assert resumed.state_dict()["parts"]["method"] == method.init()
    resumed.fit(4)
    assert resumed.state_dict()["parts"]["method"]["whole"]["settled"] == "forward"


# --- what does not fit -----------------------------------------------------------------------------------------------


def without(*path):
    def edit(state):
        for key in path[:-1]:
            state = state[key]
        del state[path[-1]]

    return edit


def with_(value, *path):
    def edit(state):
        for key in path[:-1]:
            state = state[key]
        state[path[-1]] = value(state[path[-1]]) if callable(value) else value

    return edit


BROKEN = {
    "no epoch": (without("epoch"), "lacks `epoch`"),
    "no history": (without("history"), "lacks `history`"),
    "epoch 99": (with_(99, "epoch"), "`epoch` = 99, but its `history` has 2"),
    "epoch -1": (with_(-1, "epoch"), "`epoch` = -1"),
    "epoch true": (with_(True, "epoch"), "`epoch` is a bool"),
    "no more history": (with_([], "history"), "`history` has 0"),
    "history of numbers": (with_([1, 2], "history"), "one for every finished epoch"),
    "no labels": (without("parts", "state.labels"), r"lack \['state.labels'\]"),
    "no inner": (without("parts", "inner"), r"lack \['inner'\]"),
    "no outer": (without("parts", "outer"), r"lack \['outer'\]"),
    "no inner optimizer": (without("parts", "inner_optimizer"), r"lack \['inner_optimizer'\]"),
    "no outer optimizer": (without("parts", "outer_optimizer"), r"lack \['outer_optimizer'\]"),
    "no scheduler": (without("parts", "inner_scheduler"), r"lack \['inner_scheduler'\]"),
    "empty scheduler": (with_({}, "parts", "inner_scheduler"), "'inner_scheduler' lacks"),
    "no callback": (without("parts", "callback.Counting"), r"lack \['callback.Counting'\]"),
    "stranger": (with_({}, "parts", "state.more"), r"hold \['state.more'\]"),
    "no weight": (without("parts", "inner", "0.weight"), r"`inner` lack \['0.weight'\]"),
    "half a weight": (with_(lambda x: x[:4], "parts", "inner", "0.weight"), r"inner.0.weight is a tensor.*\(4, 4\)"),
    "double weights": (with_(lambda x: x.double(), "parts", "inner", "0.weight"), r"inner.0.weight .*float64"),
    "a weight in words": (with_("0.5", "parts", "inner", "0.weight"), "is a str, not a tensor"),
    "other weights of samples": (with_(lambda x: x.half(), "parts", "outer", "logits"), "outer.logits .*float16"),
    "labels of another kind": (with_(lambda x: x.int(), "parts", "state.labels", "running_mean"), "torch.int32"),
    "half moments": (
        with_(lambda x: x.half(), "parts", "inner_optimizer", "state", 0, "exp_avg"),
        "inner_optimizer holds a exp_avg of torch.float16",
    ),
    "short moments": (
        with_(lambda x: x[:1], "parts", "inner_optimizer", "state", 0, "exp_avg_sq"),
        "inner_optimizer holds a exp_avg_sq",
    ),
    "no groups": (with_([], "parts", "inner_optimizer", "param_groups"), "groups of"),
    "moments of nobody": (with_({99: {}}, "parts", "inner_optimizer", "state"), "in none of its groups"),
    "no numpy": (without("random", "numpy"), r"lacks the generators \['numpy'\]"),
    "no walks": (with_({}, "walks"), r"`walks` lack \['inner', 'outer'\]"),
    "a walk before its start": (with_(-3, "walks", "outer", "position"), "walk 'outer'"),
    "parts in a list": (with_([], "parts"), "`parts` is a list"),
    "a part in words": (with_("x", "parts", "state.labels"), "part 'state.labels' is a str"),
    "another format": (with_(7, "format"), "format 7"),
    "another config": (with_({"lr": 2}, "config"), "lr=2"),
}


def full(folder=None):
    """A trainer with every kind of part."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return make(
        folder,
        model=model,
        callbacks=[Counting()],
        state={"labels": nn.BatchNorm1d(3)},
        inner_optimizer=optimizer,
        inner_scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 10),
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    full(folder).fit(2)
    return load_checkpoint(folder / "checkpoint.pt")


@pytest.mark.parametrize("name", BROKEN)
def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(tmp_path, saved, name):
    edit, message = BROKEN[name]
    state = copy.deepcopy(saved)
    edit(state)
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    trainer = full(tmp_path)
    before = fingerprint(trainer)
    with pytest.raises(ValueError, match=message):
        trainer.resume()
    assert fingerprint(trainer) == before


@pytest.mark.parametrize("error", [RuntimeError("no room"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_part_that_fails_while_it_loads_takes_the_others_back(saved, error):
    """The last part fails, when all others have been loaded."""

    class Failing(Counting):
        failing = True

        def load_state_dict(self, state):
            if self.failing:
                self.failing = False
                raise error
            super().load_state_dict(state)

    trainer = full()
    trainer.track("zz", Failing())
    state = copy.deepcopy(saved)
    state["parts"]["state.zz"] = {"seen": 5}
    before = fingerprint(trainer)
    expected = ValueError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected):
        trainer.load_state_dict(state)
    assert fingerprint(trainer) == before
    assert trainer.epoch == 0


def test_random_states_that_no_generator_takes_are_refused_and_change_nothing(saved):
    trainer = full()
    state = copy.deepcopy(saved)
    state["random"]["torch"] = state["random"]["torch"][:10]
    before = fingerprint(trainer)
    with pytest.raises(ValueError, match="the trainer is as it was"):
        trainer.load_state_dict(state)
    assert fingerprint(trainer) == before


# --- callbacks by name ------------------------------------------------------------------------------------------------


def test_callbacks_are_found_by_name_whatever_their_order(tmp_path):
    make(tmp_path, callbacks=[Counting("a"), Counting("b")]).fit(1)
    a, b = Counting("a"), Counting("b")
    second = make(tmp_path, callbacks=[b, a])
    a.seen = b.seen = -1
    assert second.resume()
    assert (a.seen, b.seen) == (4, 4)


def test_a_callback_given_later_is_found_too_and_a_missing_one_is_named(tmp_path):
    make(tmp_path, callbacks=[Counting()]).fit(1)
    later = make(tmp_path)
    with pytest.raises(ValueError, match=r"hold \['callback.Counting'\].*give them at construction"):
        later.resume()
    counting = Counting()
    later.callbacks.append(counting)
    assert later.resume()
    assert counting.seen == 4


def test_two_callbacks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="Two callbacks with a state are called 'Counting'"):
        make(callbacks=[Counting(), Counting()])


# --- files and processes ---------------------------------------------------------------------------------------------


def python(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
    )


KILLED = """
import os, signal, sys
from bilevel.files import write_atomically

def write(file):
    file.write(b"half of it")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

write_atomically(sys.argv[1], write)
"""


def test_what_a_killed_writer_left_is_swept_at_the_next_start_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swept", set())
    path = tmp_path / "state.pt"
    killed = python(KILLED, path)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    (tmp_path / ".theirs.tmp").write_text("not ours")
    write_atomically(path, lambda file: file.write(b"all"))
    assert not left.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".theirs.tmp", "state.pt"]


def test_the_file_of_a_living_writer_is_not_swept(tmp_path):
    def write(file):
        file.write(b"half")
        assert sweep(tmp_path) == []
        file.write(b" and half")

    write_atomically(tmp_path / "state.pt", write)
    assert (tmp_path / "state.pt").read_bytes() == b"half and half"


def test_a_file_swept_right_after_its_creation_is_made_again(tmp_path, monkeypatch):
    real, swept = files.tempfile.mkstemp, []

    def mkstemp(**options):
        handle, name = real(**options)
        if not swept:
            swept.append(name)
            Path(name).unlink()  # as another process does that finds it before it is locked
        return handle, name

    monkeypatch.setattr(files.tempfile, "mkstemp", mkstemp)
    write_atomically(tmp_path / "state.pt", lambda file: file.write(b"all"))
    assert (tmp_path / "state.pt").read_bytes() == b"all"
    assert len(swept) == 1


def test_the_longest_names_of_the_file_system_work(tmp_path):
    name = "x" * os.pathconf(tmp_path, "PC_NAME_MAX")
    write_atomically(tmp_path / name, lambda file: file.write(b"all"))
    assert (tmp_path / name).read_bytes() == b"all"
    trainer = make(checkpoint=tmp_path / name)
    trainer.fit(1)
    assert load_checkpoint(tmp_path / name)["epoch"] == 1


def test_the_folder_is_flushed_after_the_rename(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def fsync(handle):
        name = os.readlink(f"/proc/self/fd/{handle}") if Path("/proc/self/fd").is_dir() else ""
        synced.append((Path(name), (tmp_path / "state.pt").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "state.pt", lambda file: file.write(b"all"))
    assert [there for _, there in synced] == [False, True]
    assert synced[1][0] in (tmp_path, Path())


def test_folders_that_cannot_be_flushed_are_no_error_but_a_broken_disk_is(tmp_path, monkeypatch):
    real = os.fsync
    for number, raised in ((errno.EINVAL, False), (errno.EIO, True)):
        calls = []

        def fsync(handle, number=number, calls=calls):
            calls.append(handle)
            if len(calls) == 2:
                raise OSError(number, "no")
            real(handle)

        monkeypatch.setattr(os, "fsync", fsync)
        if raised:
            with pytest.raises(OSError, match="no"):
                write_atomically(tmp_path / "state.pt", lambda file: file.write(b"all"))
        else:
            write_atomically(tmp_path / "state.pt", lambda file: file.write(b"all"))


HOLDING = """
import sys, time
from pathlib import Path
from bilevel.files import exclusive

with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_cannot_train_on_one_file_and_a_killed_one_gives_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_WAIT", 0.0)
    trainer = make(tmp_path)
    other = python(HOLDING, trainer.checkpoint)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(FileInUseError, match=r"Another trainer is at work on .*checkpoint\.pt"):
            trainer.fit(1)
        assert trainer.epoch == 0
        assert not trainer.checkpoint.exists()
    finally:
        other.kill()
        other.communicate()
    trainer.fit(1)
    assert load_checkpoint(trainer.checkpoint)["epoch"] == 1


def test_two_trainers_of_one_process_cannot_either(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_WAIT", 0.0)

    class Nested:
        def on_epoch_end(self, trainer, epoch, metrics):
            make(tmp_path).fit(1)

    with pytest.raises(FileInUseError):
        make(tmp_path, callbacks=[Nested()]).fit(1)
    with exclusive(tmp_path / "checkpoint.pt"):
        pass  # given back


def test_a_trainer_whose_file_another_has_written_since_must_resume(tmp_path):
    first, second = make(tmp_path), make(tmp_path)
    first.fit(1)
    assert second.resume()
    second.fit(2)
    with pytest.raises(FileInUseError, match=r"since this one did; resume\(\)"):
        first.fit(3)
    assert first.resume()
    first.fit(3)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 3
