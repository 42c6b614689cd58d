"""How large a run is: one table. `demo` takes minutes on two CPU cores, `laptop` under an hour, `paper` needs GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ddlnl.dance import Settings
from ddlnl.training import Architecture, Protocol, Recipe


@dataclass(frozen=True)
class Profile:
    """Everything that a cell's result depends on besides the cell itself.

    train_images: how many training images are used (None: all), a random subset drawn after the noise.
    validation_share: noisy images held out for the `validation` rule, as a share of the training images; they come from
    the images that the subset left over, where there are enough. students: fresh networks per evaluation.
    student trains on small sets, full on the whole noisy training set. threads: how many pay at most on a CPU (None:
    all): steps of a millisecond lose more by waiting for a second thread than it gains. reductions: what differs from
    the published settings, in words.
    """

    name: str
    dataset: str
    rates: tuple[float, ...]
    ipcs: tuple[int, ...]
    seeds: int
    students: int
    train_images: int | None
    validation_share: float
    preprocessing: str
    student: Protocol
    full: Protocol
    dance: Settings
    reductions: tuple[str, ...]
    threads: int | None = None

    def for_dataset(self, name: str, size: int) -> Profile:
        """The profile with what depends on the images: the depth of the networks, and digits are never mirrored."""

        def fit(architecture: Architecture) -> Architecture:
            return replace(architecture, depth=depth_for(size))

        def protocol(one: Protocol) -> Protocol:
            strategy = one.recipe.augmentation
            if name in UNMIRRORED:
                strategy = strategy.replace("_flip", "")
            return replace(one, architecture=fit(one.architecture), recipe=replace(one.recipe, augmentation=strategy))

        dance = replace(self.dance, architecture=fit(self.dance.architecture))
        return replace(self, student=protocol(self.student), full=protocol(self.full), dance=dance)


UNMIRRORED = ("digits", "mnist", "svhn")


def depth_for(size: int) -> int:
    """Blocks of the ConvNet for images of that side: as published 3 for 28 and 32, 4 for 64, 5 for 128; at least 2."""
    return max(2, round(math.log2(size)) - 2)


_RECIPE = Recipe(epochs=1500, augmentation="color_crop_flip_scale_rotate", cutmix=0.5)
_PAPER = Architecture(width=128)
_LAPTOP = Architecture(width=32)
_DEMO = Architecture(width=16)

PROFILES = {
    "demo": Profile(
        name="demo",
        dataset="digits",
        rates=(0.0, 0.2, 0.4, 0.6, 0.8),
        ipcs=(1, 10),
        seeds=3,
        students=3,
        train_images=None,
        validation_share=0.1,
        preprocessing="normalise",
        student=Protocol(_DEMO, replace(_RECIPE, lr=0.03), test_points=2, max_steps=120),
        full=Protocol(_DEMO, replace(_RECIPE, epochs=20, lr=0.03), test_points=5),
        dance=Settings(
            iterations=60,
            lr_per_ipc=0.03,
            factor=1,
            real_batch=64,
            experts=2,
            architecture=_DEMO,
            expert_recipe=Recipe(epochs=20, lr=0.03, augmentation="color_crop", cutmix=0.5),
            evaluate_at=(1.0,),
        ),
        reductions=(
            "ConvNet of width 16 instead of 128; a tenth of the training images is held out for validation",
            "DANCE: 60 iterations at three times the published learning rate (published: 10,000), no multi-formation, "
            "64 real images per class and step, 2 experts of 20 epochs (5 of 60)",
            "3 students per set, trained for at most 120 steps at a learning rate of 0.03 (1,500 epochs at 0.01)",
            "full noisy set: 3 networks, 20 epochs, tested after every fourth, trained as the students are",
        ),
        threads=1,
    ),
    "laptop": Profile(
        name="laptop",
        dataset="cifar10",
        rates=(0.0, 0.4, 0.8),
        ipcs=(1, 10, 50),
        seeds=1,
        students=3,
        train_images=10_000,
        validation_share=0.1,
        preprocessing="normalise-published",
        student=Protocol(_LAPTOP, _RECIPE, test_points=2, max_steps=1000),
        full=Protocol(_LAPTOP, replace(_RECIPE, epochs=20), test_points=20),
        dance=Settings(
            iterations=150,
            lr_per_ipc=0.05,
            real_batch=64,
            synthetic_batch=100,
            experts=3,
            architecture=_LAPTOP,
            expert_recipe=Recipe(epochs=12, augmentation="color_crop", cutmix=0.5),
            evaluate_at=(1.0,),
        ),
        reductions=(
            "10,000 training images, and 1,000 more held out for validation",
            "ConvNet of width 32 instead of 128",
            "DANCE: 150 iterations instead of 10,000 at five times the learning rate, 64 real images per class and "
            "step instead of 128, at most 100 synthetic ones instead of 200, 3 experts of 12 epochs instead of 5 of 60",
            "3 students per set, trained for at most 1,000 steps (published: 1,500 epochs)",
            "full noisy set: 3 networks, 20 epochs, tested after each, trained as the students are",
        ),
        threads=1,
    ),
    "paper": Profile(
        name="paper",
        dataset="cifar10",
        rates=(0.0, 0.2, 0.4, 0.6, 0.8),
        ipcs=(1, 10, 50),
        seeds=3,
        students=5,
        train_images=None,
        validation_share=0.02,
        preprocessing="normalise-published",
        student=Protocol(_PAPER, _RECIPE, test_points=6),
        full=Protocol(_PAPER, replace(_RECIPE, epochs=60), test_points=60),
        dance=Settings(),
        reductions=(
            "2 % of the training images are held out for the validation rule (published: none)",
            "full noisy set: 60 epochs, network and augmentation of the students (the paper's recipe is unknown)",
        ),
    ),
}
