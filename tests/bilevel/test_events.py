"""Hooks: Ctrl-C waits for the end of a step, and is given back afterwards."""

import signal
import threading

import pytest

from bilevel.checkpoint import load_checkpoint
from bilevel.events import StopBetweenSteps
from tests.bilevel.test_trainer import EpochBatches, make


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
    trainer = make(tmp_path, inner_batches=batches, hooks=[StopBetweenSteps()])
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
        make(tmp_path, hooks=[InterruptAtTheEnd(), StopBetweenSteps()]).fit(4)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_an_interrupt_after_the_last_step_is_not_lost(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, hooks=[InterruptAtTheEnd(), StopBetweenSteps()]).fit(1)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1


def test_ignored_interrupts_stay_ignored(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make(tmp_path, hooks=[InterruptAtTheEnd(), StopBetweenSteps()]).fit(2)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 2


def test_it_does_nothing_in_another_thread(tmp_path):
    trainer = make(tmp_path, hooks=[StopBetweenSteps()])
    thread = threading.Thread(target=trainer.fit, args=(1,))
    thread.start()
    thread.join()
    assert trainer.epoch == 1
