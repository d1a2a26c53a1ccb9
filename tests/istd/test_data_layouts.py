"""Every published layout is read as it lies: images, masks, points and splits, on a tiny folder of its shape."""

import json
from pathlib import Path

import numpy as np
import pytest

from istd.data.formats import FORMATS
from istd.data.images import EXTENSIONS
from istd.data.layouts import SPLITS, find_images, join, load_folder, load_folders, load_split
from istd.data.published import LAYOUTS
from tests.istd.folders import SHAPE, centre, fill, image_of, mask_of, names, save, write_list

N = names()


def by_split(data):
    return {split: [s.name for s in getattr(data, split)] for split in SPLITS}


def check(data, train, val, test, index=N.index):
    """The splits are these, and every image has its own pixels, its own mask and a point at the target's centre."""
    assert by_split(data) == {"train": train, "val": val, "test": test}
    for sample in data.samples:
        i = index(sample.name)
        assert np.array_equal(np.rint(255 * sample.image), image_of(i)), sample.name
        assert sample.points.tolist() == [list(centre(i))], sample.name
        if sample.mask_source is not None:
            assert np.array_equal(sample.truth(), mask_of(i) > 0), sample.name
    return data


def nuaa(root):
    fill(root, "images", "masks", mask_ending="_pixels0")
    for family, parts in {"idx_320": (N[:2], N[2:3], N[3:]), "idx_427": (N[:3], N[3:4], N[4:])}.items():
        for name, part in zip(("train", "val", "test"), parts, strict=True):
            write_list(root / family / f"{name}.txt", part)
        write_list(root / family / "trainval.txt", parts[0] + parts[1])
    return "NUAA-SIRST", N[:3], N[3:4], N[4:]


def sirst_v2(root):
    fill(root, "mixed", "annotations/masks", mask_ending="_pixels0")
    fill(root, "images/targets")  # the same pictures again, as published
    for i, name in enumerate(N):
        boxes = root / "annotations" / "bboxes" / f"{name}.xml"
        boxes.parent.mkdir(parents=True, exist_ok=True)
        row, col = centre(i)
        boxes.write_text(voc(col, row, col + 3, row + 3))
    for name, part in (("train_full", N[:3]), ("val_full", N[3:4]), ("test_full", N[4:]), ("train_v1", N[:1])):
        write_list(root / "splits" / f"{name}.txt", part)
    write_list(root / "splits" / "test_v1.txt", N[1:2])
    write_list(root / "splits" / "trainvaltest_full.txt", N)
    return "SIRST-V2", N[:3], N[3:4], N[4:]


def sirst_v2_voc(root):
    fill(root, "PNGImages", "SIRST/BinaryMask", mask_ending="_pixels0")
    for i, name in enumerate(N):
        boxes = root / "SIRST" / "BBox" / f"{name}.xml"
        boxes.parent.mkdir(parents=True, exist_ok=True)
        row, col = centre(i)
        boxes.write_text(voc(col, row, col + 2, row + 2))
    write_list(root / "Splits" / "trainval.txt", N[:4])
    write_list(root / "Splits" / "train.txt", N[:3])
    write_list(root / "Splits" / "test.txt", N[4:])
    return "SIRST-V2, VOC folders", N[:3], N[3:4], N[4:]


def voc(xmin, ymin, xmax, ymax):
    """Boxes count pixels from 1: a target whose first row and column are r - 1 and c - 1 from 0 begins at (c, r)."""
    size = f"<size><width>{SHAPE[1]}</width><height>{SHAPE[0]}</height><depth>1</depth></size>"
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<annotation>{size}<object><name>Target</name><bndbox>{corners}</bndbox></object></annotation>"


def pascal_voc(root):
    fill(root, "JPEGImages")
    for i, name in enumerate(N):
        row, col = centre(i)
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(voc(col, row, col + 2, row + 2))
    for name, part in (("train", N[:3]), ("val", N[3:4]), ("test", N[4:])):
        write_list(root / "ImageSets" / "Main" / f"{name}.txt", part)
    return "Pascal VOC", N[:3], N[3:4], N[4:]


def nudt(root):
    fill(root, "images", "masks")
    write_list(root / "50_50" / "train.txt", N[:5], "\r\n")
    write_list(root / "50_50" / "test.txt", N[5:], "\r\n")
    return "NUDT-SIRST", *held_out(N[:5]), N[5:]


def held_out(listed):
    """A fifth, drawn with seed 0: at least one."""
    held = {listed[i] for i in np.random.default_rng(0).permutation(len(listed))[: max(1, len(listed) // 5)]}
    return [n for n in listed if n not in held], [n for n in listed if n in held]


def irstd_1k(root):
    fill(root, "IRSTD1k_Img", "IRSTD1k_Label")
    write_list(root / "trainval.txt", [f"{n}.png" for n in N[:5]])
    write_list(root / "test.txt", [f"{n}.png" for n in N[5:]])
    return "IRSTD-1k", *held_out(N[:5]), N[5:]


def msh_net(root):
    fill(root, "images", "masks")
    write_list(root / "trainval.txt", N[:4])
    write_list(root / "test.txt", N[4:])
    return "images/", *held_out(N[:4]), N[4:]


def lists_beside_the_images(root):
    fill(root, "images", "masks")
    write_list(root / "images" / "trainval.txt", N[:4])
    write_list(root / "images" / "test.txt", N[4:])
    return "images/", *held_out(N[:4]), N[4:]


def sirst3(root):
    fill(root, "images", "masks", "masks_centroid")
    write_list(root / "img_idx" / "train_SIRST3.txt", N[:4])
    write_list(root / "img_idx" / "test_SIRST3.txt", N[4:])
    write_list(root / "img_idx" / "test_NUDT-SIRST.txt", N[5:])
    return "SIRST3", *held_out(N[:4]), N[4:]


def semantic_priors(root):
    fill(root, "images", "labels", "masks_centroid")
    for name, part in (("train", N[:3]), ("val", N[3:4]), ("test", N[4:])):
        write_list(root / "mode" / f"{name}.txt", part)
    write_list(root / "mode" / "test_no_neardup.txt", N[5:])
    return "semantic-priors", N[:3], N[3:4], N[4:]


def sirst_aug(root):
    fill(root / "trainval", "images", "masks", n=4)
    for i in (4, 5):
        save(root / "test" / "images" / f"im{i}.png", image_of(i))
        save(root / "test" / "masks" / f"im{i}.png", mask_of(i))
    return "SIRST-Aug", *held_out(N[:4]), N[4:]


def pal(root):
    fill(root / "origin", "img", "mask", "masks_centroid", n=4)
    for i in (4, 5):
        save(root / "val" / "img" / f"im{i}.png", image_of(i))
        save(root / "val" / "mask" / f"im{i}.png", mask_of(i))
    return "PAL", *held_out(N[:4]), N[4:]


def limit_irstd(root):
    fill(root, "images", None, "masks_coarse")
    write_list(root / "img_idx" / "train_LimitIRSTD.txt", N)
    return "SIRST3", *held_out(N), []


def yolo(root):
    for split, part in (("train", N[:3]), ("val", N[3:4]), ("test", N[4:])):
        for name in part:
            i = N.index(name)
            save(root / "images" / split / f"{name}.png", image_of(i))
            (row, col), (height, width) = centre(i), SHAPE
            line = f"0 {(col + 0.5) / width:.6f} {(row + 0.5) / height:.6f} {3 / width:.6f} {3 / height:.6f}"
            write_list(root / "labels" / split / f"{name}.txt", [line])
    return "YOLO", N[:3], N[3:4], N[4:]


def roboflow(root):
    for split, part in (("train", N[:3]), ("valid", N[3:4]), ("test", N[4:])):
        for name in part:
            i = N.index(name)
            save(root / split / "images" / f"{name}.png", image_of(i))
            (row, col), (height, width) = centre(i), SHAPE
            line = f"0 {(col + 0.5) / width:.6f} {(row + 0.5) / height:.6f} {3 / width:.6f} {3 / height:.6f}"
            write_list(root / split / "labels" / f"{name}.txt", [line])
    return "Roboflow", N[:3], N[3:4], N[4:]


def labelme(root):
    fill(root, "images")
    for i, name in enumerate(N):
        row, col = centre(i)
        corners = [[col - 1.0, row - 1.0], [col + 2.0, row + 2.0]]
        shape = {"label": "target", "shape_type": "rectangle", "points": corners}
        if i % 2:
            shape = {"label": "target", "shape_type": "point", "points": [[col + 0.5, row + 0.5]]}
        content = {"shapes": [shape], "imagePath": f"..\\images\\{name}.png", "imageHeight": 24, "imageWidth": 32}
        (root / "images" / f"{name}.json").write_text(json.dumps(content))
    write_list(root / "mode" / "train.txt", N[:3])
    write_list(root / "mode" / "val.txt", N[3:4])
    write_list(root / "mode" / "test.txt", N[4:])
    return "semantic-priors", N[:3], N[3:4], N[4:]


def coco(root):
    fill(root, "images", "masks")
    for split, part in (("train", N[:3]), ("val", N[3:4]), ("test", N[4:])):
        content = {"images": [], "annotations": []}
        for k, name in enumerate(part):
            row, col = centre(N.index(name))
            content["images"].append({"id": k, "file_name": f"images/{name}.png", "height": 24, "width": 32})
            content["annotations"].append({"id": k, "image_id": k, "bbox": [col - 1, row - 1, 3, 3]})
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    (root / "annotations" / "label_map.json").write_text('{"1": "target"}')
    return "images/", N[:3], N[3:4], N[4:]


@pytest.mark.parametrize(
    "make",
    [
        nuaa,
        sirst_v2,
        sirst_v2_voc,
        pascal_voc,
        nudt,
        irstd_1k,
        msh_net,
        lists_beside_the_images,
        sirst3,
        semantic_priors,
        sirst_aug,
        pal,
        limit_irstd,
        yolo,
        roboflow,
        labelme,
        coco,
    ],
)
def test_a_layout_is_read_as_it_lies(make, tmp_path):
    layout, train, val, test = make(tmp_path)
    data = check(load_folder(tmp_path), train, val, test)
    assert data.origins[0].layout == layout
    assert not data.origins[0].random_split
    assert "RANDOM" not in str(data.origins[0])
    assert data.has_truth == (bool(test) and make not in (pascal_voc, yolo, roboflow, labelme))


def test_mdvsfa_has_images_and_masks_in_one_folder_and_numbers_that_return(tmp_path):
    for i in range(4):
        save(tmp_path / "training" / f"{i:06d}_1.png", image_of(i))
        save(tmp_path / "training" / f"{i:06d}_2.png", mask_of(i))
    for i in (4, 5):
        save(tmp_path / "test_org" / f"{i - 4:06d}.png", image_of(i))
        save(tmp_path / "test_gt" / f"{i - 4:06d}.png", mask_of(i))
    everything = [f"train/{i:06d}" for i in range(4)] + [f"test/{i:06d}" for i in range(2)]
    train, val = held_out(everything[:4])
    data = check(load_folder(tmp_path), train, val, everything[4:], everything.index)
    assert data.origins[0].layout == "MDvsFA"
    assert data.origins[0].points == "derived from the true masks (centroid)"


def test_nested_sequences_go_by_sequence_and_name(tmp_path):
    called = ["seq1/0001", "seq1/0002", "seq1/0003", "seq2/0001", "seq2/0002", "seq2/0003"]
    fill(tmp_path, "images", "masks", called=called)
    write_list(tmp_path / "img_idx" / "train_IRDST.txt", ["/seq1/0001", "seq1/0002.png", "images\\seq1\\0003.png"])
    write_list(tmp_path / "img_idx" / "val_IRDST.txt", ["seq2/0001"])
    write_list(tmp_path / "img_idx" / "test_IRDST.txt", called[4:])
    check(load_folder(tmp_path), called[:3], called[3:4], called[4:], called.index)
    write_list(tmp_path / "img_idx" / "val_IRDST.txt", ["0001"])
    with pytest.raises(ValueError, match=r"'0001' may mean 'seq1/0001' or 'seq2/0001'"):
        load_folder(tmp_path)


def test_several_lists_are_chosen_from_by_name(tmp_path):
    nuaa(tmp_path)
    check(load_folder(tmp_path, split="idx_320"), N[:2], N[2:3], N[3:])
    with pytest.raises(ValueError, match="families of lists to train with: idx_427, idx_320"):
        load_folder(tmp_path, split="idx_1")
    assert [s.name for s in load_split(tmp_path, "test").test] == N[4:]
    assert [s.name for s in load_split(tmp_path, "idx_320/test").test] == N[3:]
    assert [s.name for s in load_split(tmp_path, "all").test] == N
    with pytest.raises(ValueError, match="no split or list 'tests'"):
        load_split(tmp_path, "tests")


def test_families_that_no_layout_prefers_are_not_guessed_between(tmp_path):
    sirst3(tmp_path)
    write_list(tmp_path / "img_idx" / "train_NUDT-SIRST.txt", N[:3])
    with pytest.raises(ValueError, match=r"several families .*img_idx/NUDT-SIRST, img_idx/SIRST3.*--split NAME"):
        load_folder(tmp_path)
    check(load_folder(tmp_path, split="NUDT-SIRST"), *held_out(N[:3]), N[5:])


def test_a_list_of_any_name_can_be_scored(tmp_path):
    semantic_priors(tmp_path)
    assert [s.name for s in load_split(tmp_path, "test_no_neardup").test] == N[5:]
    assert [s.name for s in load_split(tmp_path, "val").test] == N[3:4]


@pytest.mark.parametrize("place", ["lists/train.txt", "train.csv", "img_idx/all/my_train_list.txt", "trainset.lst"])
def test_lists_that_are_not_read_are_never_replaced_by_a_random_split(tmp_path, place):
    fill(tmp_path, "images", "masks")
    write_list(tmp_path / "training_notes.txt", ["im0 was taken at night"])
    assert load_folder(tmp_path).origins[0].random_split
    write_list(tmp_path / place, [f"{n}.png" for n in N[:4]])
    with pytest.raises(ValueError, match=f"{place} names images of .*call it img_idx/train.txt"):
        load_folder(tmp_path)


def test_a_list_may_begin_with_the_name_of_its_family(tmp_path):
    sirst_v2(tmp_path)
    write_list(tmp_path / "splits" / "mini_trainval.txt", N[:4])
    write_list(tmp_path / "splits" / "mini_test.txt", N[5:])
    check(load_folder(tmp_path), N[:3], N[3:4], N[4:])
    check(load_folder(tmp_path, split="mini"), *held_out(N[:4]), N[5:])
    assert [s.name for s in load_split(tmp_path, "mini_test").test] == N[5:]


def test_families_beside_each_other_in_the_folder_itself_are_not_guessed_between(tmp_path):
    fill(tmp_path, "images", "masks")
    for family, cut in (("A", 4), ("B", 3)):
        write_list(tmp_path / f"train_{family}.txt", N[:cut])
        write_list(tmp_path / f"test_{family}.txt", N[cut:])
    with pytest.raises(ValueError, match=r"several families of split lists \(A, B\); choose one with `--split NAME`"):
        load_folder(tmp_path)
    check(load_folder(tmp_path, split="B"), *held_out(N[:3]), N[3:])


def test_lists_of_the_main_task_of_pascal_voc_are_preferred(tmp_path):
    layout, train, val, test = pascal_voc(tmp_path)
    for name in ("train", "val", "test"):
        write_list(tmp_path / "ImageSets" / "Segmentation" / f"{name}.txt", N[::-1][:2])
        write_list(tmp_path / "ImageSets" / "Main" / f"target_{name}.txt", [f"{n}  1" for n in N])
    assert check(load_folder(tmp_path), train, val, test).origins[0].layout == layout


def test_one_training_image_cannot_be_held_out(tmp_path):
    fill(tmp_path, "images", "masks")
    write_list(tmp_path / "train.txt", N[:1])
    write_list(tmp_path / "test.txt", N[1:])
    with pytest.raises(ValueError, match=r"train.txt names a single image, .* give a list val.txt"):
        load_folder(tmp_path)


def test_a_random_split_is_recorded_by_what_scores_it_too(tmp_path):
    fill(tmp_path, "images", "masks")
    assert load_split(tmp_path, "test").provenance[0]["random_split"] is True
    assert "RANDOM SPLIT (60, 20 and 20 %" in str(load_split(tmp_path, "test").origins[0])
    whole = load_split(tmp_path, "all")
    assert whole.provenance[0]["random_split"] is False
    assert "(images/): test all images. Points" in str(whole.origins[0])


def test_a_random_split_is_announced_in_capitals_and_recorded(tmp_path):
    fill(tmp_path, "images", "masks")
    data = load_folder(tmp_path)
    assert "RANDOM SPLIT" in str(data.origins[0])
    assert data.provenance[0]["random_split"] is True
    assert "drawn with seed 0" in data.provenance[0]["test"]
    json.dumps(data.provenance, allow_nan=False)


def test_labels_without_pictures_do_not_hide_masks(tmp_path):
    semantic_priors(tmp_path)
    (tmp_path / "labels").rename(tmp_path / "masks")
    (tmp_path / "labels").mkdir()
    assert load_folder(tmp_path).has_truth
    write_list(tmp_path / "labels" / "im0.txt", ["0 0.5 0.5 0.1 0.1"])
    assert load_folder(tmp_path).has_truth


def test_points_are_derived_from_masks_and_said_to_be(tmp_path):
    nudt(tmp_path)
    centroid, coarse = load_folder(tmp_path), load_folder(tmp_path, "coarse")
    assert "derived from the true masks (centroid)" in centroid.provenance[0]["points"]
    assert "coarse, drawn with seed 0" in coarse.provenance[0]["points"]
    assert all(s.truth()[tuple(s.points[0])] for s in coarse.samples)
    again = load_folder(tmp_path, "coarse")
    assert all(np.array_equal(a.points, b.points) for a, b in zip(coarse.samples, again.samples, strict=True))
    assert any(not np.array_equal(a.points, b.points) for a, b in zip(coarse.samples, centroid.samples, strict=True))
    with pytest.raises(FileNotFoundError, match="no point labels; looked for csv"):
        load_folder(tmp_path, "csv")


def test_coarse_points_do_not_change_with_the_other_images(tmp_path):
    nudt(tmp_path)
    whole = {s.name: s.points.tolist() for s in load_folder(tmp_path, "coarse").samples}
    alone = load_split(tmp_path, "test", "coarse").test
    assert {s.name: s.points.tolist() for s in alone} == {n: whole[n] for n in N[5:]}


def test_scoring_needs_no_points_and_no_other_images(tmp_path):
    semantic_priors(tmp_path)
    for name in N[:4]:
        (tmp_path / "images" / f"{name}.png").write_text("broken")
        (tmp_path / "masks_centroid" / f"{name}.png").unlink()
    data = load_split(tmp_path, "test")
    assert [s.name for s in data.test] == N[4:]
    assert data.has_truth


def test_several_folders_are_one_set_whose_parts_are_known(tmp_path):
    semantic_priors(tmp_path / "a")
    nudt(tmp_path / "b")
    data = load_folders([tmp_path / "a", tmp_path / "b"])
    parts = [load_folder(tmp_path / "a"), load_folder(tmp_path / "b")]
    for split in SPLITS:
        assert [s.name for s in getattr(data, split)] == [s.name for p in parts for s in getattr(p, split)]
    assert data.name == "a+b"
    assert [s.set_name for s in data.test] == ["a", "a", "b"]
    assert [o["set_name"] for o in data.provenance] == ["a", "b"]
    assert data.digest() != join(parts[::-1]).digest()
    with pytest.raises(ValueError, match="Two of the sets are called 'a'"):
        join([parts[0], parts[0]])


@pytest.mark.data
def test_sirst3_is_the_union_of_its_three_sets(request):
    shared = Path(__file__).resolve().parents[3] / "shared" / "data"
    count = {split: 0 for split in SPLITS}
    for name in ("sirst-v1", "irstd-1k", "nudt-sirst"):
        for split in SPLITS:
            count[split] += sum(1 for line in (shared / name / "mode" / f"{split}.txt").read_text().split() if line)
    assert count == {"train": 1402, "val": 274, "test": 1079}


def test_images_are_found_in_subfolders_but_not_beside_pictures(tmp_path):
    fill(tmp_path, "in/seq1", n=2)
    fill(tmp_path, "in/seq2", n=1)
    assert list(find_images(tmp_path / "in")) == ["seq1/im0", "seq1/im1", "seq2/im0"]
    save(tmp_path / "in" / "top.png", image_of(0))
    assert list(find_images(tmp_path / "in")) == ["top"]  # the output of an earlier command may lie in a subfolder


def test_the_same_name_with_two_extensions_is_refused(tmp_path):
    semantic_priors(tmp_path)
    save(tmp_path / "images" / "im0.bmp", image_of(1))
    with pytest.raises(ValueError, match=r"im0.bmp and im0.png have the same name"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match=r"im0.bmp and im0.png have the same name"):
        find_images(tmp_path)


def test_the_page_on_layouts_names_every_row():
    page = (Path(__file__).resolve().parents[2] / "docs" / "layouts.md").read_text()
    for layout in LAYOUTS:
        own = layout.name.endswith("/") or layout.name == "images in the folder itself"  # the last line has these
        assert own or f"\n| {layout.name} |" in page, layout.name
        for part in layout.parts:
            assert f"`{part.images}/`" in page or part.images == ".", part.images
    for form in FORMATS:
        assert f"\n| `{form}` |" in page, form
    assert all(extension in page for extension in EXTENSIONS)
