"""Batches: walks that go on between outer phases, see everything, and resume exactly for every kind of loader."""

import copy
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, SubsetRandomSampler

from bilevel import Schedule
from bilevel.batches import Walk
from bilevel.checkpoint import ResumeWarning
from tests.bilevel.test_trainer import make, outer_loss, same_state

N, SIZE = 40, 10
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core


class Numbered(Dataset):
    """Row i holds its own number."""

    def __init__(self, noise=None):
        self.noise, self.rng = noise, np.random.default_rng(5)

    def __len__(self):
        return N

    def __getitem__(self, i):
        draw = {
            None: lambda: 0.0,
            "torch": lambda: float(torch.rand(())),
            "python": random.random,
            "numpy": lambda: float(np.random.rand()),  # noqa: NPY002 (what users' data sets call)
            "own": self.rng.random,
        }[self.noise]()
        x = torch.linspace(-1, 1, 4) * (i / N) + 0.1 * draw
        return x, i % 2, i % 32, i


class EpochLoader:
    """Shuffled by `set_epoch` alone."""

    def __init__(self, noise=None):
        self.data, self.epoch = Numbered(noise), 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(N, generator=torch.Generator().manual_seed(self.epoch))
        for rows in order.split(SIZE):
            yield [torch.as_tensor(c) for c in torch.utils.data.default_collate([self.data[i] for i in rows.tolist()])]


class SampledByEpoch:
    """As `torch.utils.data.DistributedSampler`: the sampler has `set_epoch`, the DataLoader has not."""

    def __init__(self):
        self.epoch, self.told = 0, []

    def __len__(self):
        return N

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.told.append(epoch)

    def __iter__(self):
        return iter(torch.randperm(N, generator=torch.Generator().manual_seed(self.epoch)).tolist())


def own(seed=3):
    return torch.Generator().manual_seed(seed)


def loader(noise=None, **settings):
    return DataLoader(Numbered(noise), SIZE, **settings)


KINDS = {
    "list": lambda noise: list(loader(noise)),
    "unshuffled": lambda noise: loader(noise),
    "shuffled": lambda noise: loader(noise, shuffle=True),
    "own generator": lambda noise: loader(noise, shuffle=True, generator=own()),
    "sampler's generator": lambda noise: loader(noise, sampler=RandomSampler(range(N), generator=own())),
    "subset": lambda noise: loader(noise, sampler=SubsetRandomSampler(range(N))),
    "set_epoch": lambda noise: EpochLoader(noise),
    "sampler's set_epoch": lambda noise: loader(noise, sampler=SampledByEpoch()),
    "workers": lambda noise: loader(noise, shuffle=True, num_workers=2),
    "workers that stay": lambda noise: loader(noise, shuffle=True, num_workers=2, persistent_workers=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("each", [1, 3])
def test_every_sample_has_its_turn(kind, each):
    """40 samples in batches of 10, 1 or 3 at a time: after 12 batches each was seen exactly 3 times."""
    walk = Walk(KINDS[kind](None), "outer_batches")
    seen = torch.cat([batch[3] for epoch in range(12 // each) for batch in walk.take(each, epoch)])
    assert seen.bincount(minlength=N).tolist() == [3] * N


def trainer_of(kind, noise, folder=None, **changes):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global one is what is tested)
    made = {"inner_batches": KINDS[kind](noise), "outer_batches": KINDS[kind](noise)} | changes
    return make(
        folder,
        inner_loss=lambda m, w, b: (
            w(b[2]) * torch.nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
        ).mean(),
        outer_loss=lambda m, w, b: outer_loss(m, w, b[:3]),
        schedule=Schedule(every=2, steps=3),
        **made,
    )


# A pass has 4 batches and an outer phase takes 3: after 2 epochs the walks stand in the middle of a pass.
EXACT = [(kind, None) for kind in KINDS if "workers" not in kind]
EXACT += [
    (kind, noise) for kind in ("shuffled", "own generator", "set_epoch") for noise in ("torch", "python", "numpy")
]
EXACT += [("shuffled", "own"), ("workers", "torch")]


@pytest.mark.parametrize(("kind", "noise"), EXACT)
def test_a_run_resumed_in_the_middle_of_a_pass_is_exact(tmp_path, kind, noise):
    fewer = {"inner_batches": KINDS["list"](None)} if kind == "workers" else {}  # processes are slow to start
    whole = trainer_of(kind, noise, **fewer)
    whole.fit(4)
    random_numbers = torch.get_rng_state()
    trainer_of(kind, noise, tmp_path, **fewer).fit(2)
    second = trainer_of(kind, noise, tmp_path, **fewer)
    torch.manual_seed(99)  # whatever happened to the generators in between
    random.seed(99)
    assert second.resume()
    second.fit(4)
    same_state(whole, second)
    assert torch.equal(torch.get_rng_state(), random_numbers)


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_sampler_that_draws_as_it_goes_is_resumed_exactly(tmp_path, stop):
    """It draws 32 indices when they are asked for, from a generator that training epochs have drawn from meanwhile."""

    def many():
        return loader(sampler=RandomSampler(range(N), replacement=True, num_samples=130, generator=own()))

    def run(folder=None):
        return trainer_of("list", None, folder, inner_batches=many(), outer_batches=many())

    whole = run()
    whole.fit(8)
    run(tmp_path).fit(stop)
    second = run(tmp_path)
    assert second.resume()
    second.fit(8)
    same_state(whole, second)


def test_a_restored_walk_that_has_not_moved_saves_what_it_was_given():
    walk = Walk(loader(shuffle=True), "outer_batches")
    walk.take(3, 1)
    state = walk.state_dict()
    other = Walk(loader(shuffle=True), "outer_batches")
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert torch.equal(other.take(1, 2)[0][3], walk.take(1, 2)[0][3])


def test_an_iterator_with_a_state_gets_it_back_instead_of_being_drawn_again():
    class Counted:
        def __init__(self):
            self.drawn = 0

        def __iter__(self):
            return Count(self)

    class Count:
        def __init__(self, owner):
            self.owner, self.at = owner, 0

        def __next__(self):
            self.owner.drawn += 1
            self.at += 1
            return self.at

        def state_dict(self):
            return {"at": self.at}

        def load_state_dict(self, state):
            self.at = state["at"]

    first = Walk(Counted(), "outer_batches")
    first.take(7, 1)
    batches = Counted()
    second = Walk(batches, "outer_batches")
    second.load_state_dict(first.state_dict())
    assert second.take(2, 2) == [8, 9]
    assert batches.drawn == 2


def test_samplers_are_told_the_epoch_too():
    sampler = SampledByEpoch()
    trainer_of("unshuffled", None, inner_batches=loader(sampler=sampler)).fit(2)
    assert sampler.told == [1, 2, 2]  # two epochs, and the pass of the hypergradients that begins after the second


@pytest.mark.parametrize(
    ("batches", "message"), [([], "`outer_batches` is empty"), (iter([1]), "an iterator that is used up")]
)
def test_batches_that_end_are_named(batches, message):
    walk = Walk(batches, "outer_batches")
    with pytest.raises(ValueError, match=message):
        walk.take(2, 1)


def test_less_data_than_the_checkpoint_has_seen_is_named():
    walk = Walk(loader(), "outer_batches")
    walk.take(3, 1)
    other = Walk(DataLoader(Numbered(), 30), "outer_batches")
    other.load_state_dict(walk.state_dict())
    with pytest.raises(ValueError, match="gave 2 batches, but the checkpoint is at number 3"):
        other.take(1, 2)


def test_old_checkpoints_go_on_in_lists():
    """Their count of outer steps is the position."""
    first = trainer_of("list", None)
    first.fit(2)
    state = copy.deepcopy(first.state_dict())
    first.fit(6)
    old = {k: v for k, v in state.items() if k not in ("walks", "generators")} | {"format": 1, "outer_taken": 3}
    other = trainer_of("list", None)
    other.load_state_dict(old)
    other.fit(6)
    same_state(first, other)


def test_workers_that_live_on_are_named_on_resume(tmp_path):
    trainer_of("unshuffled", None, tmp_path).fit(1)
    second = trainer_of("unshuffled", None, tmp_path, inner_batches=KINDS["workers that stay"](None))
    with pytest.warns(ResumeWarning, match="`inner_batches` keeps its worker processes"):
        second.resume()


def test_generators_that_the_checkpoint_does_not_know_are_named(tmp_path):
    trainer_of("list", None, tmp_path).fit(1)
    second = trainer_of("list", None, tmp_path, inner_batches=loader(shuffle=True, generator=own()))
    with pytest.warns(ResumeWarning, match=r"DataLoader holds the generators \['dataset.rng', 'generator'\].*none"):
        second.resume()
