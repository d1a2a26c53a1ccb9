"""A run is known by its content: data, weights and threads; results by a digest of themselves."""

from dataclasses import replace

import numpy as np
import pytest

from istd.data.scenes import SceneConfig, synthetic_dataset
from istd.files import write_json
from istd.runs import RunFolder
from istd.runs.identity import data_identity, file_digest, first_difference, is_sealed, run_identity, sealed
from istd.training.presets import configure

SETTINGS = configure("smoke")


@pytest.fixture(scope="module")
def scenes():
    return synthetic_dataset(3, 2, 2, SceneConfig(size=64))


def with_first(data, **changes):
    return replace(data, train=(replace(data.train[0], **changes), *data.train[1:]))


def test_every_change_of_the_data_is_told_apart(scenes):
    known = data_identity(scenes)
    assert data_identity(replace(scenes, name="moved")) == known
    first = scenes.train[0]
    changes = {
        "images": with_first(scenes, image=np.roll(first.image, 1)),
        "points": with_first(scenes, points=first.points + 1),
        "splits": replace(scenes, train=scenes.val, val=scenes.train),
        "with_masks": with_first(scenes, mask_source=~np.asarray(first.mask_source)),
    }
    for part, changed in changes.items():
        assert first_difference(known, data_identity(changed)) == part
    renamed = with_first(scenes, name="other")
    assert first_difference(known, data_identity(renamed)) is not None
    swapped = replace(scenes, train=(scenes.train[1], scenes.train[0], scenes.train[2]))
    assert first_difference(known, data_identity(swapped)) == "splits"


def test_threads_and_the_weight_file_count(scenes, tmp_path):
    file = tmp_path / "vit.safetensors"
    file.write_bytes(b"one")
    settings = SETTINGS.changed(**{"vfm.weights": str(file), "vfm.random": False})
    known = run_identity(settings, scenes, 1)
    assert known["vfm_weights_digest"] == file_digest(file)
    assert first_difference(known, run_identity(settings, scenes, 2)) == "threads"
    file.write_bytes(b"two")
    assert first_difference(known, run_identity(settings, scenes, 1)) == "vfm_weights_digest"


def test_results_carry_a_digest_of_themselves():
    found = sealed({"student": {"IoU": 0.5}, "changes": {"evolve_cap": float("inf")}})
    assert is_sealed(found)
    assert not is_sealed({**found, "student": {"IoU": 0.6}})
    assert not is_sealed({"student": {"IoU": 0.5}})


def test_a_cell_is_known_by_content_and_a_broken_result_is_made_again(scenes, tmp_path):
    identity = run_identity(SETTINGS, scenes, 1)
    assert RunFolder(tmp_path).state(SETTINGS, identity) == "empty"
    write_json(tmp_path / "config.json", SETTINGS.as_dict())
    write_json(tmp_path / "run.json", {"identity": identity})
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert RunFolder(tmp_path).state(SETTINGS, identity) == "stopped"
    assert RunFolder(tmp_path).state(SETTINGS, {**identity, "threads": 2}) == "other"
    write_json(tmp_path / "metrics.json", sealed({"student": {"IoU": 0.5}}))
    assert RunFolder(tmp_path).state(SETTINGS, identity) == "finished"
    assert RunFolder(tmp_path).state(SETTINGS, {**identity, "threads": 2}) == "finished"
    assert RunFolder(tmp_path).state(SETTINGS, {**identity, "images": "others"}) == "other"
    assert RunFolder(tmp_path).state(SETTINGS.changed(seed=1), identity) == "other"
    text = (tmp_path / "metrics.json").read_text()
    for broken in (text[:20], text.replace("0.5", "0.6"), "", "[]"):
        (tmp_path / "metrics.json").write_text(broken)
        assert RunFolder(tmp_path).state(SETTINGS, identity) == "stopped"
    (tmp_path / "config.json").write_text("{")
    assert RunFolder(tmp_path).state(SETTINGS, identity) == "other"
