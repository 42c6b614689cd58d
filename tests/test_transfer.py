"""ResNet-18 students of sets that are in a store, and of the full noisy set, as records beside the cells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import NETWORK, profile
from test_study import STEPS, VOLATILE, write_small_archive

from ddlnl import cells, claims, degradation, networks, store, study, training, transfer
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES
from ddlnl.training import Architecture, Protocol, Recipe

RESNET = Protocol(Architecture("resnet18", width=4), Recipe(epochs=3, lr=0.05, batch_size=8), 2, max_steps=4)
TIMES = [name for name in VOLATILE if name not in STEPS]


@pytest.fixture
def archive_path(tmp_path, monkeypatch):
    small = profile(resnet=RESNET, resnet_full=replace(RESNET, max_steps=None), resnet_students=2)
    monkeypatch.setitem(PROFILES, "demo", small)
    cells._load.cache_clear()
    cells._prepared.cache_clear()
    return write_small_archive(tmp_path)


def the_grid(archive_path):
    return study.grid(archive_path, rates=0.5, methods=["dance", "datm", "gce", "full"], ipcs=[2], seeds=1)


@pytest.mark.filterwarnings("ignore:Precision loss")  # of students that are equally good after two epochs
def test_a_set_of_the_store_and_the_full_set_train_a_resnet_and_the_records_stay_beside_the_cells(
    archive_path, tmp_path, monkeypatch
):
    grid, place = the_grid(archive_path), tmp_path / "store"
    own = study.run(grid, place, device="cpu", progress=False)
    before = store.table(place)
    found = transfer.run(grid, place, device="cpu", progress=False)
    assert found["method"].tolist() == ["dance", "datm", "full"]
    assert store.table(place).to_dict("records") == before.to_dict("records")
    assert [settings["student"]["architecture"]["family"] for settings in found["settings"]] == ["resnet18"] * 3
    assert found["noise_hash"].tolist() == own["noise_hash"].tolist()[:3]
    assert (found["accuracy_last"] != own[own["method"] != "gce"]["accuracy_last"].to_numpy()).any()
    assert set(claims.versus(found)["network"]) == {"resnet18, width 4"}
    degradation.under_noise(found)
    monkeypatch.setattr(transfer, "_record", lambda *_: pytest.fail("finished students were trained again"))
    again = transfer.run(grid, place, device="cpu", progress=False)
    assert again.to_dict("records") == found.to_dict("records")


def test_the_same_students_come_out_of_a_second_training(archive_path, tmp_path):
    grid, place = the_grid(archive_path)[:1], tmp_path / "store"
    study.run(grid, place, device="cpu", progress=False)
    first, second = (transfer._record(grid[0], "key", store.Store(place), None, "cpu") for _ in range(2))
    for name in TIMES:
        first.pop(name), second.pop(name)
    assert first == second


def test_a_cell_that_has_not_finished_or_lost_its_set_is_refused_before_any_training(archive_path, tmp_path):
    grid, place = the_grid(archive_path), tmp_path / "store"
    with pytest.raises(InputError, match="has not finished in the store"):
        transfer.run(grid, place, device="cpu", progress=False)
    table = study.run(grid, place, device="cpu", progress=False)
    store.Store(place).artefact_path(table["parents"][0]["set"]).unlink()
    with pytest.raises(InputError, match="but not its distilled set"):
        transfer.run(grid, place, device="cpu", progress=False)
    assert not (place / "records" / "transfer").exists()


def test_the_recipe_is_the_profiles_with_the_augmentation_of_the_set_and_no_batch_is_a_single_image():
    own = Protocol(NETWORK, Recipe(epochs=9, lr=1.0, augmentation="crop", mode="single", cutmix=0.5))
    small = profile(resnet=RESNET)
    for images in (8, 9, 17, 73):
        found = transfer.protocol(small, own, whole=False, images=images).recipe
        assert images % found.batch_size != 1
        assert found.batch_size in (8, 9, 10)
        expected = replace(RESNET.recipe, batch_size=found.batch_size, augmentation="crop", mode="single", cutmix=0.5)
        assert found == expected


def test_the_narrow_resnet_has_its_width_in_every_stage_and_the_usual_one_is_that_of_torchvision():
    images = torch.randn(2, 3, 8, 8)
    assert networks.resnet18(5, 3, 16)(images).shape == (2, 5)
    narrow, usual = networks.resnet18(5, 3, 16), networks.resnet18(10)
    widths = [getattr(narrow, f"layer{stage}")[1].conv2.out_channels for stage in (1, 2, 3, 4)]
    assert widths == [16, 32, 64, 128]
    assert sum(one.numel() for one in usual.parameters()) == 11_173_962  # of the ResNet-18 the field uses on CIFAR-10
    stack = training.initialise(lambda: RESNET.architecture.build(3, 8, 1), [0, 1], torch.device("cpu"))
    assert stack(torch.randn(4, 1, 8, 8)).shape == (2, 4, 3)
