"""Where archives come from: downloads, imports and their command line."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torchvision
from image_sets import arrays, refusal, save
from PIL import Image

from ddlnl import datasets, sources
from ddlnl.__main__ import main


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache directory, empty, and no other place to look in."""
    monkeypatch.delenv("DDLNL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddlnl"


class Published:
    """Stands for torchvision.datasets.CIFAR10 and counts the downloads."""

    downloads = 0

    def __init__(self, root, train, download):
        assert download
        Published.downloads += 1
        own = arrays()
        self.data = own["train_images" if train else "test_images"]
        self.targets = own["train_labels" if train else "test_labels"].tolist()
        self.classes = own["class_names"].tolist()


def test_a_missing_cifar_archive_is_downloaded_once_and_kept_as_an_archive(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Published)
    monkeypatch.setattr(Published, "downloads", 0)
    for _ in range(2):
        data = datasets.load("cifar10", tmp_path / "new")
        assert np.array_equal(data.train.images, arrays()["train_images"])
        assert np.array_equal(data.test.clean, arrays()["test_labels"])
        assert Published.downloads == 2  # the training and the test part
    with zipfile.ZipFile(tmp_path / "new" / "cifar10.npz") as file:
        assert {member.compress_type for member in file.infolist()} == {zipfile.ZIP_STORED}


def test_a_failed_download_says_what_was_tried_and_how_to_help(tmp_path, cache, monkeypatch):
    def offline(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    message = refusal(datasets.load, "cifar100", tmp_path)
    for part in (str(tmp_path), str(cache), "Name or service not known", "cifar-100-python.tar.gz", "$DDLNL_DATA"):
        assert part in message
    assert not list(tmp_path.glob("*.npz"))


def test_missing_tiny_imagenet_says_how_to_bring_it(cache):
    message = refusal(datasets.load, "tiny_imagenet")
    assert str(cache) in message
    assert "python -m ddlnl data import-tiny-imagenet FOLDER" in message


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory) -> Path:
    """The published layout with two training pictures and one validation picture in each of 200 classes.

    The grey level of a picture tells its class, plus 20 in the second training picture in lexicographic order.
    """
    folder = tmp_path_factory.mktemp("tiny") / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for label in range(200):
        wnid = f"n{label:08d}"
        own = folder / "train" / wnid / "images"
        own.mkdir(parents=True)
        for number, extra in ((10, 0), (2, 20)):  # "_10" comes before "_2"
            Image.new("L", (64, 64), label + extra).save(own / f"{wnid}_{number}.JPEG")
        file = f"val_{(label * 7) % 200}.JPEG"
        Image.new("RGB", (64, 64), (label, label, label)).save(folder / "val" / "images" / file)
        lines.append(f"{file}\t{wnid}\t0\t0\t63\t63")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(sorted(lines)) + "\n")
    return folder


def test_tiny_imagenet_is_imported_in_the_order_of_an_image_folder(tiny_imagenet, tmp_path):
    sources.import_tiny_imagenet(tiny_imagenet, tmp_path)
    data = datasets.load("tiny_imagenet", tmp_path)
    assert data.train.images.shape == (400, 64, 64, 3)
    assert data.train.clean.tolist() == np.repeat(np.arange(200), 2).tolist()
    assert data.test.clean.tolist() == list(range(200))
    assert data.train.class_names[:2] == ("n00000000", "n00000001")
    levels = data.train.images.astype(int).mean(axis=(1, 2, 3))
    assert np.abs(levels - np.repeat(np.arange(200), 2) - np.tile([0, 20], 200)).max() <= 2
    assert np.abs(data.test.images.astype(int).mean(axis=(1, 2, 3)) - np.arange(200)).max() <= 2


def test_regrouped_validation_pictures_give_the_same_archive(tiny_imagenet, tmp_path):
    regrouped = tmp_path / "regrouped"
    regrouped.mkdir()
    (regrouped / "train").symlink_to(tiny_imagenet / "train")
    for line in (tiny_imagenet / "val" / "val_annotations.txt").read_text().splitlines():
        file, wnid, *_ = line.split("\t")
        place = regrouped / "val" / wnid / "images"
        place.mkdir(parents=True)
        (place / file).symlink_to(tiny_imagenet / "val" / "images" / file)
    one = sources.import_tiny_imagenet(tiny_imagenet, tmp_path / "one")
    other = sources.import_tiny_imagenet(regrouped, tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()


def test_an_incomplete_tiny_imagenet_is_refused(tiny_imagenet, tmp_path):
    assert "of 0 classes" in refusal(sources.import_tiny_imagenet, tmp_path / "nowhere", tmp_path)
    (tmp_path / "train").symlink_to(tiny_imagenet / "train")
    (tmp_path / "val" / "images").mkdir(parents=True)
    annotations = (tiny_imagenet / "val" / "val_annotations.txt").read_text()
    (tmp_path / "val" / "val_annotations.txt").write_text(annotations)
    (tmp_path / "val" / "images" / "val_0.JPEG").write_bytes(b"no picture")
    assert "val_0.JPEG cannot be read as a picture" in refusal(sources.import_tiny_imagenet, tmp_path, tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text(annotations.replace("n00000007", "n00000008"))
    assert "199 classes" in refusal(sources.import_tiny_imagenet, tmp_path, tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text(annotations.replace("n00000007", "n11111111"))
    assert "other classes in val" in refusal(sources.import_tiny_imagenet, tmp_path, tmp_path)
    assert not (tmp_path / "tiny_imagenet.npz").exists()


def test_the_command_line_fetches_and_describes(tmp_path, capsys):
    save(tmp_path / "cifar10.npz", {"observed_labels__worst": np.arange(12) % 3})
    main(["data", "fetch", "cifar10", "--data-dir", str(tmp_path)])
    assert capsys.readouterr().out == (
        "cifar10: 12 training and 12 test images of 4x4x3 in 3 classes; human labels: worst.\n"
    )


def test_the_command_line_imports_tiny_imagenet(tiny_imagenet, tmp_path, capsys):
    main(["data", "import-tiny-imagenet", str(tiny_imagenet), "--data-dir", str(tmp_path)])
    assert "400 training and 200 test images of 64x64x3 in 200 classes" in capsys.readouterr().out


def test_the_command_line_refuses_in_one_sentence_with_exit_code_2(tmp_path, capsys):
    for command in (["fetch", "cifr10"], ["fetch", str(tmp_path / "a.npz")], ["import-cifar-n", "nowhere.pt"]):
        with pytest.raises(SystemExit) as stop:
            main(["data", *command])
        assert stop.value.code == 2
        output = capsys.readouterr()
        assert not output.out
        assert output.err.count("\n") == 1
