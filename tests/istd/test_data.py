"""Layouts, points, images and crops: what users have on disk, and what goes wrong with it."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel.batches import Walk
from istd.data.crops import Augmentation, CropLoader
from istd.data.images import read_image
from istd.data.layouts import Sample, load_folder
from istd.data.masks import read_mask
from istd.data.normalisation import Normalisation
from istd.data.points import centroid_points, coarse_points, jittered_points
from istd.data.scenes import synthetic_dataset


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


NAMES = [f"im{i}" for i in range(6)]


@pytest.fixture
def folder(tmp_path):
    """Six images of 40x48 with one 3x3 target each, masks, centroid points and splits."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(NAMES):
        image = rng.integers(40, 60, (40, 48)).astype(np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        mask[10 + i : 13 + i, 20:23] = 255
        image[mask > 0] = 200
        point = np.zeros_like(mask)
        point[11 + i, 21] = 255
        save(tmp_path / "images" / f"{name}.png", image)
        save(tmp_path / "labels" / f"{name}.png", mask)
        save(tmp_path / "masks_centroid" / f"{name}.png", point)
    splits(tmp_path, NAMES[:3], NAMES[3:4], NAMES[4:])
    return tmp_path


def rewrite(path, change):
    array = np.array(Image.open(path))
    change(array)
    save(path, array)


def one_level(array):
    array[0, 0] += 1


def one_target_less(array):
    array[:] = 0


def rename(folder):
    for kind in ("images", "labels", "masks_centroid"):
        (folder / kind / "im0.png").rename(folder / kind / "other.png")
    splits(folder, ["other", *NAMES[1:3]], NAMES[3:4], NAMES[4:])


@pytest.mark.parametrize(
    "change",
    [
        lambda f: rewrite(f / "images" / "im0.png", one_level),
        lambda f: rewrite(f / "labels" / "im5.png", one_target_less),
        lambda f: rewrite(f / "masks_centroid" / "im0.png", one_target_less),
        lambda f: splits(f, NAMES[:2], NAMES[2:4], NAMES[4:]),
        lambda f: splits(f, [NAMES[1], NAMES[0], NAMES[2]], NAMES[3:4], NAMES[4:]),
        lambda f: rewrite(f / "images" / "im0.png", lambda a: a.sort()),
        rename,
    ],
    ids=["a grey level", "a mask", "a point", "splits", "order", "pixels", "a name"],
)
def test_a_digest_tells_every_change_of_the_data(folder, change):
    before = load_folder(folder).digest()
    change(folder)
    assert load_folder(folder).digest() != before


def test_a_digest_is_that_of_the_content_not_of_the_place(folder, tmp_path_factory):
    moved = tmp_path_factory.mktemp("elsewhere") / "renamed"
    data = load_folder(folder)
    shutil.copytree(folder, moved)
    assert load_folder(moved).digest() == data.digest() == load_folder(folder).digest()
    assert len(data.digest()) == 32
    assert synthetic_dataset(2, 1, 1).digest() == synthetic_dataset(2, 1, 1).digest()
    assert synthetic_dataset(2, 1, 1).digest() != synthetic_dataset(2, 1, 1, seed=1).digest()


def splits(root, train, val, test, end="\n"):
    (root / "mode").mkdir(exist_ok=True)
    for name, names in (("train", train), ("val", val), ("test", test)):
        (root / "mode" / f"{name}.txt").write_bytes(end.join(names).encode() + end.encode())


def test_a_sirst3_folder(folder):
    data = load_folder(folder)
    assert [s.name for s in data.train] == NAMES[:3]
    assert data.train[0].points.tolist() == [[11, 21]]
    assert data.train[0].image.shape == (40, 48)
    assert data.train[0].truth().sum() == 9
    assert data.has_truth


def test_split_files_with_crlf_extensions_and_blank_lines(folder):
    splits(folder, ["im0.png", "", "im1", "im2.bmp"], ["im3"], ["im4.PNG", "im5"], end="\r\n")
    data = load_folder(folder)
    assert [s.name for s in data.train] == ["im0", "im1", "im2"]
    assert [s.name for s in data.test] == ["im4", "im5"]


def test_no_masks_at_all_is_the_normal_case(folder):
    for file in (folder / "labels").iterdir():
        file.unlink()
    (folder / "labels").rmdir()
    data = load_folder(folder)
    assert not data.has_truth
    assert data.train[0].truth() is None
    assert len(data.train[0].points) == 1


def without_point_masks(folder):
    for file in (folder / "masks_centroid").iterdir():
        file.unlink()
    (folder / "masks_centroid").rmdir()


def test_masks_of_the_test_split_alone_are_enough_to_be_scored(folder):
    for name in NAMES[:4]:
        (folder / "labels" / f"{name}.png").unlink()
    data = load_folder(folder)
    assert data.has_truth
    assert data.train[0].truth() is None


def test_points_as_csv(folder):
    without_point_masks(folder)
    rows = "".join(f"{n}.png,21,{11 + i}.6\n" for i, n in enumerate(NAMES[:5]))
    (folder / "points.csv").write_text("image,x,y\n" + rows + "im5,,\n")
    data = load_folder(folder)
    assert data.train[1].points.tolist() == [[12, 21]]
    assert data.test[1].points.shape == (0, 2)  # no target in an image is legal


def test_points_as_coco(folder):
    without_point_masks(folder)
    content = {
        "images": [{"id": i, "file_name": f"{n}.png"} for i, n in enumerate(NAMES)],
        "annotations": [{"id": i, "image_id": i, "bbox": [20, 10 + i, 3, 3]} for i in range(4)]
        + [{"id": 9, "image_id": 4, "keypoints": [21, 15, 2]}],
    }
    (folder / "points.json").write_text(json.dumps(content))
    data = load_folder(folder)
    assert data.train[2].points.tolist() == [[13, 21]]
    assert data.test[0].points.tolist() == [[15, 21]]
    assert data.test[1].points.shape == (0, 2)


def test_without_split_files_names_are_split_reproducibly(folder):
    for file in (folder / "mode").iterdir():
        file.unlink()
    one, two = load_folder(folder, seed=3), load_folder(folder, seed=3)
    assert [s.name for s in one.train] == [s.name for s in two.train]
    assert {s.name for part in (one.train, one.val, one.test) for s in part} == set(NAMES)


def test_the_two_list_layout_holds_validation_out_of_training(folder):
    for file in (folder / "mode").iterdir():
        file.unlink()
    (folder / "img_idx").mkdir()
    (folder / "img_idx" / "train_SIRST.txt").write_text("\n".join(NAMES[:4]))
    (folder / "img_idx" / "test_SIRST.txt").write_text("\n".join(NAMES[4:]))
    data = load_folder(folder)
    assert len(data.train) == 3
    assert len(data.val) == 1
    assert len(data.test) == 2


def break_missing_point(f):
    (f / "masks_centroid" / "im1.png").unlink()


def break_point_size(f):
    save(f / "masks_centroid" / "im1.png", np.zeros((40, 47), np.uint8))


def break_mask_size(f):
    save(f / "labels" / "im1.png", np.zeros((41, 48), np.uint8))


def break_one_mask(f):
    (f / "labels" / "im1.png").unlink()


def break_mask_levels(f):
    save(f / "labels" / "im1.png", np.arange(40 * 48, dtype=np.uint8).reshape(40, 48))


def break_empty_split(f):
    splits(f, NAMES[:3], [], NAMES[4:])


def break_two_splits(f):
    splits(f, NAMES[:3], ["im2"], NAMES[4:])


def break_unknown_name(f):
    splits(f, ["nobody"], ["im3"], ["im4"])


def break_outside(f):
    without_point_masks(f)
    (f / "points.csv").write_text("image,x,y\n" + "".join(f"{n},48,3\n" for n in NAMES))


def break_csv_number(f):
    without_point_masks(f)
    (f / "points.csv").write_text("image,x,y\nim0,left,3\n")


def break_csv_columns(f):
    without_point_masks(f)
    (f / "points.csv").write_text("name,x,y\nim0,1,3\n")


def break_coco(f):
    without_point_masks(f)
    (f / "points.json").write_text("[]")


def break_not_an_image(f):
    (f / "images" / "im1.png").write_text("hello")


def break_one_pixel(f):
    save(f / "images" / "im1.png", np.zeros((1, 1), np.uint8))


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (break_missing_point, "'im1' has no point label file"),
        (break_point_size, "both must have the same size"),
        (break_one_mask, "1 of the 3 images in the 'train' split .* have no mask, first 'im1'"),
        (break_mask_size, r"'im1' is 48x40.*48x41"),
        (break_mask_levels, "is not a mask: 75 % of its pixels lie between"),
        (break_empty_split, "'val' split .* is empty"),
        (break_two_splits, "'im2' stands in both 'train' and 'val'"),
        (break_unknown_name, "names 'nobody'"),
        (break_outside, r"\(x=48, y=3\) of points.csv lies outside the image of 48x40"),
        (break_csv_number, "line 2: x='left'"),
        (break_csv_columns, "no column 'image'"),
        (break_coco, "not COCO JSON"),
        (break_not_an_image, "cannot be read as an image"),
        (break_one_pixel, "has 1x1 pixels"),
    ],
)
def test_bad_input_is_named(folder, breakage, message):
    breakage(folder)
    with pytest.raises(ValueError, match=message):
        [sample.truth() for sample in load_folder(folder).train]


def test_missing_folders_are_named(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_folder(folder / "nowhere")
    without_point_masks(folder)
    shutil.rmtree(folder / "labels")
    with pytest.raises(FileNotFoundError, match=r"points\.csv"):
        load_folder(folder)
    with pytest.raises(FileNotFoundError, match="no images folder"):
        load_folder(tmp_path_factory.mktemp("empty"))


def test_image_kinds(tmp_path):
    grey = np.arange(400, dtype=np.uint8).reshape(20, 20)
    save(tmp_path / "l.png", grey)
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "rgba.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "p.png")
    Image.fromarray(grey.astype(np.uint16) * 100 + 7).save(tmp_path / "i16.png")
    expected = grey.astype(np.float32) / 255
    for name in ("l", "rgba", "p"):
        assert np.allclose(read_image(tmp_path / f"{name}.png"), expected, atol=1.01 / 255), name
    # Deeper frames find their own range; the single darkest and brightest pixels count as their neighbours 1 and 254.
    assert np.allclose(read_image(tmp_path / "i16.png"), np.clip((grey - 1.0) / 253, 0, 1), atol=1e-6)
    assert read_image(tmp_path / "i16.png").dtype == np.float32


def test_masks_of_three_channels_and_palettes(tmp_path):
    mask = np.zeros((20, 20), np.uint8)
    mask[3:5, 3:5] = 255
    Image.fromarray(mask).convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(mask).convert("1").save(tmp_path / "one.png")
    for name in ("rgb", "one"):
        assert read_mask(tmp_path / f"{name}.png").sum() == 4


def test_centroid_and_coarse_points():
    mask = np.zeros((30, 30), bool)
    mask[5:9, 6:11] = True
    mask[20, 20] = True
    assert centroid_points(mask).tolist() == [[6, 8], [20, 20]]
    coarse = coarse_points(mask, seed=1)
    assert mask[coarse[:, 0], coarse[:, 1]].all()
    assert np.array_equal(coarse, coarse_points(mask, seed=1))
    assert any(not np.array_equal(coarse, coarse_points(mask, seed=s)) for s in range(2, 8))
    moved = jittered_points(np.array([[0, 0], [15, 15]]), 3, (30, 30), seed=0)
    assert (moved >= 0).all()
    assert np.linalg.norm(moved[1] - 15) == pytest.approx(3, abs=0.8)  # rounding to pixels


def test_point_files_are_read_alike(folder):
    without_point_masks(folder)
    others = "".join(f"{n},,\n" for n in NAMES[1:])
    text = "\ufeffImage, X ,Y\nim0.png,3,4\nim0.png,5,6\n".replace(" ", "") + others
    (folder / "points.csv").write_text(text, encoding="utf-8")
    content = {
        "images": [{"id": i, "file_name": f"{n}.png"} for i, n in enumerate(NAMES, 1)],
        "annotations": [{"id": i, "image_id": 1, "bbox": [x, y, 1, 1]} for i, (x, y) in enumerate([(3, 4), (5, 6)])],
    }
    (folder / "points.json").write_text(json.dumps(content))
    for form in ("csv", "coco"):
        data = load_folder(folder, form)
        assert data.train[0].points.tolist() == [[4, 3], [6, 5]]
        assert all(len(s.points) == 0 for s in data.samples[1:])


def loader(samples, **changes):
    targets = [s.mask_source for s in samples]
    settings = {"batch_size": 4, "augmentation": Augmentation(32), "normalisation": Normalisation(0.0, 1.0), "seed": 0}
    pool = np.arange(len(samples))
    return CropLoader(samples, lambda i: targets[i], lambda: pool, **(settings | changes))


def marked_samples(n=8, size=(50, 70)):
    """Images that are 1 on the target and 0 elsewhere, so that image and target of a crop must agree."""
    samples = []
    rng = np.random.default_rng(0)
    for i in range(n):
        mask = np.zeros(size, bool)
        row, col = rng.integers(2, size[0] - 2), rng.integers(2, size[1] - 2)
        mask[row - 1 : row + 2, col - 1 : col + 2] = True
        samples.append(Sample(f"s{i}", mask.astype(np.float32), np.array([[row, col]]), mask))
    return samples


def test_crops_are_a_function_of_seed_and_epoch():
    one, two = loader(marked_samples()), loader(marked_samples())
    two.set_epoch(5)
    list(two)
    for each in (one, two):
        each.set_epoch(2)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.target, b.target)
        assert torch.equal(a.index, b.index)
    one.set_epoch(3)
    assert not all(torch.equal(a.image, b.image) for a, b in zip(one, two, strict=True))


def test_a_begun_pass_goes_on_exactly_though_the_pool_has_changed_since():
    """Samples admitted in the middle of a pass wait for the next one, in this process and in one that resumes."""
    samples, pool = marked_samples(), [np.arange(4)]
    walks = []
    for _ in range(2):
        made = loader(samples)
        made.pool = lambda: pool[0]
        walks.append(Walk(made, "inner_batches"))
    first = walks[0].take(1, 3)
    pool[0] = np.arange(8)
    stored = io.BytesIO()
    torch.save(walks[0].state_dict(), stored)
    stored.seek(0)
    walks[1].load_state_dict(torch.load(stored, weights_only=True))
    for a, b in zip(walks[0].take(3, 4), walks[1].take(3, 4), strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.index, b.index)
    assert sorted(first[0].index.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [(50, 70), (20, 40), (33, 17)])
def test_image_and_target_stay_aligned_and_small_images_are_mirrored(size):
    for epoch in range(3):
        batches = loader(marked_samples(size=size))
        batches.set_epoch(epoch)
        for batch in batches:
            assert batch.image.shape == (4, 3, 32, 32)
            assert torch.equal(batch.image, batch.target.expand(-1, 3, -1, -1))


def test_focused_crops_hold_their_target_and_zoom_keeps_it():
    for scale in (1.0, 1.5):
        batches = loader(marked_samples(), augmentation=Augmentation(32, on_target=1.0, scale=scale))
        for batch in batches:
            # a 3x3 target may be cut by the crop's border, but its centre is inside; shrunk 1.5 times it keeps > 0 px
            assert (batch.target.sum(dim=(1, 2, 3)) > 0).all()


def test_normalisation_is_fitted_on_the_training_images():
    samples = marked_samples()
    found = Normalisation.fit(samples)
    pixels = np.concatenate([s.image.ravel() for s in samples])
    assert found.mean == pytest.approx(pixels.mean())
    assert found.std == pytest.approx(pixels.std(), rel=1e-5)


def test_contrast_channels_hold_the_repeated_one_and_two_that_ignore_gain_and_offset():
    samples = marked_samples()
    repeat, contrast = Normalisation.fit(samples), Normalisation.fit(samples, channels="contrast")
    image = samples[0].image + np.random.default_rng(0).normal(0, 0.05, samples[0].image.shape).astype(np.float32)

    def see(normalisation, x):
        return normalisation(torch.from_numpy(x)[None, None], torch.tensor([normalisation.constants(x)]))

    one, three = see(repeat, image), see(contrast, image)
    assert one.shape[1] == 3  # one, repeated
    assert three.shape[1] == 3
    assert torch.equal(three[:, :1], one[:, :1])
    changed = see(contrast, 0.5 * image + 0.2)
    assert torch.allclose(changed[:, 1:], three[:, 1:], atol=1e-4)
    assert not torch.allclose(changed[:, :1], three[:, :1], atol=1e-2)
    assert three[:, 1].mean().abs() < 1e-4  # of a whole image


def test_a_crop_is_normalised_by_its_own_image():
    samples = marked_samples()
    contrast = Normalisation.fit(samples, channels="contrast")
    for batch in loader(samples, normalisation=contrast):
        mean, std = torch.tensor([contrast.constants(samples[i].image) for i in batch.index]).T
        raw = batch.image[:, 0] * contrast.std + contrast.mean
        assert torch.allclose(batch.image[:, 1], (raw - mean[:, None, None]) / std[:, None, None], atol=1e-4)
