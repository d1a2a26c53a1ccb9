"""What the trainer promises beside training: a sound default, the right parameters, frozen layers, no half epochs."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import bilevel
from bilevel import (
    BilevelTrainer,
    HypergradientWarning,
    NextStep,
    RankOneGaussNewton,
    Schedule,
    TrainingDiverged,
    Unrolled,
)
from bilevel.reweighting import TableWeights, UniformWeights
from tests.bilevel.test_trainer import EpochBatches, inner_loss, make, network, outer_loss, same_state

ROOT = Path(__file__).resolve().parents[2]


# --- the default method ----------------------------------------------------------------------------------------------


def noisy_clusters(seed, noise=0.45):
    """Four Gaussian clusters in 10 dimensions, of whose 200 training labels a share is wrong."""
    g = torch.Generator().manual_seed(seed)
    centres = 1.2 * torch.randn(4, 10, generator=g)
    y = torch.arange(1040) % 4
    x = centres[y] + torch.randn(1040, 10, generator=g)
    wrong = torch.rand(200, generator=g) < noise
    given = torch.where(wrong, (y[:200] + torch.randint(1, 4, (200,), generator=g)) % 4, y[:200])
    return x, y, given


def readme_example(seed, weights, method_line):
    """The README's lines, with or without their method, and the accuracy on clean data that they lead to."""
    (code,) = [
        b for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S) if "Trainer" in b
    ]
    code = code.replace("    inner_optimizer", f"{method_line}    progress=False,\n    inner_optimizer")
    assert "method=" in code or not method_line
    code = code.replace("weights = TableWeights.per_sample(len(x))", "weights = chosen")
    code = code.replace("outer_optimizer=torch.optim.Adam(weights.parameters(), 0.3)", "outer_optimizer=outer_step")
    x, y, noisy = noisy_clusters(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 4))
    learned = list(weights.parameters())
    given = {
        "model": model,
        "x": x[:200],
        "noisy_labels": noisy,
        "x_clean": x[200:240],
        "y_clean": y[200:240],
        "chosen": weights,
        "outer_step": torch.optim.Adam(learned, 0.3) if learned else None,
    }
    exec(code, given)
    with torch.no_grad():
        return float((model(x[240:]).argmax(1) == y[240:]).float().mean())


def test_the_readme_example_as_it_stands_is_as_good_as_with_an_exact_method():
    """Means over two seeds; a test accuracy has a deviation below 0.02 (800 images), the gains are far above it."""
    scores = {"uniform": 0.0, "default": 0.0, "exact": 0.0}
    for seed in range(2):
        per_sample = [TableWeights.per_sample(200) for _ in range(2)]
        scores["uniform"] += readme_example(seed, UniformWeights(), "") / 2
        scores["default"] += readme_example(seed, per_sample[0], "") / 2
        exact = "    method=__import__('bilevel').Unrolled(__import__('bilevel').sgd(0.5)),\n"
        scores["exact"] += readme_example(seed, per_sample[1], exact) / 2
    assert scores["default"] > scores["uniform"] + 0.1
    assert scores["default"] == pytest.approx(scores["exact"], abs=1e-6)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_default_direction_is_the_derivative_of_the_step_the_trainer_takes_next(name):
    """Finite differences of the outer loss after the real next step, with a scheduler and warm moments, in float64."""

    def value(shift, collect=None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
        weights = TableWeights.per_sample(32).double()
        optimizer = OPTIMIZERS[name](model.parameters())
        data = [tuple(t.double() if t.is_floating_point() else t for t in b) for b in EpochBatches()]
        trainer = BilevelTrainer(
            model,
            weights,
            inner_loss=inner_loss,
            outer_loss=outer_loss,
            inner_batches=data,
            outer_batches=data,
            inner_optimizer=optimizer,
            outer_optimizer=torch.optim.SGD(weights.parameters(), 0.0),
            inner_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8),
            schedule=Schedule(every=9),
            progress=False,
        )
        trainer.fit(2)
        if collect is not None:
            phase = trainer._phase()
            collect.append(phase.step([data[1]], data[2], 0, 0).value["logits"].clone())
        with torch.no_grad():
            weights.logits += shift
        optimizer.zero_grad()
        inner_loss(model, weights, data[1]).backward()
        optimizer.step()
        return float(outer_loss(model, weights, data[2]).detach())

    direction = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h, found = 1e-3, []
    value(0 * direction, found)
    difference = (value(h * direction) - value(-h * direction)) / (2 * h)
    assert float(found[0] @ direction) == pytest.approx(difference, rel=1e-4)  # O(h^2) truncation


def test_an_optimizer_that_cannot_be_unrolled_asks_for_a_method():
    model = network()
    rmsprop = torch.optim.RMSprop(model.parameters())
    with pytest.raises(ValueError, match=r"next step of RMSprop cannot be differentiated.*Name a method"):
        make(model=model, method=None, inner_optimizer=rmsprop)
    assert isinstance(make(method=None).method, NextStep)
    assert make(model=model, method=Unrolled(bilevel.sgd(0.1)), inner_optimizer=rmsprop).epoch == 0


@pytest.mark.parametrize(
    "method", ["rank_one_gauss_newton", "rank_one_gauss_newton_as_published", RankOneGaussNewton()], ids=str
)
def test_rank_one_forms_say_what_they_are(method):
    with pytest.warns(HypergradientWarning, match="matrix of rank one") as said:
        make(method=method).fit(4)
    assert len(said) == 1
    make(method=RankOneGaussNewton(warn=False)).fit(2)


# --- the right parameters --------------------------------------------------------------------------------------------


def test_an_inner_optimizer_over_other_parameters_is_refused():
    model = network()
    with pytest.raises(ValueError, match=r"`inner_optimizer` holds 6 of 6 parameters that are not in `inner`"):
        make(model=model, inner_optimizer=torch.optim.SGD(network().parameters(), 0.1))
    copied = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"that are not in `inner` \(the first of shape \(8, 4\)\)"):
        make(model=model, inner_optimizer=torch.optim.SGD([*model.parameters(), *copied.parameters()], 0.1))


def test_an_inner_optimizer_that_lacks_parameters_is_refused():
    model = network()
    head = torch.optim.SGD(model[4].parameters(), 0.1)
    with pytest.raises(ValueError, match=r"lacks the trainable parameters \['0.weight', '0.bias', '1.weight'\] and 1"):
        make(model=model, inner_optimizer=head)
    model[:2].requires_grad_(False)
    make(model=model, inner_optimizer=head).fit(1)


def test_an_outer_optimizer_over_other_parameters_is_refused():
    model, weights = network(), TableWeights.per_sample(32)
    both = torch.optim.SGD([*weights.parameters(), *model.parameters()], 0.1)
    with pytest.raises(ValueError, match=r"`outer_optimizer` holds 6 of 7 .* `outer` or `shared`"):
        make(weights=weights, model=model, outer_optimizer=both)
    make(weights=weights, model=model, outer_optimizer=both, shared=model.parameters())
    other = TableWeights.per_sample(32)
    with pytest.raises(ValueError, match=r"`outer_optimizer` holds 1 of 1"):
        make(weights=weights, outer_optimizer=torch.optim.SGD(other.parameters(), 0.1))
    alone = torch.optim.SGD(weights.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"`outer_optimizer` lacks the trainable parameters \['0.weight'"):
        make(weights=weights, model=model, outer_optimizer=alone, shared=model.parameters())


def test_modules_spread_over_processes_are_refused_by_name(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network())
        with pytest.raises(ValueError, match="`inner` is wrapped in DistributedDataParallel"):
            make(model=wrapped)
    finally:
        torch.distributed.destroy_process_group()
    with pytest.raises(ValueError, match="`inner` is wrapped in DataParallel"):
        make(model=nn.Sequential(nn.DataParallel(nn.Linear(4, 2))))


# --- frozen layers ---------------------------------------------------------------------------------------------------


class Evaluates:
    """A callback that leaves the network in eval mode, as a validation does."""

    def on_epoch_end(self, trainer, epoch, metrics):
        trainer.inner.eval()


@pytest.mark.parametrize("callbacks", [[], [Evaluates()]], ids=["", "evaluating"])
def test_a_layer_frozen_in_eval_keeps_its_statistics(callbacks):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[1].eval()
    trainer = make(model=model, callbacks=callbacks)
    trainer.fit(2)
    trainer.fit(3)  # the second time after an evaluation has left everything in eval mode
    assert torch.equal(model[1].running_mean, torch.zeros(8))
    assert int(model[1].num_batches_tracked) == 0
    assert int(model[2].num_batches_tracked) == 3 * 4


def test_a_layer_frozen_after_the_trainer_was_made_is_frozen_too():
    model = network()
    trainer = make(model=model)
    model[1].eval()
    trainer.fit(1)
    assert int(model[1].num_batches_tracked) == 0


def test_a_network_left_in_eval_mode_as_a_whole_trains():
    model = network().eval()
    make(model=model).fit(1)
    assert int(model[1].num_batches_tracked) == 4


# --- numbers that are not finite -------------------------------------------------------------------------------------


class Huge(EpochBatches):
    """One value of 1e25 in epoch 3: its square is infinite in float32, the normalised output is not."""

    def __iter__(self):
        for i, (x, y, index) in enumerate(super().__iter__()):
            yield (x + 1e25 * (x == x.max()) if self.epoch == 3 and i == 3 else x), y, index


def test_a_buffer_that_is_not_finite_never_reaches_the_checkpoint(tmp_path):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    trainer = make(tmp_path, model=model, inner_batches=Huge())
    with pytest.raises(TrainingDiverged, match=r"buffer inner.0.running_var is not finite after epoch 3.*of epoch 2"):
        trainer.fit(5)
    fresh = make(tmp_path, model=nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)))
    assert fresh.resume()
    assert fresh.epoch == 2
    assert all(b.isfinite().all() for b in fresh.inner.buffers())


def test_buffers_that_are_infinite_from_the_start_are_meant_to_be():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.register_buffer("mask", torch.full((2,), -torch.inf))

    make(model=Masked()).fit(2)


def test_a_moment_that_overflows_stops_the_run_before_it_freezes_a_parameter():
    """A gradient of 1e25 squares to infinity: Adam would never move that parameter again, with finite weights."""

    def steep(model, weights, batch):
        return inner_loss(model, weights, batch) + 1e25 * (model[0].weight[0, 0] - model[0].weight[0, 0].detach())

    with pytest.raises(TrainingDiverged, match=r"exp_avg_sq of inner.0.weight in inner_optimizer is not finite"):
        make(inner_loss=steep).fit(1)


# --- after an exception ----------------------------------------------------------------------------------------------


class FailsOnce:
    def __init__(self, event):
        self.event, self.failed = event, False

    def _fail(self, epoch, step=1):
        if not self.failed and epoch == 2 and step == 1:
            self.failed = True
            raise RuntimeError("the disk of the log is full")

    def on_inner_step(self, trainer, epoch, step):
        if self.event == "inner step":
            self._fail(epoch, step)

    def on_outer_step(self, trainer, epoch, step, found):
        if self.event == "outer step":
            self._fail(epoch, step)

    def on_epoch_end(self, trainer, epoch, metrics):
        if self.event == "epoch end":
            self._fail(epoch)


@pytest.mark.parametrize("event", ["inner step", "outer step", "epoch end"])
def test_a_trainer_stopped_by_an_exception_refuses_to_go_on_and_resumes_exactly(tmp_path, event):
    whole = make()
    whole.fit(4)
    trainer = make(tmp_path, callbacks=[FailsOnce(event)])
    with pytest.raises(RuntimeError, match="disk of the log"):
        trainer.fit(4)
    with pytest.raises(RuntimeError, match=r"stopped in the middle of epoch 2.*resume\(\)"):
        trainer.fit(4)
    assert trainer.resume()
    trainer.fit(4)
    same_state(whole, trainer)


def test_without_a_checkpoint_the_epoch_can_be_trained_again_by_name():
    trainer = make(callbacks=[FailsOnce("inner step")])
    with pytest.raises(RuntimeError, match="disk of the log"):
        trainer.fit(3)
    with pytest.raises(RuntimeError, match=r"there is no checkpoint.*restart_epoch=True"):
        trainer.fit(3)
    assert len(trainer.fit(3, restart_epoch=True)) == 3


def test_an_exception_between_two_epochs_stops_nothing(tmp_path, monkeypatch):
    """A checkpoint that could not be written: the epoch is finished, and the next fit goes on exactly."""
    whole = make()
    whole.fit(4)
    trainer = make(tmp_path)
    trainer.fit(1)
    torch.manual_seed(5)
    assert trainer.resume()
    with monkeypatch.context() as patch:
        patch.setattr("bilevel.checkpoint.write_atomically", _no_space)
        with pytest.raises(OSError, match="full"):
            trainer.fit(4)
    trainer.fit(4)
    same_state(whole, trainer)


def _no_space(path, write):
    raise OSError("full")


# --- schedulers ------------------------------------------------------------------------------------------------------


def plateau(folder=None):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.05)
    return make(folder, model=model, inner_optimizer=optimizer, inner_scheduler=scheduler, method=None)


def test_a_plateau_scheduler_follows_the_loss_of_epochs_and_resumes_exactly(tmp_path):
    torch.manual_seed(0)
    whole = plateau()
    history = whole.fit(8)
    best, lr = float("inf"), 1.0
    for entry in history:  # torch's rule: halve after every epoch that is not 5 % better than the best one
        if entry["inner_loss"] < best * 0.95:
            best = entry["inner_loss"]
        else:
            lr *= 0.5
    assert lr < 1.0
    assert whole.inner_optimizer.param_groups[0]["lr"] == pytest.approx(lr)
    torch.manual_seed(0)
    plateau(tmp_path).fit(5)
    torch.manual_seed(0)
    second = plateau(tmp_path)
    assert second.resume()
    second.fit(8)
    same_state(whole, second)
