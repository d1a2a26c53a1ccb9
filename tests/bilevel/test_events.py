"""Hooks: Ctrl-C and SIGTERM wait for the end of a step, and are given back whatever happens."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from bilevel.checkpoint import load_checkpoint
from bilevel.events import StopBetweenSteps
from tests.bilevel.test_trainer import EpochBatches, make, same_state


@pytest.fixture(autouse=True)
def handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class InterruptedBatches(EpochBatches):
    """Gives Ctrl-C while a batch is made; Python's own handler would raise right there."""

    def __init__(self, times):
        super().__init__()
        self.times, self.given, self.survived = times, 0, 0

    def __iter__(self):
        for batch in super().__iter__():
            if self.epoch == 2:
                for _ in range(self.times):
                    self.given += 1
                    signal.raise_signal(signal.SIGINT)
                    self.survived += 1
            yield batch


@pytest.mark.parametrize(("times", "survived"), [(1, 1), (2, 1)])
def test_the_first_interrupt_waits_for_the_step_and_a_second_one_does_not(tmp_path, times, survived):
    batches = InterruptedBatches(times)
    trainer = make(tmp_path, inner_batches=batches, callbacks=[StopBetweenSteps()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(4)
    assert (batches.given, batches.survived) == (times, survived)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class InterruptAtTheEnd:
    def on_epoch_end(self, trainer, epoch, metrics):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_between_epochs_keeps_the_finished_epoch(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[InterruptAtTheEnd(), StopBetweenSteps()]).fit(4)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_an_interrupt_after_the_last_step_is_not_lost(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[InterruptAtTheEnd(), StopBetweenSteps()]).fit(1)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_ignored_interrupts_stay_ignored(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make(tmp_path, callbacks=[InterruptAtTheEnd(), StopBetweenSteps()]).fit(2)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 2


def test_it_does_nothing_in_another_thread(tmp_path):
    trainer = make(tmp_path, callbacks=[StopBetweenSteps()])
    thread = threading.Thread(target=trainer.fit, args=(1,))
    thread.start()
    thread.join()
    assert trainer.epoch == 1


@pytest.fixture
def terminate():
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


class TerminateInTheMiddle(EpochBatches):
    def __init__(self, times=1):
        super().__init__()
        self.times, self.survived = times, 0

    def __iter__(self):
        for batch in super().__iter__():
            if self.epoch == 2:
                for _ in range(self.times):
                    signal.raise_signal(signal.SIGTERM)
                    self.survived += 1
            yield batch


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_ends_the_run_between_two_steps_as_an_interrupt_does(tmp_path, terminate, times):
    batches = TerminateInTheMiddle(times)
    with pytest.raises(SystemExit) as stopped:
        make(tmp_path, inner_batches=batches, callbacks=[StopBetweenSteps()]).fit(4)
    assert stopped.value.code == 143
    assert batches.survived == 1
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_process_that_gets_sigterm_saves_and_exits(tmp_path):
    """In a process of its own: the code of the exit, and a run that resumes exactly."""
    code = (
        "import sys; from pathlib import Path; from bilevel.events import StopBetweenSteps\n"
        "from tests.bilevel.test_events import TerminateInTheMiddle; from tests.bilevel.test_trainer import make\n"
        "make(Path(sys.argv[1]), inner_batches=TerminateInTheMiddle(), callbacks=[StopBetweenSteps()]).fit(4)"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False).returncode == 143
    whole = make()
    whole.fit(3)
    resumed = make(tmp_path)
    assert resumed.resume()
    assert resumed.epoch == 1
    resumed.fit(3)
    same_state(resumed, whole)


class RaisesAtTheEnd:
    def on_fit_end(self, trainer):
        raise RuntimeError("the plot failed")


class SeesTheEnd:
    seen = False

    def on_fit_end(self, trainer):
        self.seen = True


def test_a_callback_that_raises_in_the_end_keeps_no_other_from_ending(tmp_path, terminate):
    last = SeesTheEnd()
    with pytest.raises(RuntimeError, match="the plot failed"):
        make(tmp_path, callbacks=[RaisesAtTheEnd(), StopBetweenSteps(), last]).fit(1)
    assert last.seen
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_what_stopped_the_run_is_not_hidden_by_a_callback_that_raises_in_the_end(tmp_path):
    with pytest.raises(KeyboardInterrupt) as stopped:
        make(tmp_path, inner_batches=InterruptedBatches(1), callbacks=[RaisesAtTheEnd(), StopBetweenSteps()]).fit(4)
    assert "RaisesAtTheEnd.on_fit_end raised RuntimeError('the plot failed')" in stopped.value.__notes__[0]


def test_a_callback_that_raises_at_the_start_leaves_no_signal_captured(tmp_path, terminate):
    class RaisesAtTheStart:
        def on_fit_start(self, trainer):
            raise RuntimeError("no display")

    with pytest.raises(RuntimeError, match="no display"):
        make(tmp_path, callbacks=[StopBetweenSteps(), RaisesAtTheStart()]).fit(1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
