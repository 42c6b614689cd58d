from __future__ import annotations

import struct

import numpy as np
import pytest
from flax_checkpoint import checkpoint, pack

from ddlnl import flax_file, rcig_import
from ddlnl.errors import InputError


def written(tmp_path, content):
    path = tmp_path / "checkpoint_15000"
    path.write_bytes(content)
    return path


def test_a_published_checkpoint_gives_its_average_with_channels_first(tmp_path):
    tree = checkpoint()
    path = written(tmp_path, pack(tree))
    found = rcig_import.read(path)
    expected = tree["ema_average"]["x_proto"]
    assert found.images.shape == (4, 3, 8, 8)
    assert np.array_equal(found.images.numpy(), expected.transpose(0, 3, 1, 2))
    assert np.array_equal(found.labels.numpy(), tree["ema_average"]["y_proto"])
    last = rcig_import.read(path, average=False)
    assert np.allclose(last.images.numpy(), found.images.numpy() + 1)


def test_every_kind_of_number_and_text_is_read(tmp_path):
    tree = {"a": [1, -300, 2.5, None, "x" * 40], "b": {"c": np.arange(6, dtype=np.int64).reshape(2, 3)}}
    found = flax_file.read(written(tmp_path, pack(tree)))
    assert found["a"] == tree["a"]
    assert np.array_equal(found["b"]["c"], tree["b"]["c"])
    assert flax_file.read(written(tmp_path, b"\x81\xa1k\xe0")) == {"k": -32}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pack(checkpoint())[:-5], "too early"),
        (pack(checkpoint()) + b"\x00", "not one dictionary"),
        (b"\xdf\xff\xff\xff\xff", "too early"),
        (b"\x81\xa1k" + b"\xdd\x7f\xff\xff\xff", "too early"),
        (b"\x81\xa1k" * 100 + b"\x00", "deeper"),
        (b"\x81\xa1k\xd4\x02\x00", "extension of type 2"),
        (b"\x81\xa1k\xc1", "0xc1"),
        (b"\x81\x01\x01", "key"),
        (b"\x82\xa1k\x01\xa1k\x02", "key"),
        (b"\x81\xa1k\xc7\x06\x01" + pack([[2], "O"])[:6], "array"),
        (b"", "too early"),
    ],
)
def test_a_file_that_is_something_else_is_refused_in_one_sentence(tmp_path, content, reason):
    with pytest.raises(InputError, match=reason):
        flax_file.read(written(tmp_path, content))


def test_an_array_whose_bytes_do_not_fill_its_shape_is_refused(tmp_path):
    wrong = pack(np.zeros(3, np.float32)).replace(b"\x91\x03", b"\x91\x7f")
    with pytest.raises(InputError, match="12 bytes has the shape"):
        flax_file.read(written(tmp_path, b"\x81\xa1k" + wrong))
    with pytest.raises(InputError, match="object"):
        flax_file.read(written(tmp_path, b"\x81\xa1k" + pack(np.zeros(3, np.float32)).replace(b"float32", b"object1")))


@pytest.mark.parametrize(
    "changes",
    [
        {"x_proto": np.zeros((4, 8, 7, 3), np.float32)},
        {"x_proto": np.zeros((3, 8, 8, 3), np.float32)},
        {"y_proto": np.full((4, 2), np.nan, np.float32)},
        {"y_proto": np.zeros((4, 2), np.int64)},
        {"y_proto": 3.0},
    ],
)
def test_a_checkpoint_without_a_fitting_set_is_refused(tmp_path, changes):
    with pytest.raises(InputError):
        rcig_import.read(written(tmp_path, pack(checkpoint(**changes))))


def test_arrays_within_arrays_are_refused_without_running_out_of_stack(tmp_path):
    inner = b"\xc0"
    for _ in range(3000):
        inner = b"\x93" + inner + b"\xa0\xc4\x00"  # (inner, "", no bytes)
        inner = b"\xc9" + struct.pack(">I", len(inner)) + b"\x01" + inner
    path = tmp_path / "nested"
    path.write_bytes(b"\x81\xa1x" + inner)
    with pytest.raises(InputError, match="an array lies within another"):
        flax_file.read(path)
