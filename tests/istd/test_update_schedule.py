"""When labels are updated: ours as the hook counts, PAL's as its release does."""

import numpy as np
import pytest

from istd.labels import Labels, LabelUpdates, PseudoMasks
from istd.labels.schedule import published_schedule, update_schedule


def epochs_of(schedule, total):
    return [e for e in range(1, total + 1) if schedule.due(e)]


def test_pal_updates_one_period_later_than_the_share_and_to_the_end():
    """300 epochs: the release trains epoch 65 (from 0) on the first new labels, admits at 240 for the last time."""
    schedule = published_schedule(300)
    assert epochs_of(schedule, 300) == [*range(65, 300, 5)]
    assert schedule.admit_until == 240
    assert schedule.progress(65) == pytest.approx(6 / 180)
    assert schedule.progress(235) == pytest.approx(176 / 180)
    assert schedule.progress(240) == 1.0  # (240 - 60 + 1) / 180, limited
    assert epochs_of(update_schedule(300), 300) == [*range(60, 241, 5)]


@pytest.mark.parametrize("total", [1, 2, 7, 12, 23, 40, 41, 100, 400])
def test_pal_updates_as_the_loop_of_its_release_counts(total):
    """`for epoch in range(N)`: labels are updated before epoch e is trained, so e epochs are done."""
    found = [
        e for e in range(total) if (int(total * 0.2) < e <= int(total * 0.8) or e > int(total * 0.8)) and e % 5 == 0
    ]
    schedule = published_schedule(total)
    assert epochs_of(schedule, total) == [e for e in found if e > 0]
    for e in found:
        tolerance = (e - total * 0.2 + 1) / (total * (0.8 - 0.2))
        assert schedule.progress(e) == pytest.approx(min(max(tolerance, 0), 1), abs=1e-9) or total * 0.6 < 1


@pytest.mark.parametrize("total", [5, 40, 77])
def test_our_schedule_is_the_hooks(total):
    schedule, seen = update_schedule(total, until=0.9), []
    waiting, nothing = np.array([False]), np.zeros((2, 2), bool)
    masks = PseudoMasks((nothing.astype(np.float32),), (nothing,), (np.zeros((0, 2), np.int64),), waiting, waiting)
    labels = Labels(masks)

    def admission(prediction, points, progress):
        seen.append(progress)

    hook = LabelUpdates(labels, lambda i: None, None, admission, schedule)
    due = []
    for e in range(1, total + 1):
        metrics = {}
        hook.on_epoch_end(None, e, metrics)
        due += [e] * bool(metrics)
    assert due == epochs_of(schedule, total)
    assert seen == pytest.approx([schedule.progress(e) for e in due if e <= schedule.admit_until])
