"""A reader's own images are read as they are, and what cannot be used is refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
from image_sets import arrays, refusal, save
from PIL import Image

from ddlnl import own_images


def picture(path, colour=(200, 30, 30), size=(40, 40), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cat", (200, 30, 30)), ("dog", (30, 200, 30))):
        for number in range(3):
            picture(tmp_path / "pets" / name / f"{number}.png", colour)
    return tmp_path / "pets"


def test_an_archive_is_read_with_or_without_a_test_part(tmp_path):
    both = own_images.load(save(tmp_path / "both.npz"))
    assert len(both.test) == 12
    assert both.names[:2] == ("0", "1")
    assert both.about == ""
    train = {key: value for key, value in arrays().items() if not key.startswith("test_")}
    np.savez(tmp_path / "train.npz", **train)
    alone = own_images.load(tmp_path / "train.npz")
    assert alone.test is None
    np.testing.assert_array_equal(alone.train.images, both.train.images)
    np.testing.assert_array_equal(alone.train.observed, both.train.observed)


def test_an_archive_with_half_a_test_part_is_refused(tmp_path):
    path = save(tmp_path / "half.npz", without="test_labels")
    assert "lacks test_labels" in refusal(own_images.load, path)


def test_a_named_dataset_keeps_its_own_test_set():
    found = own_images.load("digits")
    assert (len(found.train), len(found.test)) == (1347, 450)


def test_a_run_is_about_digits_with_planted_errors_or_about_what_it_is_given(tmp_path):
    example = own_images.choose(seed=1)
    assert example.train.noise == own_images.EXAMPLE
    assert (example.train.observed != example.train.clean).any()
    own = own_images.choose(save(tmp_path / "own.npz"))
    assert own.train.noise == "clean"
    assert (own.train.observed == own.train.clean).all()
    assert own_images.choose(tmp_path / "own.npz", "symmetric:0.5").train.noise == "symmetric:0.5"


def test_a_named_dataset_is_looked_for_in_the_folder_that_is_given(tmp_path):
    save(tmp_path / "cifar10.npz")
    assert len(own_images.choose("cifar10", data_dir=tmp_path).train) == 12


def test_a_part_of_the_images_keeps_names_and_labels_together():
    whole, part = own_images.choose("digits", "symmetric:0.4"), own_images.choose("digits", "symmetric:0.4", 50)
    assert len(part.train) == len(part.names) == 50
    for name, image, label in zip(part.names, part.train.images, part.train.observed, strict=True):
        assert (whole.train.images[int(name)] == image).all()
        assert whole.train.observed[int(name)] == label
    assert "must be from 1 to 1347" in refusal(own_images.choose, "digits", None, 1348)


def test_a_folder_of_pictures_becomes_squares_with_a_class_per_folder(folder):
    found = own_images.load(folder)
    assert found.train.class_names == ("cat", "dog")
    assert found.train.observed.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.train.images.shape == (6, 32, 32, 3)
    assert (found.train.images[0] == (200, 30, 30)).all()
    assert found.names[3] == "dog/0.png"
    assert found.test is None
    assert found.about == "For the networks all 6 training pictures were brought to 32x32 pixels."


def test_oblong_and_grey_pictures_among_colour_ones_are_cut_and_coloured_and_it_says_so(folder):
    oblong = Image.new("RGB", (90, 30), (0, 0, 255))
    oblong.paste((255, 255, 255), (30, 0, 60, 30))  # the central square is white
    oblong.save(folder / "cat" / "9.png")
    picture(folder / "dog" / "9.png", 77, mode="L")
    found = own_images.load(folder, size=16)
    names = dict(zip(found.names, found.train.images, strict=True))
    assert (names["cat/9.png"][:, 1:-1] == 255).all()  # the filter reaches over the edges
    assert (names["dog/9.png"] == 77).all()
    assert found.about.endswith(
        "brought to 16x16 pixels, 1 that are not square were cut to their central square, 1 grey ones became colour."
    )


def test_grey_pictures_alone_stay_grey_and_transparent_parts_become_white(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "g" / name / "0.png", 90, mode="L")
    assert own_images.load(tmp_path / "g").train.images.shape == (2, 32, 32, 1)
    picture(tmp_path / "g" / "a" / "1.png", (0, 0, 0, 0), mode="RGBA")
    assert (own_images.load(tmp_path / "g").train.images[1] == 255).all()


def test_large_pictures_become_64_pixels_a_side(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / "g" / name / "0.png", size=(300, 200))
    assert own_images.load(tmp_path / "g").train.images.shape[1:3] == (64, 64)


def test_a_folder_may_be_split_into_train_and_test_and_a_test_class_may_be_missing(tmp_path):
    for name in ("cat", "dog"):
        picture(tmp_path / "train" / name / "0.png")
    picture(tmp_path / "test" / "dog" / "0.png")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    found = own_images.load(tmp_path)
    assert found.train.class_names == ("cat", "dog")
    assert found.test.observed.tolist() == [1]
    picture(tmp_path / "test" / "wolf" / "0.png")
    assert "has the class 'wolf', which train does not have" in refusal(own_images.load, tmp_path)


def test_a_class_and_a_picture_may_be_links_but_no_picture_may_be_there_twice(folder, tmp_path):
    picture(tmp_path / "elsewhere" / "0.png", (1, 2, 3))
    (folder / "bird").symlink_to(tmp_path / "elsewhere")
    picture(tmp_path / "single.png")
    (folder / "cat" / "9.png").symlink_to(tmp_path / "single.png")
    assert own_images.load(folder).train.observed.tolist() == [0, 1, 1, 1, 1, 2, 2, 2]
    (folder / "dog" / "9.png").symlink_to(tmp_path / "single.png")
    message = refusal(own_images.load, folder)
    assert f"{folder / 'dog' / '9.png'} is {folder / 'cat' / '9.png'} through a link" in message


def test_a_name_that_is_no_utf8_is_kept(folder):
    (folder / "cat" / "0.png").rename(folder / "cat" / "caf\udce9.png")
    found = own_images.load(folder)
    assert "cat/caf\udce9.png" in found.names


def test_what_is_inside_counts_and_not_how_a_file_is_called(folder):
    """Pillow would hand PostScript to an interpreter."""
    Image.new("RGB", (9, 9)).save(folder / "cat" / "0.png", "GIF")
    own_images.load(folder)
    Image.new("RGB", (9, 9)).save(folder / "cat" / "0.png", "EPS")
    assert "cannot identify image file" in refusal(own_images.load, folder)


def test_what_cannot_be_used_is_refused_in_one_sentence(folder, tmp_path):
    assert "from 8 to 128" in refusal(own_images.load, folder, 4)
    assert "is for a folder" in refusal(own_images.load, save(tmp_path / "a.npz"), 32)
    assert "does not exist" in refusal(own_images.load, tmp_path / "absent")
    (folder / "wolf").mkdir()
    assert "wolf holds no picture" in refusal(own_images.load, folder)
    (folder / "wolf" / "0.png").write_text("no picture")
    assert "cannot be read as a picture" in refusal(own_images.load, folder)
    picture(folder / "wolf" / "0.png", 4000, mode="I;16")
    assert "8 bits a channel" in refusal(own_images.load, folder)
    one = tmp_path / "one"
    picture(one / "cat" / "0.png")
    assert "holds 1 class folders, and at least 2" in refusal(own_images.load, one)
    (tmp_path / "none").mkdir()
    assert "holds 0 class folders" in refusal(own_images.load, tmp_path / "none")
