"""The smallest run of `make faults`: one kill in training, and on from there."""

import pytest

from tests.faults import main

pytestmark = pytest.mark.slow


def test_a_killed_run_goes_on_exactly(capsys):
    assert main(["--kills", "1", "--phases", "training", "--kills-only"]) == 0
    printed = capsys.readouterr().out
    assert "SIGKILL, training: exact" in printed or "SIGKILL, training: came too late" in printed
