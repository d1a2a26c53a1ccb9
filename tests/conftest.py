"""Fixtures shared by all tests: quiet threads, and the real data where it lies beside the checkout."""

from pathlib import Path

import pytest
import torch

SIRST = Path(__file__).resolve().parents[2] / "shared" / "data" / "sirst-v1"


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason=f"the SIRST-v1 images are not at ../shared/data/sirst-v1 ({SIRST})")
    for item in items:
        if "sirst" in getattr(item, "fixturenames", ()) and "data" not in item.keywords:
            raise pytest.UsageError(f"{item.nodeid} reads the SIRST-v1 images; mark it with `@pytest.mark.data`.")
        if "data" in item.keywords and not SIRST.is_dir():
            item.add_marker(skip)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def sirst():
    from istd.data.layouts import load_folder

    return load_folder(SIRST)
