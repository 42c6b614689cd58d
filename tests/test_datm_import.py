from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from ddlnl import datm_import, torch_tensor
from ddlnl.errors import InputError


def save(folder, **changes):
    torch.manual_seed(0)
    tensors = {"images": torch.randn(4, 3, 8, 8), "labels": torch.randn(4, 2), "lr": torch.tensor(0.01)} | changes
    for name, tensor in tensors.items():
        torch.save(tensor, folder / f"{name}_best.pt")
    return tensors


def test_the_three_files_of_a_published_set_are_read(tmp_path):
    tensors = save(tmp_path)
    found = datm_import.read(tmp_path)
    assert torch.equal(found.images, tensors["images"])
    assert torch.equal(found.logits, tensors["labels"])
    assert found.step_size == pytest.approx(0.01)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).view(2, 3, 4),
        torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0, dtype=torch.float64)[5:9],
        torch.tensor(3),
        torch.nn.Parameter(torch.ones(2)),
        torch.ones(2, requires_grad=True),
        torch.zeros(0, 3),
    ],
)
def test_tensors_of_any_layout_come_back_as_they_were(tmp_path, tensor):
    torch.save(tensor, tmp_path / "x.pt")
    found = torch_tensor.read(tmp_path / "x.pt")
    assert torch.equal(found, tensor.detach())
    assert found.dtype == tensor.dtype


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("thing", [{"a": torch.ones(2)}, [torch.ones(2)], Evil(), "text", torch.ones(2).half()])
def test_a_file_of_anything_else_is_refused_and_nothing_runs(tmp_path, capsys, thing):
    torch.save(thing, tmp_path / "x.pt")
    with pytest.raises(InputError, match="one tensor"):
        torch_tensor.read(tmp_path / "x.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((9,), (1,), 0), ((4,), (1,), 5), ((2,), (8,), 0), ((4, 4), (0, 1), 0), ((2,), (-1,), 4)],
)
def test_a_tensor_that_reaches_beyond_its_storage_or_repeats_it_is_refused(tmp_path, size, stride, offset):
    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 8) if isinstance(thing, Storage) else None

    class Tensor:
        def __reduce__(self):
            arguments = Storage(), offset, size, stride, False, OrderedDict()
            return torch._utils._rebuild_tensor_v2, arguments

    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        with file.open("x/data.pkl", "w") as member:
            Pickler(member, 2).dump(Tensor())
        file.writestr("x/data/0", bytes(32))
    with pytest.raises(InputError, match=r"beyond its storage|shape"):
        torch_tensor.read(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": torch.zeros(3, 2)},
        {"images": torch.full((4, 3, 8, 8), torch.nan)},
        {"lr": torch.tensor(-1.0)},
        {"lr": torch.ones(2)},
    ],
)
def test_files_that_do_not_fit_together_are_refused(tmp_path, changes):
    save(tmp_path, **changes)
    with pytest.raises(InputError):
        datm_import.read(tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="images_best"):
        datm_import.read(tmp_path)


@pytest.mark.parametrize(("times", "compression"), [(2, zipfile.ZIP_STORED), (1, zipfile.ZIP_DEFLATED)])
def test_a_storage_is_read_once_and_never_unpacked(tmp_path, times, compression):
    """A small file must not become many gigabytes."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", 1024) if isinstance(thing, Storage) else None

    with zipfile.ZipFile(tmp_path / "x.pt", "w", compression) as file:
        with file.open("x/data.pkl", "w") as member:
            Pickler(member, 2).dump([Storage() for _ in range(times)])
        file.writestr("x/data/0", bytes(4096))
    with pytest.raises(InputError, match="more than one storage, or a compressed one"):
        torch_tensor.read(tmp_path / "x.pt")
