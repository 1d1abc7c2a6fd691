"""Drawings, uploads and labelled folders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sftm_app.errors import SampleError
from sftm_app.evaluation import image_files
from sftm_app.evaluation.image_files import GLYPH_SIDE, centre_glyph, load_image, load_labelled_folder
from sftm_app.evaluation.samples import ImageSamples


def drawing(side: int = 280) -> np.ndarray:
    return np.zeros((side, side), np.uint8)


def centre_of_mass(glyph: np.ndarray) -> tuple[float, float]:
    mass = glyph.astype(float)
    grid = np.arange(GLYPH_SIDE) + 0.5
    return (mass.sum(1) * grid).sum() / mass.sum(), (mass.sum(0) * grid).sum() / mass.sum()


@pytest.mark.parametrize("value", [0, 40])
def test_nothing_drawn(value: int) -> None:
    assert centre_glyph(np.full((280, 280), value, np.uint8)) is None


@pytest.mark.parametrize(("top", "left"), [(0, 0), (200, 10), (90, 200), (100, 100)])
@pytest.mark.parametrize(("height", "width"), [(60, 60), (80, 30), (20, 70)])
def test_a_glyph_is_fitted_and_centred_wherever_it_was_drawn(top: int, left: int, height: int, width: int) -> None:
    image = drawing()
    image[top : top + height, left : left + width] = 255
    glyph = centre_glyph(image)
    assert glyph is not None
    assert (glyph.shape, glyph.dtype) == ((GLYPH_SIDE, GLYPH_SIDE), np.uint8)
    ink = glyph > 127
    sides = (int(ink.any(1).sum()), int(ink.any(0).sum()))
    assert max(sides) == 20
    assert min(sides) == pytest.approx(20 * min(height, width) / max(height, width), abs=1)
    assert centre_of_mass(glyph) == (pytest.approx(14, abs=0.51), pytest.approx(14, abs=0.51))


def test_where_and_how_large_it_is_drawn_does_not_matter() -> None:
    small, large = drawing(), drawing()
    small[20:60, 200:220] = 255
    large[40:240, 100:200] = 255
    left, right = centre_glyph(small), centre_glyph(large)
    assert left is not None and right is not None
    np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("side", [280, 1000, 4000])
@pytest.mark.parametrize("value", [41, 120, 255])
def test_thin_strokes_stay_visible(side: int, value: int) -> None:
    image = drawing(side)
    image[side // 10 : -side // 10, side // 2] = value
    image[side // 2, side // 10 : -side // 10] = value
    glyph = centre_glyph(image)
    assert glyph is not None
    assert glyph.max() == 255
    assert (glyph > 100).sum() >= 20


def test_a_single_pixel() -> None:
    image = drawing()
    image[3, 277] = 255
    glyph = centre_glyph(image)
    assert glyph is not None and glyph.max() == 255


def test_ink_at_one_end_is_not_cut_off() -> None:
    image = drawing()
    image[0:200, 100:104] = 60  # a faint long stroke with a heavy foot
    image[200:220, 80:130] = 255
    glyph = centre_glyph(image)
    assert glyph is not None
    assert glyph.any(1).sum() >= 20


def save_image(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


LABELS = {0: "cat", 1: "dog", 2: "7"}


def test_a_labelled_folder(tmp_path: Path) -> None:
    save_image(tmp_path / "cat" / "1.png", 10)
    save_image(tmp_path / "cat" / "2.JPG", 20)
    save_image(tmp_path / "dog" / "x.png", 30, (16, 4))  # scaled to the first one's size
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "readme.md").write_text("no class")
    samples = load_labelled_folder(tmp_path, LABELS, 1)
    assert samples.images.shape == (3, 8, 8) and samples.images.dtype == np.uint8
    greys = (int(image.mean().round()) for image in samples.images)
    assert sorted(zip(samples.labels.tolist(), greys, strict=True)) == [
        (0, 10), (0, 20), (1, 30),
    ]  # fmt: skip
    assert samples.labels.dtype == np.int64
    assert load_labelled_folder(tmp_path, LABELS, 3).images.shape == (3, 8, 8, 3)
    assert len(load_labelled_folder(tmp_path, LABELS, 1, limit=2)) == 2


def test_classes_may_be_numbers(tmp_path: Path) -> None:
    save_image(tmp_path / "1" / "x.png", 1)
    save_image(tmp_path / "cat" / "x.png", 1)
    assert load_labelled_folder(tmp_path, LABELS, 1).labels.tolist() == [1, 0]


def test_a_name_counts_before_a_number(tmp_path: Path) -> None:
    save_image(tmp_path / "1" / "x.png", 1)
    assert load_labelled_folder(tmp_path, {0: "1", 1: "0"}, 1).labels.tolist() == [0]


def test_labelled_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="does not exist"):
        load_labelled_folder(tmp_path / "none", LABELS, 1)
    with pytest.raises(SampleError, match="holds no images"):
        load_labelled_folder(tmp_path, LABELS, 1)
    save_image(tmp_path / "bird" / "1.png", 1)
    with pytest.raises(SampleError, match=r"'bird' is not a class of this task. Its classes are cat, dog, 7"):
        load_labelled_folder(tmp_path, LABELS, 1)


def test_images_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    """FAULTS A21."""
    save_image(tmp_path / "elsewhere" / "cat" / "x.png", 1)
    (tmp_path / "given" / "dog").mkdir(parents=True)
    (tmp_path / "given" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    with pytest.raises(SampleError, match="leads out of"):
        load_labelled_folder(tmp_path / "given", LABELS, 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    for path in (tmp_path / "x.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(SampleError, match="cannot be read as an image"):
            load_image(path, 1)


def test_a_class_folder_that_may_not_be_read(as_ordinary_user: Path) -> None:
    save_image(as_ordinary_user / "cat" / "1.png", 1)
    (as_ordinary_user / "cat").chmod(0)
    with pytest.raises(SampleError, match=r"cat: cannot be read \(Permission denied\)"):
        load_labelled_folder(as_ordinary_user, LABELS, 1)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_files_that_are_no_images(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(SampleError, match=r"x.png: cannot be read as an image"):
        load_image(tmp_path / "x.png", 1)


def test_damaged_images(tmp_path: Path) -> None:
    save_image(tmp_path / "x.png", 7, (64, 64))
    content = (tmp_path / "x.png").read_bytes()
    for cut in range(8, len(content) - 1, 5):
        (tmp_path / "y.png").write_bytes(content[:cut])
        try:
            load_image(tmp_path / "y.png", 1)
        except SampleError:
            continue


def test_images_that_are_too_large(tmp_path: Path) -> None:
    Image.new("1", (10_000, 5_001)).save(tmp_path / "x.png")
    with pytest.raises(SampleError, match="larger than 50000000 pixels"):
        load_image(tmp_path / "x.png", 1)


def test_a_subset_holds_every_class_however_they_are_stored() -> None:
    labels = np.array([2] * 50 + [0] * 3 + [1] * 20)
    samples = ImageSamples(np.arange(73, dtype=np.uint8)[:, None, None], labels)
    assert len(samples) == 73
    few = samples.subset(9)
    assert few.labels.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    assert few.images[:, 0, 0].tolist() == [0, 1, 2, 50, 51, 52, 53, 54, 55], "the first of each, in their order"
    assert np.bincount(samples.subset(20).labels).tolist() == [3, 8, 9], "a class that has no more leaves its room"
    assert samples.subset(2).labels.tolist() == [2, 0]
    assert samples.subset(100).labels.tolist() == labels.tolist()
    assert len(samples.subset(0)) == 0


def test_a_limit_keeps_every_class_and_opens_no_more_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat", "dog", "7"):
        for number in range(10):
            save_image(tmp_path / name / f"{number}.png", number)
    opened: list[Path] = []

    def count(path: Path, channels: int) -> np.ndarray:
        opened.append(path)
        return load_image(path, channels)

    monkeypatch.setattr(image_files, "load_image", count)
    samples = load_labelled_folder(tmp_path, LABELS, 1, limit=7)
    assert np.bincount(samples.labels).tolist() == [2, 2, 3]
    assert len(opened) == 7
    assert [int(image[0, 0]) for image in samples.images] == [0, 1, 2, 0, 1, 0, 1]
