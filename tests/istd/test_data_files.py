"""Images, masks and point files as users have them: each is read right, or refused by a sentence that names it."""

import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from istd.data.files import read_text
from istd.data.images import read_image
from istd.data.layouts import load_folder
from istd.data.masks import read_mask, read_true_mask
from istd.data.names import Names
from istd.data.sensor import SensorRange
from istd.regions import find_regions
from tests.istd.folders import SHAPE, centre, fill, image_of, mask_of, names, save, write_list

N = names()


@pytest.fixture
def folder(tmp_path):
    root = fill(tmp_path / "set", "images", "labels")
    for name, part in (("train", N[:3]), ("val", N[3:4]), ("test", N[4:])):
        write_list(root / "mode" / f"{name}.txt", part)
    return root


# --- images ----------------------------------------------------------------------------------------------------------


def test_postscript_that_is_named_png_is_never_run(tmp_path, monkeypatch):
    path, called = tmp_path / "a.png", tmp_path / "called"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n")
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nopen({str(called)!r}, 'w')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read_image(path)
    assert not called.exists()


def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    for name in ("a.png", "b.png"):
        with pytest.raises(ValueError, match=rf"{name} is no regular file"):
            read_image(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name} is no regular file"):
            read_text(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_image(tmp_path / "c.png")


def test_a_header_that_claims_too_much_is_not_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"a\.png (has 60000x60000 pixels|cannot be read)"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("ending", ["png", "bmp", "jpg", "tif"])
def test_a_truncated_file_is_not_read_as_whole(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    save(path, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=rf"a\.{ending} "):
            read_image(path)


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    array = np.zeros((20, 40), np.uint8)
    array[2, 30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (40, 20)
    assert np.argwhere(image == 1).tolist() == [[30, 17]]


def test_several_pages_are_said(tmp_path):
    pages = [Image.fromarray(image_of(i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match=r"a\.tif holds 3 pages"):
        read_image(tmp_path / "a.tif")


def png_of_16_bits(path, array, colour):
    """A PNG of 16 bits a channel: Pillow writes none in colour."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    path.parent.mkdir(exist_ok=True)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_not_cut_to_8(tmp_path, colour, channels):
    frame = np.repeat(frame16()[:, :, None], channels, axis=2)
    png_of_16_bits(tmp_path / "a.png", frame, colour)
    for read in (read_image, read_mask):
        with pytest.raises(ValueError, match=r"a\.png holds colours or an alpha channel of 16 bits.*16-bit grey"):
            read(tmp_path / "a.png")
    png_of_16_bits(tmp_path / "b.png", frame[:, :, 0], 0)
    save(tmp_path / "c.png", frame[:, :, 0])
    assert np.array_equal(read_image(tmp_path / "b.png"), read_image(tmp_path / "c.png"))


@pytest.mark.parametrize(
    ("dtype", "kind", "photometric", "said"),
    [("i1", 2, 1, "signed bytes"), ("<u2", 1, 0, "deep values of which 0 is white"), ("u1", 1, 1, None)],
)
def test_kinds_of_tiff_that_would_be_read_wrongly_are_refused(tmp_path, dtype, kind, photometric, said):
    values = np.arange(400).reshape(20, 20).astype(dtype)
    data, bits = values.tobytes(), 8 * values.itemsize
    short = [(256, 20), (257, 20), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 20)]
    tags = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in [*short, (279, len(data)), (339, kind)])
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", 10)
    (tmp_path / "a.tif").write_bytes(head + tags + bytes(4))
    if said is None:
        assert np.array_equal(np.rint(255 * read_image(tmp_path / "a.tif")), values)
        return
    with pytest.raises(ValueError, match=rf"a\.tif holds {said}"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    frame = np.random.default_rng(0).normal(300, 5, (20, 20)).astype(np.float32)
    frame[3, 4] = value
    save(tmp_path / "a.tif", frame)
    with pytest.raises(ValueError, match=r"a\.tif: it holds values that are not finite"):
        read_image(tmp_path / "a.tif")


# --- the sensor's range ----------------------------------------------------------------------------------------------


def frame16(seed=0):
    """A 14-bit frame of 128 x 160 between 7000 and 9550, with a 3 x 3 target at the upper end."""
    rng = np.random.default_rng(seed)
    frame = 7000 + 1500 * np.linspace(0, 1, 160)[None] + rng.normal(0, 20, (128, 160))
    frame[60:63, 80:83] = [[9000, 9300, 9000], [9300, 9550, 9300], [9000, 9300, 9000]]
    return np.clip(frame, 0, 16383).astype(np.uint16)


@pytest.mark.parametrize("places", [[(5, 5)], [(0, 0)], [(127, 159), (3, 3), (60, 10)]])
@pytest.mark.parametrize("value", [0, 16383])
def test_defective_pixels_leave_a_frame_as_it_is(places, value):
    clean = frame16()
    hot = clean.copy()
    for place in places:
        hot[place] = value
    rule = SensorRange()
    # The range may move by what the neighbours of the defective pixel lose of their extremes: less than 1 % here.
    assert np.allclose(rule.limits(hot), rule.limits(clean), rtol=0, atol=0.01 * np.ptp(clean))
    difference = np.abs(rule(hot) - rule(clean))
    for place in places:
        difference[place] = 0
    assert difference.max() < 0.02


def test_a_small_target_keeps_its_contrast():
    frame = frame16()
    seen = SensorRange()(frame)
    target, around = seen[60:63, 80:83], seen[50:72, 70:92]
    # Of 20480 pixels two may saturate on each side, and single peaks: the target's nine hold five values.
    assert (target == 1).sum() <= 5
    assert target.min() - np.median(around) > 0.35
    assert 0 < (seen == 1).sum() <= 5


def test_a_cluster_of_defective_pixels_counts_by_its_share():
    frame = np.random.default_rng(0).normal(8000, 30, (512, 640)).astype(np.float32)
    clean = SensorRange().limits(frame)
    frame[100:105, 100:106] = 16383  # 30 of 327680 pixels, under 0.01 %
    assert np.allclose(SensorRange().limits(frame), clean, atol=15)


def test_a_fixed_range_is_the_same_for_every_frame_and_depth(tmp_path):
    save(tmp_path / "a.png", np.full((20, 20), 128, np.uint8))
    save(tmp_path / "b.png", np.full((20, 20), 128, np.uint16))
    save(tmp_path / "c.tif", np.full((20, 20), 128, np.float32))
    rule = SensorRange(100, 200)
    for name in ("a.png", "b.png", "c.tif"):
        assert np.allclose(read_image(tmp_path / name, rule), 0.28), name
    with pytest.raises(ValueError, match=r"a\.png: its values 128\.\.128 all lie on one side of .* 7000\.\.9000"):
        read_image(tmp_path / "a.png", SensorRange(7000, 9000))


def test_eight_bits_are_divided_by_255_whatever_they_hold():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(SensorRange()(every), every.astype(np.float32) / np.float32(255))
    assert np.allclose(SensorRange(polarity="black-hot")(every), 1 - every / 255, atol=1e-7)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"low": 1.0}, "belong together"),
        ({"low": 2.0, "high": 2.0}, "must rise"),
        ({"low": 0.0, "high": float("nan")}, "must rise"),
        ({"percentiles": [99, 1]}, "must rise within"),
        ({"percentiles": [1]}, "needs numbers"),
        ({"polarity": "cold"}, "white-hot, black-hot"),
        ({"gain": 1}, "has the keys"),
        ({"low": "a", "high": 1}, "needs numbers"),
        ([], "has the keys"),
    ],
)
def test_impossible_ranges_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        SensorRange.from_dict(rule)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_masks_are_read_by_one_rule(tmp_path):
    clean = mask_of(2) > 0
    edges = np.where(clean, 255, 0).astype(np.uint8)
    edges[centre(2)[0] - 2, centre(2)[1]] = 19  # IRSTD-1k has such pixels; all above 0 count
    with_edge = clean.copy()
    with_edge[centre(2)[0] - 2, centre(2)[1]] = True
    label = np.zeros(SHAPE)
    label[2:5, 2:5], label[10:12, 5:7] = 1, 9
    rounded = np.random.default_rng(0).integers(1, 4, SHAPE).astype(np.uint8)
    rounded[clean] = 253
    for name, values, expected, near_binary, by_half in (
        ("0-255", np.where(clean, 255, 0), clean, False, False),
        ("0-1", np.where(clean, 1, 0), clean, False, False),
        ("stray", np.where(clean, 255, 0) + (np.arange(24 * 32).reshape(SHAPE) == 0), None, True, False),
        ("edges", edges, with_edge, True, False),
        ("rounded", rounded, clean, True, True),
        ("two levels, none of them 0", np.where(clean, 255, 3), clean, True, True),
        ("labels by number", label, label > 0, True, False),
        ("empty", np.zeros(SHAPE), np.zeros(SHAPE, bool), False, False),
    ):
        save(tmp_path / "m.png", values.astype(np.uint8))
        read = read_true_mask(tmp_path / "m.png")
        if expected is not None:
            assert np.array_equal(read.mask, expected), name
        assert (read.near_binary, read.rounded) == (near_binary, by_half), name


@pytest.mark.parametrize("quality", [75, 90, 95])
def test_a_mask_saved_as_jpeg_keeps_its_targets(tmp_path, quality):
    mask = np.zeros((128, 128), np.uint8)
    for row, col, side in ((20, 30, 3), (60, 90, 5), (100, 40, 7)):
        mask[row : row + side, col : col + side] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=quality)
    read = read_true_mask(tmp_path / "m.jpg")
    assert read.rounded
    assert np.array_equal(read.mask, mask > 0)


def test_a_mask_may_lie_in_the_alpha_channel_or_any_colour(tmp_path):
    mask = mask_of(3)
    nothing = np.zeros_like(mask)
    pictures = {
        "alpha": np.stack([nothing, nothing, nothing, mask], axis=2),
        "white with alpha": np.stack([nothing + 255, nothing + 255, nothing + 255, mask], axis=2),
        "green": np.stack([nothing, mask, nothing], axis=2),
        "opaque": np.stack([mask, mask, mask, nothing + 255], axis=2),
        "both": np.stack([mask, mask, mask, mask], axis=2),
    }
    for name, picture in pictures.items():
        save(tmp_path / "m.png", picture)
        read = read_true_mask(tmp_path / "m.png")
        assert np.array_equal(read.mask, mask > 0), name
        assert read.in_alpha == ("alpha" in name), name
    save(tmp_path / "m.png", np.stack([mask, mask, mask, mask_of(4)], axis=2))
    with pytest.raises(ValueError, match=r"m\.png holds one mask in its colours and another in its alpha"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (255 - mask_of(0), "Is it inverted"),
        (image_of(0), "Is it an image"),
        (np.full(SHAPE, 255, np.uint8), "100 % of its pixels are not 0"),
        (np.full(SHAPE, -1.0, np.float32), "negative"),
        (np.full(SHAPE, np.nan, np.float32), "not finite"),
    ],
)
def test_what_cannot_be_a_mask_is_refused(tmp_path, values, message):
    save(tmp_path / "m.tif", values)
    with pytest.raises(ValueError, match=rf"m\.tif is not a mask.*{message}"):
        read_mask(tmp_path / "m.tif")


def test_all_masks_are_checked_when_a_folder_is_read(folder):
    save(folder / "labels" / "im5.png", 255 - mask_of(5))  # of the test split, which is scored last
    with pytest.raises(ValueError, match=r"im5\.png is not a mask"):
        load_folder(folder)


def test_the_record_says_how_masks_were_read(folder):
    one = mask_of(5)
    one[0, 0] = 1
    save(folder / "labels" / "im5.png", one)
    assert "target where a value is above 0; 1 of 6 have levels in between" in load_folder(folder).origins[0].masks


@pytest.mark.data
def test_irstd_1k_has_its_published_targets():
    from tests.conftest import SIRST

    files = sorted((SIRST.parent / "irstd-1k" / "labels").glob("*.png"))
    if not files:
        pytest.skip("IRSTD-1k is not at ../shared/data/irstd-1k")
    assert sum(len(find_regions(read_mask(path))) for path in files) == 1495


# --- points ----------------------------------------------------------------------------------------------------------


def points_csv(folder, text, encoding="utf-8"):
    (folder / "points.csv").write_bytes(text.encode(encoding))
    return {s.name: s.points.tolist() for s in load_folder(folder, "csv").samples}


def others(*but):
    return "".join(f"{n},,\n" for n in N if n not in but)


def test_names_in_a_table_may_be_paths_of_any_system(folder):
    rows = "C:\\data\\images\\im0.png,6,4\n./images/im1.bmp,8,5\nim2,10,6\n"
    found = points_csv(folder, "image,x,y\n" + rows + others("im0", "im1", "im2"))
    assert [found[n] for n in N[:3]] == [[[4, 6]], [[5, 8]], [[6, 10]]]


def test_empty_rows_are_passed_over_and_names_that_mean_nothing_are_said(folder):
    points_csv(folder, "image,x,y\n,,\n\nim0,6,4\nim77,5,5\nim77,6,6\n" + others("im0"))
    assert load_folder(folder).origins[0].points == "points.csv (1 of its names are no images of the set, first 'im77')"


def test_names_with_dots_need_no_extension():
    found = Names(["frame.0001", "frame.0002", "a.png", "seq/b"])
    assert found.find("frame.0001") == "frame.0001"
    assert found.find("frame.0002.png") == "frame.0002"
    assert found.find("x\\y\\frame.0001.TIF") == "frame.0001"
    assert found.find("a.png") == "a.png"
    assert found.find("a.png.png") == "a.png"
    assert found.find("b") == "seq/b"
    assert found.find("other/b") is None
    assert found.find("frame") is None
    assert found.find("") is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk"])
def test_tables_come_in_the_encodings_of_the_field(folder, encoding):
    (folder / "images" / "im0.png").rename(folder / "images" / "红外.png")
    (folder / "labels" / "im0.png").rename(folder / "labels" / "红外.png")
    write_list(folder / "mode" / "train.txt", ["红外", *N[1:3]])
    found = points_csv(folder, "image;x;y\n红外.png;6;4\n" + others("im0").replace(",", ";"), encoding)
    assert found["红外"] == [[4, 6]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,x,y\nim0,0.5,0.4\nim1,0.25,0.75\n", "all coordinates lie between 0 and 1"),
        ("image,x,y\nim0,6,4\nim0,6,4\n", r"line 3: image 'im0' has this point already \(line 2\)"),
        ("image,x,y\nim0,6.2,4.1\nim0,6.4,4.3\n", "has this point already"),
        ("image,x,y,x\nim0,6,4,3\n", "two columns 'x'"),
        ("image,x,y\na/im0,6,4\nb/im0,7,5\n", "'b/im0' and 'a/im0' in other folders would both be the image 'im0'"),
        ("image,x,y\nim0,nan,4\n", "x='nan'.*not two numbers"),
        ("image,x,y\nim0,1e30,4\n", "not two numbers"),
        ("image,x,y\nim0,1_0,4\n", "x='1_0'.*not two numbers"),
        ("image,x,y,w,h\nim0,5,3,3,3\n", "points.csv: beside columns 'w' and 'h'"),
        ("image,x,y\nim0,6\n", "y=''.*not two numbers"),
        ("image,x,y\nim,0,6,4\n", "4 fields under 3 columns"),
        ("image,x,y\n,6,4\n", "line 2: no image is named"),
        ('image,x,y\n"im0,6,4\n', "line"),
        ("", "no column 'image'"),
        ("image,x,y\nim9,3,4\n", r"does not stand in .*points.csv \(it names 'im9', which is no image"),
        ("image,x,y\nim0,32,4\n" + others("im0"), r"\(x=32, y=4\) of points.csv lies outside"),
    ],
)
def test_doubtful_tables_are_refused(folder, text, message):
    with pytest.raises(ValueError, match=message):
        points_csv(folder, text)


def coco_file(folder, annotations, images=None):
    images = [{"id": i, "file_name": f"{n}.png"} for i, n in enumerate(N)] if images is None else images
    (folder / "points.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return [s.points.tolist() for s in load_folder(folder, "coco").samples]


def test_a_keypoint_that_is_not_labelled_gives_way_to_the_box(folder):
    box = {"bbox": [5, 3, 3, 3]}
    assert coco_file(folder, [{"image_id": 0, "keypoints": [0, 0, 0], **box}])[0] == [[4, 6]]
    assert coco_file(folder, [{"image_id": 0, "keypoints": [0, 0, 0, 7, 8, 2], **box}])[0] == [[8, 7]]
    assert coco_file(folder, [{"image_id": 0, "keypoints": [7, 8], **box}])[0] == [[8, 7]]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 0, "bbox": ["5", "3", "3", "3"]}, "must be four numbers"),
        ({"image_id": 0, "bbox": [5, 3, 3]}, "must be four numbers"),
        ({"image_id": 0, "bbox": [5, 3, -3, 3]}, "must be four numbers"),
        ({"image_id": 0, "bbox": 5}, "must be four numbers"),
        ({"image_id": 0, "bbox": [float("nan"), 3, 3, 3]}, "must be four numbers"),
        ({"image_id": 0, "bbox": [True, 3, 3, 3]}, "must be four numbers"),
        ({"image_id": 0, "keypoints": [0, 0, 0]}, "neither 'keypoints' nor 'bbox'"),
        ({"image_id": 0, "keypoints": ["1", "2", "2"]}, "must be numbers"),
        ({"image_id": 0, "keypoints": [1, 2, 2, 3]}, "three belong to each"),
        ({"image_id": 77, "bbox": [1, 1, 1, 1]}, "unknown image_id 77"),
        ({"image_id": [], "bbox": [1, 1, 1, 1]}, "unknown image_id"),
        ({"image_id": 0}, "neither"),
        ("text", "unknown image_id"),
        (None, "unknown image_id"),
        ({"image_id": 0, "bbox": [0.1, 0.2, 0.3, 0.4]}, "does not|outside|lie between 0 and 1"),
    ],
)
def test_doubtful_annotations_are_refused(folder, annotation, message):
    with pytest.raises(ValueError, match=message):
        coco_file(folder, [annotation])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"id": 0, "file_name": "im0.png"}, {"id": 0, "file_name": "im1.png"}], "that no other image has"),
        ([{"id": 0, "file_name": "a/im0.png"}, {"id": 1, "file_name": "b/im0.png"}], "would both be the image 'im0'"),
        ([{"id": 0, "file_name": "im0.png", "width": 64, "height": 48}], "says 64x48"),
        ([{"id": 0}], "no 'file_name'"),
        ([7], "no 'file_name'"),
        ("x", "not COCO JSON"),
    ],
)
def test_doubtful_images_of_annotations_are_refused(folder, images, message):
    with pytest.raises(ValueError, match=message):
        coco_file(folder, [], images)


def test_two_coco_files_that_contradict_each_other_are_refused(folder):
    for name, left in (("all", 5), ("more", 6)):
        images = [{"id": i, "file_name": f"{n}.png"} for i, n in enumerate(N)]
        content = {"images": images, "annotations": [{"image_id": 0, "bbox": [left, 3, 3, 3]}]}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations/more.json and annotations/all.json give other points"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares entities"),
        ("<annotation><object></annotation>", "is not XML"),
        ("<annotation><object><name>t</name></object></annotation>", "neither a centroid nor a bndbox"),
        ("<annotation><size><width>9</width><height>9</height></size></annotation>", "for an image of 9x9"),
    ],
)
def test_doubtful_xml_is_refused(folder, text, message):
    (folder / "Annotations").mkdir()
    for name in N:
        (folder / "Annotations" / f"{name}.xml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_folder(folder, "voc")


def test_the_box_of_a_whole_class_is_no_target(folder):
    """SIRST's XML beside the masks has one object for all pixels of the class, with the box of all targets together."""
    (folder / "Annotations").mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax></bndbox>"
    whole = f"<object><pixels><id>0</id></pixels>{box}</object>"
    centroid = "<object><centroid><yc>5.49</yc><xc>7.51</xc></centroid></object>"
    for name in N:
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{whole}{centroid}</annotation>")
    assert all(s.points.tolist() == [[4, 6]] for s in load_folder(folder, "voc").samples)


@pytest.mark.parametrize("line", ["0 0.5 0.5", "0 5 7 1 1", "a b c d e", "0 nan 0.5 0.1 0.1"])
def test_doubtful_yolo_labels_are_refused(folder, line):
    write_list(folder / "labels" / "im0.txt", [line])
    with pytest.raises(ValueError, match=r"im0\.txt, line 1: .* is not 'class x y width height'"):
        load_folder(folder, "yolo")


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"shapes": 9' + "9" * 5000 + "}", "\0", ""])
def test_json_that_cannot_be_read_is_named(folder, text):
    (folder / "points.json").write_text(text)
    with pytest.raises(ValueError, match=r"points\.json is not COCO JSON"):
        load_folder(folder)


def test_doubtful_labelme_files_are_refused(folder):
    for shapes, message in (
        ([{"points": []}], "needs 'points'"),
        ([{"points": [["a", 1]]}], "needs 'points'"),
        ([3], "needs 'points'"),
    ):
        (folder / "images" / "im0.json").write_text(json.dumps({"shapes": shapes}))
        with pytest.raises(ValueError, match=message):
            load_folder(folder, "labelme")
