from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import NETWORK, image_set
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import ddlnl
from ddlnl import augment, networks, preprocess, training, trajectories
from ddlnl.errors import InputError
from ddlnl.generators import derive, generator
from ddlnl.store import Store, read_tensors
from ddlnl.trajectories import FRESH, ExpertRecipe, stretches

RECIPE = ExpertRecipe(experts=3, epochs=5, batch_size=8, lr=0.05, rho=0.05, architecture=NETWORK)
KEPT = (1, 2)  # and, always, 0 and 5
IDENTITY = {"images": "aa", "observed": "bb", "preprocessing": "cc"}


def data():
    """21 images, so that the last batch is short."""
    train = image_set(per_class=7)
    images = preprocess.fit(train.images, "normalise").apply(preprocess.to_float(train.images))
    return images, training.one_hot(torch.from_numpy(train.observed), 3)


DATA = data()


def train(place, recipe=RECIPE, kept=KEPT, seed=0, images=DATA[0], **options):
    return trajectories.train(Store(place), images, DATA[1], recipe, seed, kept, IDENTITY, **options)


def files(place: Path) -> dict[str, bytes]:
    """What the artefacts of a store hold, by name."""
    paths = (place / "artefacts").rglob("*.safetensors")
    return {str(path.relative_to(place)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of an uninterrupted run; not to be written to."""
    place = tmp_path_factory.mktemp("whole")
    train(place)
    return place


@pytest.fixture
def epochs(monkeypatch):
    """The epochs that are trained, in order: (number of the epoch, how many experts)."""
    seen, original = [], trajectories.train_epoch

    def counted(stack, images, targets, recipe, seeds, epoch):
        seen.append((epoch, len(stack)))
        return original(stack, images, targets, recipe, seeds, epoch)

    monkeypatch.setattr(trajectories, "train_epoch", counted)
    return seen


# What an expert is


def test_an_expert_is_trained_as_a_plain_loop_over_the_formulas_does(whole):
    """Order, short last batch, one operation per batch, the same augmented images for both gradients."""
    images, targets = DATA
    seed = derive(0, "expert", 1)
    network = NETWORK.build(3, 8, 3)
    found = train(whole)
    w = networks.flatten(training.initialise(lambda: NETWORK.build(3, 8, 3), [seed], torch.device("cpu")).state())[0]
    assert torch.equal(found.parameters(1, 0), w)
    start = w
    for epoch in (1, 2):
        source = generator(seed, "epoch", epoch)
        order = torch.randperm(21, generator=source)
        for index in order.split(8):
            drawn = augment.draw(RECIPE.augmentation, len(index), (8, 8), source, mode="single")
            assert drawn.codes.shape == (1,)
            batch, labels = drawn(images[index]), targets[index].argmax(1)

            def gradient(at, batch=batch, labels=labels):
                at = at.clone().requires_grad_()
                logits = functional_call(network, networks.unflatten(at, network), (batch,))
                return torch.autograd.grad(F.cross_entropy(logits, labels), at)[0]

            g = gradient(w)
            h = gradient(w + 0.05 / (w * g).norm() * w.square() * g)
            w = w - 0.05 * (h - 0.3 * (g - g @ h / h.square().sum() * h))
        assert (found.parameters(1, epoch) - w).norm() < 1e-3 * (w - start).norm()


def test_the_defaults_are_those_that_were_published():
    recipe = ExpertRecipe()
    assert (recipe.experts, recipe.epochs, recipe.batch_size) == (100, 100, 256)
    assert (recipe.lr, recipe.rho, recipe.alpha) == (0.01, 0.01, 0.3)
    assert recipe.augmentation == "color_crop_cutout_flip_scale_rotate"
    assert recipe.architecture == training.Architecture("convnet", depth=3, width=128)


def test_experts_of_a_stack_end_with_the_bits_they_would_have_alone(whole, tmp_path, monkeypatch, epochs):
    monkeypatch.setattr(trajectories, "together", lambda recipe, images: 2)
    train(tmp_path)
    assert {size for _, size in epochs} == {1, 2}
    assert files(tmp_path) == files(whole)


def test_experts_differ_and_so_do_seeds_data_and_settings(whole, tmp_path):
    found = train(whole)
    assert not torch.equal(found.parameters(0, 0), found.parameters(1, 0))
    keys = {
        train(tmp_path, recipe, kept=(), seed=seed).key for recipe, seed in ((RECIPE, 1), (replace(RECIPE, rho=0), 0))
    }
    other = trajectories.train(Store(tmp_path), *DATA, RECIPE, 0, (), IDENTITY | {"observed": "dd"})
    assert len(keys | {found.key, other.key}) == 4


def test_experts_learn_the_classes(tmp_path):
    recipe = replace(RECIPE, experts=1, epochs=40, augmentation="crop")
    found = train(tmp_path, recipe, kept=())
    network = NETWORK.build(3, 8, 3)
    logits = functional_call(network, networks.unflatten(found.final(0), network), (DATA[0],))
    assert (logits.argmax(1) == DATA[1].argmax(1)).double().mean() > 0.9


def test_experts_without_augmentation_train_on_the_images_as_they_are(tmp_path):
    recipe = replace(RECIPE, experts=1, epochs=1, batch_size=21, rho=0.0, augmentation="")
    found = train(tmp_path, recipe, kept=())
    network = NETWORK.build(3, 8, 3)
    w = found.parameters(0, 0).clone().requires_grad_()
    logits = functional_call(network, networks.unflatten(w, network), (DATA[0],))
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, DATA[1]), w)
    torch.testing.assert_close(found.final(0), w.detach() - 0.05 * gradient, atol=1e-6, rtol=1e-5)


# What is kept


def test_only_the_wanted_epochs_are_kept_and_the_first_and_last(whole):
    found = train(whole)
    assert (found.experts, found.epochs) == (3, (0, 1, 2, 5))
    names = {f"artefacts/{found.key}/expert-{m:03d}-epoch-{e:03d}.safetensors" for m in range(3) for e in (0, 1, 2, 5)}
    assert set(files(whole)) == names
    assert not list((whole / "progress").glob("*"))


def test_snapshots_do_not_share_memory(whole):
    found = train(whole)
    snapshots = [found.parameters(0, epoch) for epoch in found.epochs]
    assert len({tuple(one.tolist()) for one in snapshots}) == 4
    assert all(one.dtype == torch.float32 and one.shape == (939,) for one in snapshots)
    first = found.parameters(0, 1)
    kept = first.clone()
    first.zero_()
    assert torch.equal(found.parameters(0, 1), kept)
    assert torch.equal(found.final(0), snapshots[-1])


def test_a_snapshot_says_what_it_was_made_from(whole):
    found = train(whole)
    _, meta = read_tensors(Store(whole).artefact_path(f"{found.key}/expert-002-epoch-001"))
    assert meta["data"] == IDENTITY
    assert (meta["key"], meta["seed"], meta["expert"], meta["epoch"]) == (found.key, 0, 2, 1)
    assert meta["trajectories"]["rho"] == 0.05
    assert meta["trajectories"]["architecture"]["width"] == 8


def test_a_second_run_trains_nothing_and_a_reading_touches_no_other_file(whole, tmp_path, epochs):
    train(tmp_path)
    epochs.clear()
    for path in (tmp_path / "artefacts").rglob("*.safetensors"):
        if path.stem != "expert-001-epoch-002":
            path.write_bytes(b"not a snapshot")
    found = train(tmp_path)
    assert torch.equal(found.parameters(1, 2), train(whole).parameters(1, 2))
    assert epochs == []


def test_a_later_call_goes_on_from_what_an_earlier_one_kept(whole, tmp_path, epochs):
    first = train(tmp_path, replace(RECIPE, experts=1, epochs=2), kept=(1,))
    assert epochs == [(1, 1), (2, 1)]
    second = train(tmp_path)
    assert epochs[2:] == [(epoch, 1) for epoch in (3, 4, 5, *range(1, 6), *range(1, 6))]
    assert files(tmp_path) == files(whole)
    assert first.key == second.key
    train(tmp_path, kept=(4,))  # 3 was not kept, so from 2 on
    assert epochs[-2:] == [(3, 1), (4, 1)]


@pytest.mark.parametrize(
    ("missing", "there", "expected"),
    [
        ([0, 1, 5], set(), [(FRESH, 5)]),
        ([1, 5], {0}, [(0, 5)]),
        ([5], {0, 1, 4}, [(4, 5)]),
        ([2, 9], {0, 1, 3, 7}, [(1, 2), (7, 9)]),
        ([2, 3, 9], {1, 10}, [(1, 9)]),
        ([0], {1, 2}, [(FRESH, 0)]),
        ([], {1}, []),
    ],
)
def test_missing_epochs_are_made_from_the_nearest_state_before_them(missing, there, expected):
    assert stretches(missing, there) == expected


def test_seconds_add_up_over_runs(tmp_path, monkeypatch):
    assert 0 < train(tmp_path, kept=()).seconds < 60
    before = train(tmp_path, kept=()).seconds
    assert train(tmp_path, kept=(2,)).seconds > before


# Interruptions and damage


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize(
    ("place", "call", "after"),
    [
        ("gsam.step", 1, False),
        ("gsam.step", 11, False),  # in the middle of an epoch that is not kept
        ("trajectories.write_tensors", 1, False),
        ("trajectories.write_tensors", 5, False),  # of a stack of three: one expert is an epoch ahead
        ("trajectories.write_tensors", 5, True),
        ("trajectories.write_tensors", 12, True),  # everything is there, states under way are not yet forgotten
        ("store.Progress.save", 2, False),
        ("store.Progress.save", 2, True),
        ("store.Store.save_record", 2, False),
        ("store.Store.save_record", 4, True),
        ("store.Store.forget_progress", 1, False),
    ],
)
def test_training_stopped_anywhere_goes_on_to_the_same_files(
    whole, tmp_path, monkeypatch, epochs, stack, place, call, after
):
    monkeypatch.setattr(trajectories, "together", lambda recipe, images: stack)
    owner, name = place.rsplit(".", 1)
    owner = functools.reduce(getattr, owner.split("."), ddlnl)
    original, calls = getattr(owner, name), itertools.count(1)

    def stop(*arguments, **options):
        last = next(calls) == call
        if last and not after:
            raise Killed
        result = original(*arguments, **options)
        if last:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(Killed):
            train(tmp_path)
    trained = sum(size for _, size in epochs)
    train(tmp_path)
    assert files(tmp_path) == files(whole)
    assert not list((tmp_path / "progress").glob("*.safetensors"))
    assert sum(size for _, size in epochs) - 15 <= min(stack, trained)  # of 3 experts' 5 epochs, one more at most


PROGRAM = """
import sys
import torch
import test_trajectories
torch.set_num_threads(int(sys.argv[2]))  # as here: the bits of a sum depend on them
test_trajectories.train(sys.argv[1])
"""


def test_a_killed_process_leaves_what_its_successor_goes_on_from(whole, tmp_path, epochs):
    """kill -9 at some moment after the first snapshots."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    threads = str(torch.get_num_threads())
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path, threads], env=environment)
    while process.poll() is None and len(files(tmp_path)) < 3:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 3 <= len(files(tmp_path)) < 12
    train(tmp_path)
    assert files(tmp_path) == files(whole)
    assert len(epochs) < 15


@pytest.mark.parametrize(("damaged", "again"), [([5], [3, 4, 5]), ([1], [1]), ([1, 2], [1, 2]), ([0], [])])
def test_a_damaged_snapshot_is_named_set_aside_and_made_again(whole, tmp_path, epochs, damaged, again):
    found = train(tmp_path)
    epochs.clear()
    paths = [tmp_path / "artefacts" / found.key / f"expert-001-epoch-{epoch:03d}.safetensors" for epoch in damaged]
    for path in paths:
        bytes_ = bytearray(path.read_bytes())
        bytes_[-3] ^= 1
        path.write_bytes(bytes_)
    # Read the last one first: what it is made from turns out to be damaged only then.
    with pytest.warns(UserWarning, match=r"expert-001-epoch-00\d\.safetensors does not match its checksum"):
        found.parameters(1, damaged[-1])
    assert files(tmp_path) == files(whole)
    assert [epoch for epoch, _ in epochs] == again
    assert len(list((tmp_path / "damaged").iterdir())) == len(damaged)


def test_a_second_process_waits_instead_of_training_too(tmp_path, epochs):
    recipe = replace(RECIPE, experts=1, epochs=1)
    key = trajectories.Trajectories(Store(tmp_path), *DATA, recipe, 0, (0, 1), IDENTITY).key
    second = threading.Thread(target=train, args=(tmp_path, recipe, ()))
    with Store(tmp_path).lock(key):
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert epochs == []
    second.join(30)
    assert epochs == [(1, 1)]


@pytest.mark.parametrize("what", ["loss", "parameters"])
def test_what_is_not_finite_stops_training_with_a_sentence_and_is_not_kept(tmp_path, monkeypatch, what):
    monkeypatch.setattr(trajectories, "together", lambda recipe, images: 3)
    step, calls = trajectories.gsam.step, itertools.count(1)

    def broken(parameters, losses, lr, rho, alpha):
        before, after = step(parameters, losses, lr, rho, alpha)
        if next(calls) == 9:  # the last step of the third epoch
            with torch.no_grad():
                (after if what == "loss" else parameters[0])[1] = float("nan")
        return before, after

    with monkeypatch.context() as patch:
        patch.setattr(trajectories.gsam, "step", broken)
        with pytest.raises(
            training.NotFinite, match=r"in epoch 3 of 5, of expert 1; a smaller learning rate than 0\.05"
        ):
            train(tmp_path)
    assert len(files(tmp_path)) == 9  # three experts after 0, 1 and 2 epochs
    assert not list((tmp_path / "progress").glob("*"))


# What is refused


def test_epochs_outside_the_recipe_are_refused(tmp_path):
    with pytest.raises(InputError, match="epoch 6 of a trajectory is wanted, and it must be from 0 to 5"):
        train(tmp_path, kept=range(7))


def test_an_epoch_or_an_expert_that_was_not_kept_is_refused(whole):
    found = train(whole)
    for expert, epoch in ((0, 3), (3, 0), (-1, 0)):
        with pytest.raises(InputError, match=r"there are experts 0 to 2 after epochs 0, 1, 2, 5"):
            found.parameters(expert, epoch)


@pytest.mark.parametrize("architecture", [replace(NETWORK, norm="batch"), training.Architecture("resnet18", width=8)])
def test_networks_with_running_statistics_are_refused(tmp_path, architecture):
    with pytest.raises(InputError, match="without running statistics"):
        train(tmp_path, replace(RECIPE, architecture=architecture))


def test_the_time_left_is_shown_when_asked_for(tmp_path, capsys):
    recipe = replace(RECIPE, experts=2, epochs=2)
    train(tmp_path, recipe)
    assert capsys.readouterr().err == ""
    train(tmp_path, replace(recipe, epochs=3), progress=True)
    assert "experts" in capsys.readouterr().err


def test_a_gpu_trains_as_many_experts_at_once_as_fit_and_a_cpu_one():
    assert trajectories.together(ExpertRecipe(), DATA[0]) == 1
    with FakeTensorMode():
        sizes = [trajectories.together(ExpertRecipe(), torch.empty(9, 3, n, n, device="cuda")) for n in (32, 64, 512)]
    assert sizes == [32, 8, 1]
