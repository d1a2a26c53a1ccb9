"""What all tests share: the same process state before every test, and the real data where it lies beside the clone."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

SIRST = Path(__file__).resolve().parents[2] / "shared" / "data" / "sirst-v1"


def pytest_addoption(parser):
    group = parser.getgroup("independence", "what no test may depend on")
    group.addoption("--threads", type=int, default=1, help="threads of torch and BLAS in every test [1]")
    group.addoption("--seed", type=int, default=0, help="seed of the global random generators before every test [0]")


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason=f"the SIRST-v1 images are not at ../shared/data/sirst-v1 ({SIRST})")
    for item in items:
        if "sirst" in getattr(item, "fixturenames", ()) and "data" not in item.keywords:
            raise pytest.UsageError(f"{item.nodeid} reads the SIRST-v1 images; mark it with `@pytest.mark.data`.")
        if "data" in item.keywords and not SIRST.is_dir():
            item.add_marker(skip)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Fixtures that several tests share are made before any test's own: they start from the same state too."""
    if fixturedef.scope != "function":
        _reset(request.config)
    return (yield)


@pytest.fixture(autouse=True)
def same_process(request):
    """Every test starts with the same threads and random states, whatever ran before it."""
    _reset(request.config)
    yield
    assert torch.get_default_dtype() == torch.float32, "a test left another default dtype behind"
    assert torch.is_grad_enabled(), "a test left gradients switched off"


def _reset(config):
    threads, seed = config.getoption("--threads"), config.getoption("--seed")
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
        threadpool_limits(threads)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global generator is what must not matter)
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def sirst():
    from istd.data.layouts import load_folder

    return load_folder(SIRST)
