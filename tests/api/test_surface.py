"""The public names and signatures of a package change only where `tests/api/PACKAGE.txt` changes with them."""

import difflib

import pytest

from tests.api.surface import COMMAND, FOLDER, surface

PACKAGES = ["bilevel", "istd"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_public_surface_is_the_one_on_record(package):
    path = FOLDER / f"{package}.txt"
    change = list(difflib.unified_diff(path.read_text().splitlines(), surface(package).splitlines(), lineterm="", n=0))
    assert not change, (
        "\n".join(change) + f"\n\nThe public names or signatures of `{package}` have changed. If that is meant, say so "
        f"in CHANGELOG.md, keep old names in `{package}.deprecation`, and run\n\n    {COMMAND} {package}\n"
    )


def test_a_change_is_seen(monkeypatch):
    import bilevel

    before = surface("bilevel")
    monkeypatch.setattr(bilevel, "sgd", lambda lr: None)
    monkeypatch.setattr(bilevel.BilevelTrainer, "fit", lambda self, epochs: None)
    change = set(surface("bilevel").splitlines()) - set(before.splitlines())
    assert change == {"def sgd(lr)", "    def fit(self, epochs)"}
