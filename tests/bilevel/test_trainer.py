"""BilevelTrainer: what it trains, what it leaves alone, exact resume, and how it fails."""

import errno
import time
from importlib.metadata import entry_points

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bilevel
from bilevel import (
    F2SA,
    MESO,
    BilevelTrainer,
    ConjugateGradient,
    Implicit,
    RankOneGaussNewton,
    Schedule,
    TrainingDiverged,
    Unrolled,
    WarmStart,
)
from bilevel.checkpoint import load_checkpoint, save_checkpoint, write_atomically
from bilevel.reweighting import TableWeights, UniformWeights


class EpochBatches:
    """Shuffled batches that depend on the epoch alone."""

    def __init__(self, n=32, size=8, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 4, generator=g)
        self.y = (self.x[:, 0] > 0).long()
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        g = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        order = torch.randperm(len(self.x), generator=g)
        for i in range(0, len(order), self.size):
            index = order[i : i + self.size]
            yield self.x[index], self.y[index], index


def inner_loss(model, weights, batch):
    x, y, index = batch
    return (weights(index) * F.cross_entropy(model(x), y, reduction="none")).mean()


def outer_loss(model, weights, batch):
    x, y, _ = batch
    return F.cross_entropy(model(x), y)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))


def make(tmp_path=None, weights=None, model=None, **changes):
    torch.manual_seed(0)
    model = model if model is not None else network()
    weights = weights if weights is not None else TableWeights.per_sample(32)
    settings = {
        "inner_loss": inner_loss,
        "outer_loss": outer_loss,
        "inner_batches": EpochBatches(),
        "outer_batches": EpochBatches(16, seed=1),
        "inner_optimizer": torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2),
        "outer_optimizer": torch.optim.Adam(weights.parameters(), 1e-1) if list(weights.parameters()) else None,
        "method": Unrolled(bilevel.sgd(0.1)),
        "schedule": Schedule(every=2, steps=2),
        "checkpoint": tmp_path / "checkpoint.pt" if tmp_path is not None else None,
        "progress": False,
    } | changes
    return BilevelTrainer(model, weights, **settings)


def same_state(a, b):
    x, y = a.state_dict(), b.state_dict()
    for name in x["parts"]:
        for (k, v), w in zip(_flat(x["parts"][name]), _flat(y["parts"][name]), strict=True):
            assert torch.equal(torch.as_tensor(v), torch.as_tensor(w[1])), (name, k)
    assert x["history"] == y["history"]


def _flat(state, prefix=""):
    if isinstance(state, dict):
        return [leaf for k, v in state.items() for leaf in _flat(v, f"{prefix}.{k}")]
    if isinstance(state, (list, tuple)):
        return [leaf for i, v in enumerate(state) for leaf in _flat(v, f"{prefix}.{i}")]
    return [(prefix, state)] if state is not None and not isinstance(state, str) else []


def test_it_trains_and_moves_the_weights():
    trainer = make()
    history = trainer.fit(20)
    assert history[-1]["inner_loss"] < 0.6 * history[0]["inner_loss"]
    assert float(trainer.outer.logits.detach().abs().max()) > 0
    assert [i + 1 for i, h in enumerate(history) if "outer_loss" in h] == list(range(2, 21, 2))


def test_outer_variables_are_constants_of_an_inner_step_and_variables_again_after_it():
    seen = []

    def watched(model, weights, batch):
        seen.append((weights.logits.requires_grad, weights.logits.grad is None))
        if len(seen) == 3:
            raise RuntimeError("stop here")
        return inner_loss(model, weights, batch)

    trainer = make(inner_loss=watched)
    with pytest.raises(RuntimeError, match="stop here"):
        trainer.fit(1)
    assert seen[0] == (False, True)
    assert trainer.outer.logits.requires_grad


def test_uniform_weights_are_an_ordinary_training_loop():
    """Bit for bit what a hand-written loop does."""
    trainer = make(weights=UniformWeights(), outer_loss=None, outer_batches=None)
    trainer.fit(3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    batches = EpochBatches()
    for epoch in (1, 2, 3):
        batches.set_epoch(epoch)
        for x, y, _ in batches:
            optimizer.zero_grad()
            (torch.ones(len(y)) * F.cross_entropy(model(x), y, reduction="none")).mean().backward()
            optimizer.step()
    for a, b in zip(model.state_dict().values(), trainer.inner.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_autocast_steps_in_bfloat16_and_keeps_everything_else_in_float32():
    """The inner loss sees bfloat16 outputs; variables, states and the hypergradient's evaluations are float32."""
    seen = []

    def watched(model, weights, batch):
        x, y, index = batch
        z = model(x)
        seen.append((torch.is_autocast_enabled("cpu"), z.dtype))
        return (weights(index) * F.cross_entropy(z.float(), y, reduction="none")).mean()

    trainer = make(inner_loss=watched, autocast=torch.bfloat16, schedule=Schedule(every=1, steps=1))
    history = trainer.fit(6)
    assert seen[:4] == [(True, torch.bfloat16)] * 4
    assert (False, torch.float32) in seen
    assert all(p.dtype == torch.float32 for p in trainer.inner.parameters())
    plain = make(schedule=Schedule(every=1, steps=1)).fit(6)
    assert history[-1]["inner_loss"] == pytest.approx(plain[-1]["inner_loss"], rel=0.05)
    assert history[-1]["inner_loss"] != plain[-1]["inner_loss"]


def test_autocast_in_float16_is_refused():
    with pytest.raises(ValueError, match="float16 needs loss scaling"):
        make(autocast=torch.float16)


def test_an_outer_step_leaves_inner_variables_and_buffers_alone():
    trainer = make()
    before = {k: v.clone() for k, v in trainer.inner.state_dict().items()}
    batch = next(iter(trainer.inner_batches))
    trainer.outer_step([batch], next(iter(trainer.outer_batches)))
    assert all(torch.equal(before[k], v) for k, v in trainer.inner.state_dict().items())
    assert float(trainer.outer.logits.detach().abs().max()) > 0


def test_shared_parameters_follow_the_direct_gradient_of_the_outer_loss():
    torch.manual_seed(0)
    model, weights = nn.Linear(4, 2), TableWeights.per_sample(32)
    batches, validation = EpochBatches(), EpochBatches(16, seed=1)
    trainer = BilevelTrainer(
        model,
        weights,
        inner_loss=inner_loss,
        outer_loss=outer_loss,
        inner_batches=batches,
        outer_batches=validation,
        inner_optimizer=torch.optim.SGD(model.parameters(), 0.1),
        outer_optimizer=torch.optim.SGD([*weights.parameters(), *model.parameters()], 0.5),
        method=RankOneGaussNewton(warn=False),
        shared=model.parameters(),
        progress=False,
    )
    batch = next(iter(validation))
    before = model.weight.detach().clone()
    (gradient,) = torch.autograd.grad(outer_loss(model, weights, batch), model.weight)
    trainer.outer_step([next(iter(batches))], batch)
    assert torch.allclose(model.weight.detach(), before - 0.5 * gradient, atol=1e-7)


@pytest.mark.parametrize(
    "method",
    [RankOneGaussNewton(warn=False), Unrolled(bilevel.sgd(0.1)), "identity"],
    ids=["rank-one", "unrolled", "identity"],
)
def test_shared_parameters_move_without_learned_weights_too(method):
    """With uniform weights the outer step is a plain step on the outer loss, where the method evaluates it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    batches, validation = EpochBatches(), EpochBatches(16, seed=1)
    trainer = BilevelTrainer(
        model,
        UniformWeights(),
        inner_loss=inner_loss,
        outer_loss=outer_loss,
        inner_batches=batches,
        outer_batches=validation,
        inner_optimizer=torch.optim.SGD(model.parameters(), 0.1),
        outer_optimizer=torch.optim.SGD(model.parameters(), 0.5),
        method=method,
        shared=model.parameters(),
        progress=False,
    )
    batch, clean = next(iter(batches)), next(iter(validation))
    start = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    point = start
    if isinstance(method, Unrolled):
        loss = F.cross_entropy(torch.func.functional_call(model, start, batch[0]), batch[1])
        slopes = torch.autograd.grad(loss, list(start.values()))
        point = {k: v - 0.1 * g for (k, v), g in zip(start.items(), slopes, strict=True)}
    loss = F.cross_entropy(torch.func.functional_call(model, point, clean[0]), clean[1])
    grads = torch.autograd.grad(loss, list(point.values()))
    trainer.outer_step([batch], clean)
    for (name, p), g in zip(model.named_parameters(), grads, strict=True):
        assert torch.allclose(p, start[name] - 0.5 * g, atol=1e-6), name


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, stop):
    whole = make()
    whole.fit(6)
    first = make(tmp_path)
    first.fit(stop)
    torch.manual_seed(12345)  # whatever happened to the generators in between
    second = make(tmp_path)
    assert second.resume()
    second.fit(6)
    same_state(whole, second)


@pytest.mark.parametrize(
    "make_method",
    [
        lambda: Implicit(WarmStart(ConjugateGradient(2, damping=1.0)), warn=False),
        lambda: MESO(penalty=3.0),
        lambda: F2SA(bilevel.sgd(0.1), 2, growth=0.5),
    ],
    ids=["warm start", "meso", "f2sa"],
)
def test_methods_that_remember_resume_exactly_too(tmp_path, make_method):
    whole = make(method=make_method())
    whole.fit(6)
    make(tmp_path, method=make_method()).fit(4)
    resumed = make(tmp_path, method=make_method())
    assert resumed.resume()
    resumed.fit(6)
    same_state(whole, resumed)


def test_inner_variables_that_a_penalty_method_has_moved_are_adopted():
    trainer = make(method=F2SA(bilevel.sgd(0.1), 2))
    before = [p.detach().clone() for p in trainer.inner.parameters()]
    seen = []

    class Watch:
        def on_outer_step(self, trainer, epoch, step, found):
            seen.append(found.inner)

    trainer.callbacks.append(Watch())
    batch = next(iter(EpochBatches()))
    trainer.outer_step([batch], batch)
    assert all(torch.equal(p, seen[0][name]) for name, p in trainer.inner.named_parameters())
    assert not all(torch.equal(p, old) for p, old in zip(trainer.inner.parameters(), before, strict=True))


def test_a_hypergradient_that_is_not_finite_stops_the_run_before_it_is_applied():
    def broken(model, weights, batch):
        return outer_loss(model, weights, batch) * (batch[0].sum() * 0 + float("nan"))

    trainer = make(outer_loss=broken, describe_batch=lambda batch: "number seven")
    before = [p.detach().clone() for p in trainer.outer.parameters()]
    with pytest.raises(TrainingDiverged, match=r"outer\['logits'\].*number seven.*no variable was changed"):
        trainer.fit(2)
    assert all(torch.equal(x, y) for x, y in zip(before, trainer.outer.parameters(), strict=True))


def test_lists_of_batches_are_walked_through_across_outer_phases(tmp_path):
    seen = []

    def outer(model, weights, batch):
        seen.append(int(batch[2][0]))
        return outer_loss(model, weights, batch)

    batches = [(torch.randn(4, 4), torch.zeros(4).long(), torch.full((4,), i)) for i in range(5)]
    make(outer_loss=outer, outer_batches=batches).fit(6)
    assert seen == [0, 1, 2, 3, 4, 0]


def test_resume_with_another_config_names_the_difference(tmp_path):
    make(tmp_path, config={"lr": 1}).fit(1)
    with pytest.raises(ValueError, match=r"lr=1, this run has lr=2"):
        make(tmp_path, config={"lr": 2}).resume()


def test_nan_stops_the_run_names_the_batch_and_keeps_the_checkpoint(tmp_path):
    class Poisoned(EpochBatches):
        def __iter__(self):
            for i, (x, y, index) in enumerate(super().__iter__()):
                yield (x * float("nan") if self.epoch == 3 and i == 2 else x), y, index

    trainer = make(tmp_path, inner_batches=Poisoned(), describe_batch=lambda b: f"samples {b[2].tolist()}")
    with pytest.raises(TrainingDiverged, match=r"epoch 3, batch 2 \(samples \[.*checkpoint of epoch 2 is kept"):
        trainer.fit(5)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["epoch"] == 2
    assert all(torch.as_tensor(v).isfinite().all() for v in state["parts"]["inner"].values())


def test_a_parameter_that_is_not_finite_never_reaches_the_checkpoint(tmp_path):
    """The root of zero is finite, its gradient is not: the loss of the epoch's last batch does not show it."""

    class Rooted(EpochBatches):
        def __iter__(self):
            for i, batch in enumerate(super().__iter__()):
                yield (*batch, self.epoch == 3 and i == 3)  # four batches

    def rooted(model, weights, batch):
        loss = inner_loss(model, weights, batch[:3])
        return loss + (model[0].weight * 0).abs().sum().sqrt() if batch[3] else loss

    trainer = make(tmp_path, inner_loss=rooted, inner_batches=Rooted())
    with pytest.raises(TrainingDiverged, match=r"inner\.0\.weight is not finite after epoch 3.*checkpoint of epoch 2"):
        trainer.fit(5)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state["epoch"] == 2
    assert all(torch.as_tensor(v).isfinite().all() for v in state["parts"]["inner"].values())


def test_an_interruption_leaves_the_last_finished_epoch_on_disk(tmp_path):
    class Interrupt:
        def on_inner_step(self, trainer, epoch, step):
            if (epoch, step) == (3, 1):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, callbacks=[Interrupt()]).fit(5)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 2


def test_a_full_disk_loses_nothing(tmp_path):
    path = tmp_path / "state.pt"
    save_checkpoint(path, {"a": 1})

    def write(file):
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="previous file, if any, is untouched"):
        write_atomically(path, write)
    assert load_checkpoint(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_checkpoints_with_code_are_refused(tmp_path):
    torch.save({"f": nn.Linear(1, 1)}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "cut.pt")


def test_missing_outer_parts_are_named():
    with pytest.raises(ValueError, match="UniformWeights"):
        make(outer_loss=None)


def test_an_exhausted_iterator_of_batches_is_named():
    with pytest.raises(ValueError, match="iterable once per epoch"):
        make(inner_batches=iter([])).fit(1)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match="gauss_newton"):
        make(method="newton")
    installed = {point.name for point in entry_points(group="bilevel.plugins")}  # a bare checkout has none
    with pytest.raises(ValueError, match=r"istd\.teacher" if "istd" in installed else "known ones: none"):
        make(inner_loss="no such objective")


def test_schedule():
    assert [e for e in range(1, 16) if Schedule(every=5, start=6).due(e)] == [10, 15]
    with pytest.raises(ValueError, match="`every`"):
        Schedule(every=0)


@pytest.mark.slow
def test_importing_bilevel_is_quick_and_pulls_in_no_plugin():
    import subprocess
    import sys

    code = "import torch, time, sys; t = time.perf_counter(); import bilevel; print(time.perf_counter() - t); "
    code += "assert not {'istd', 'timm', 'torchopt', 'PIL'} & set(sys.modules)"
    seconds = min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(2))
    assert seconds < 2.5
    assert time.perf_counter() > 0
