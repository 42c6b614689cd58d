"""Released sets become files that this package evaluates with the protocol they were made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import image_set
from test_rcig_import import checkpoint, pack

from ddlnl import __main__, datasets, evaluation, preprocess, rcig_evaluation
from ddlnl.distilled import DistilledSet


@pytest.fixture
def folder(tmp_path):
    """An archive called cifar10 with two classes of 8x8 pixels, and a released set of each method for it."""
    arrays = {"class_names": np.array(["a", "b"])}
    for part, seed in (("train", 0), ("test", 1)):
        images = image_set(classes=2, seed=seed)
        arrays |= {f"{part}_images": images.images, f"{part}_labels": images.observed}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    source = np.random.default_rng(0)
    images, labels = (source.normal(size=shape).astype(np.float32) for shape in ((20, 8, 8, 3), (20, 2)))
    (tmp_path / "checkpoint_10000").write_bytes(pack(checkpoint(x_proto=images, y_proto=labels)))
    tensors = {"images": torch.randn(4, 3, 8, 8), "labels": torch.randn(4, 2), "lr": torch.tensor(0.02)}
    for name, tensor in tensors.items():
        torch.save(tensor, tmp_path / f"{name}_best.pt")
    return tmp_path


def run(folder, *words, capsys):
    """Exit code and what was said."""
    try:
        __main__.main([str(word) for word in words])
        code = 0
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_released_set_of_rcig_keeps_its_free_labels_and_gets_the_published_protocol(folder, capsys):
    out = folder / "rcig.safetensors"
    data = f"{folder / 'cifar10.npz'}"
    code, said = run(folder, "data", "import-rcig", folder / "checkpoint_10000", out, "--dataset", data, capsys=capsys)
    assert (code, said) == (0, f"Wrote {out}: 20 images, IPC 10.\n")
    small = DistilledSet.load(out)
    assert small.free_labels
    assert small.protocol == rcig_evaluation.published_protocol("cifar10", 10)
    train = datasets.load(data).train
    assert small.preprocessing.hash == preprocess.fit(train.images, "zca-relative", "cifar10").hash
    assert torch.equal(small.training_set()[0], small.images)


def test_a_released_set_of_datm_trains_students_at_its_step_size_on_probabilities(folder, capsys):
    out = folder / "datm.safetensors"
    data = f"{folder / 'cifar10.npz'}"
    assert run(folder, "data", "import-datm", folder, out, "--dataset", data, capsys=capsys)[0] == 0
    small = DistilledSet.load(out)
    assert small.ipc == 2
    assert small.protocol.recipe.lr == pytest.approx(0.02)
    torch.testing.assert_close(small.labels.sum(1), torch.ones(4))
    short = DistilledSet(
        **vars(small)
        | {"protocol": small.protocol.__class__(small.protocol.architecture, small.protocol.recipe, 1, max_steps=2)}
    )
    scores = evaluation.evaluate(short, datasets.load(data).test, repeats=1, device="cpu")
    assert 0 <= scores.mean <= 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("import-rcig", "missing", "out", "--dataset", "cifar10.npz"), "missing"),
        (("import-rcig", "checkpoint_10000", "out", "--dataset", "cifar11"), "cifar11"),
        (("import-rcig", "images_best.pt", "out", "--dataset", "cifar10.npz"), "images_best.pt"),
        (("import-rcig", "checkpoint_10000", "out", "--dataset", "digits"), "is no set of digits; that has images"),
        (("import-datm", "missing", "out", "--dataset", "cifar10.npz"), "missing"),
        (("import-datm", ".", "out", "--dataset", "digits"), "is no set of digits; that has images"),
    ],
)
def test_what_cannot_be_imported_is_said_in_one_sentence_and_nothing_is_written(
    folder, capsys, monkeypatch, words, sentence
):
    monkeypatch.chdir(folder)
    code, said = run(folder, "data", *words, capsys=capsys)
    assert code == 2
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (folder / "out").exists()
