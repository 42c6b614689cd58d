"""How large a run is: one table. `demo` takes minutes on two CPU cores, `laptop` some hours, `paper` needs GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ddlnl import dance, rcig_evaluation, rcig_plan, rcig_settings, trajectories
from ddlnl.datm_settings import Plan, Settings
from ddlnl.training import Architecture, Protocol, Recipe


@dataclass(frozen=True)
class Profile:
    """Everything that a cell's result depends on besides the cell itself.

    train_images: how many training images are used (None: all), a random subset drawn after the noise.
    validation_share: noisy images held out for the `validation` rule, as a share of the training images; they come from
    the images that the subset left over, where there are enough. students: fresh networks per evaluation.
    student trains on the small sets of DANCE and the controls, full on the whole noisy training set; datm and rcig say
    how their sets are made and students of them trained. resnet and resnet_full train `resnet_students` ResNet-18 in
    place of those, on small sets and on the whole one, with the augmentation of the protocol they replace. threads: how
    many pay at most on a CPU (None: all): steps of a millisecond lose more by waiting for a second thread than it
    gains. reductions: what differs from the published settings, in words.
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
    dance: dance.Settings
    datm: Plan
    rcig: rcig_plan.Plan
    resnet: Protocol
    resnet_full: Protocol
    resnet_students: int
    reductions: tuple[str, ...]
    threads: int | None = None

    def for_dataset(self, name: str, size: int) -> Profile:
        """The profile with what depends on the images: the depth of the networks, and digits are never mirrored."""

        def fit(architecture: Architecture) -> Architecture:
            return replace(architecture, depth=depth_for(size))

        def mirrored(strategy: str) -> str:
            return strategy.replace("_flip", "") if name in UNMIRRORED else strategy

        def protocol(one: Protocol) -> Protocol:
            recipe = replace(one.recipe, augmentation=mirrored(one.recipe.augmentation))
            return replace(one, architecture=fit(one.architecture), recipe=recipe)

        experts, table = self.datm.experts, self.datm.settings
        whole = fit(experts.architecture)
        plan = replace(
            self.datm,
            student=protocol(self.datm.student),
            experts=replace(experts, architecture=whole, augmentation=mirrored(experts.augmentation)),
            settings=table and tuple((size, replace(one, strategy=mirrored(one.strategy))) for size, one in table),
        )
        pairs = replace(self.dance, architecture=fit(self.dance.architecture))
        return replace(
            self,
            student=protocol(self.student),
            full=protocol(self.full),
            dance=pairs,
            datm=plan,
            rcig=self.rcig.fitted(depth_for(size), name not in UNMIRRORED),
        )

    def preprocessing_for(self, method: str) -> str:
        """The kind of preprocessing that `method` works on: DATM and RCIG whiten, each as published."""
        return {"datm": "zca", "rcig": "zca-relative"}.get(method, self.preprocessing)

    def student_for(self, method: str, dataset: str, ipc: int) -> Protocol | rcig_evaluation.Protocol:
        """How students are trained on the small sets of `method`; raises `InputError` where nothing is published."""
        if method == "rcig":
            return self.rcig.student_for(dataset, ipc)
        return self.datm.student if method == "datm" else self.student


UNMIRRORED = ("digits", "mnist", "svhn")


def depth_for(size: int) -> int:
    """Blocks of the ConvNet for images of that side: as published 3 for 28 and 32, 4 for 64, 5 for 128; at least 2."""
    return max(2, round(math.log2(size)) - 2)


_RECIPE = Recipe(epochs=1500, augmentation="color_crop_flip_scale_rotate", cutmix=0.5)
_SOFT_RECIPE = Recipe(  # of DATM's students; its rate is the learned step size, and falls once after epoch 501
    epochs=1001,
    batch_size=128,
    decay=0.1,
    decay_at=(502.5 / 1001,),
    restart=True,
    augmentation="color_crop_cutout_flip_scale_rotate",
    mode="single",
)
_SHORT = Settings(  # DATM in minutes: a fourth of the steps towards half of the epochs, at a larger step size
    iterations=100,
    lr_images=50.0,
    step_size=0.03,
    steps=20,
    target_epochs=1,
    first_max_start=None,
    expansion=None,
    max_start=10,
    evaluate_at=(0.0, 1.0),
)
# The usual rate of ResNet-18 on CIFAR, 0.1 for batches of 128 images, in proportion; nothing was tuned for a set.
_RESNET_RECIPE = Recipe(epochs=1500, lr=0.05)
_RESNET = Architecture(family="resnet18")
_HALF_RESNET = Architecture(family="resnet18", width=64, precision="bf16")
_NARROW_RESNET = Architecture(family="resnet18", width=32)
_PAPER = Architecture(width=128)
_LAPTOP = Architecture(width=32)
_DEMO = Architecture(width=16)
_SHORT_RCIG = rcig_settings.Settings(  # RCIG in minutes: fewer, larger steps, and a solver without learning rates
    iterations=190,
    width=32,
    solver="cg",
    inner_steps=5,
    hessian_steps=5,
    pool=5,
    pool_age=50,
    pool_lr=5e-4,
    lr=0.02,
    lr_temperature=0.1,
    average=0.9,
    real_batch=256,
    evaluate_at=(0.0, 1.0),
)
_FEWER = replace(_SHORT_RCIG, iterations=55, lr=0.03, pool_steps=5, mirror=False)
_TINY = replace(_SHORT_RCIG, iterations=40, width=16, lr=0.05, inner_steps=3, hessian_steps=3, pool_steps=5)

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
        dance=dance.Settings(
            iterations=60,
            lr_per_ipc=0.03,
            factor=1,
            real_batch=64,
            experts=2,
            architecture=_DEMO,
            expert_recipe=Recipe(epochs=20, lr=0.03, augmentation="color_crop", cutmix=0.5),
            evaluate_at=(1.0,),
        ),
        datm=Plan(
            experts=trajectories.ExpertRecipe(experts=2, epochs=8, batch_size=64, lr=0.1, architecture=_DEMO),
            student=Protocol(_DEMO, _SOFT_RECIPE, test_points=2, max_steps=80),
            settings=((1, replace(_SHORT, iterations=15, step_size=0.05, steps=8, max_start=7)),),
        ),
        rcig=rcig_plan.Plan(
            settings=((1, _TINY), (10, replace(_TINY, iterations=25, lr=0.1))),
            student=rcig_evaluation.Protocol(
                width=16, augmentation="crop_rotate_translate_cutout", steps=120, lr=0.02, warmup=20, batch=32
            ),
        ),
        resnet=Protocol(_NARROW_RESNET, _RESNET_RECIPE, test_points=2, max_steps=40),
        resnet_full=Protocol(_NARROW_RESNET, replace(_RESNET_RECIPE, epochs=4), test_points=4),
        resnet_students=3,
        reductions=(
            "ConvNet of width 16 instead of 128; a tenth of the training images is held out for validation",
            "DANCE: 60 iterations at three times the published learning rate (published: 10,000), no multi-formation, "
            "64 real images per class and step, 2 experts of 20 epochs (5 of 60)",
            "DATM: 15 iterations of 8 student steps towards the next epoch (10,000 of 80 towards the one after); "
            "2 experts of 8 epochs in batches of 64 at a rate of 0.1 (100 of 100, 256, 0.01); students trained for at "
            "most 80 steps (1,001 epochs)",
            "RCIG: 40 iterations (25 from IPC 10 on) at seventeen times (thirty-three times) the published learning "
            "rate (10,000) with 3 steps of conjugate gradients for either solve (20 of Adam); networks that begin with "
            "width 16 (128), a pool of 5 (30) that learn ten times as fast and begin anew after 50 steps (100); 256 "
            "real images per iteration (1,024), a moving average of decay 0.9 (0.99); students trained for 120 steps "
            "of at most 32 images at a rate of 0.02 (1,000 or 2,000 of 256 at 0.0001)",
            "3 students per set, trained for at most 120 steps at a learning rate of 0.03 (1,500 epochs at 0.01)",
            "full noisy set: 3 networks, 20 epochs, tested after every fourth, trained as DANCE's students are",
            "ResNet-18: 16 channels in the first stage instead of 64; 3 networks, trained for at most 40 steps on a "
            "small set and for 4 epochs on the full noisy one",
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
        dance=dance.Settings(
            iterations=150,
            lr_per_ipc=0.05,
            real_batch=64,
            synthetic_batch=100,
            experts=3,
            architecture=_LAPTOP,
            expert_recipe=Recipe(epochs=12, augmentation="color_crop", cutmix=0.5),
            evaluate_at=(1.0,),
        ),
        datm=Plan(
            experts=trajectories.ExpertRecipe(experts=5, epochs=12, batch_size=64, lr=0.02, architecture=_LAPTOP),
            student=Protocol(_LAPTOP, _SOFT_RECIPE, test_points=2, max_steps=1000),
            settings=(
                (1, replace(_SHORT, iterations=150, lr_images=20.0, step_size=0.02, max_start=4)),
                (10, _SHORT),
                (50, replace(_SHORT, iterations=60, lr_images=100.0)),
            ),
        ),
        rcig=rcig_plan.Plan(
            settings=((1, _SHORT_RCIG), (10, _FEWER), (50, replace(_FEWER, iterations=12))),
            student=rcig_evaluation.Protocol(width=32, steps=100, lr=2e-3, warmup=20, batch=64),
        ),
        resnet=Protocol(_HALF_RESNET, _RESNET_RECIPE, test_points=2, max_steps=200),
        resnet_full=Protocol(_HALF_RESNET, replace(_RESNET_RECIPE, epochs=5), test_points=5),
        resnet_students=3,
        reductions=(
            "10,000 training images, and 1,000 more held out for validation",
            "ConvNet of width 32 instead of 128",
            "DANCE: 150 iterations instead of 10,000 at five times the learning rate, 64 real images per class and "
            "step instead of 128, at most 100 synthetic ones instead of 200, 3 experts of 12 epochs instead of 5 of 60",
            "3 students per set, trained for at most 1,000 steps (published: 1,500 epochs)",
            "DATM: 100 iterations (150 at IPC 1, 60 from IPC 50 on) of 20 student steps towards the next epoch instead "
            "of 10,000 of 80 towards the one after, learning rates and windows to fit; 5 experts of 12 epochs in "
            "batches of 64 at a rate of 0.02 (100 of 100, 256, 0.01)",
            "RCIG: 190 iterations (55 from IPC 10 on, 12 from IPC 50 on, both without mirror images) instead of 10,000 "
            "at seven to ten times the learning rate, 5 steps of conjugate gradients for either solve instead of 20 of "
            "Adam; networks that begin with width 32 (128), a pool of 5 (30) that learn ten times as fast and begin "
            "anew after 50 steps (100); 256 real images per iteration (1,024), a moving average of decay 0.9 (0.99); "
            "students trained for 100 steps of at most 64 images at a rate of 0.002 (1,000 or 2,000 of 256 at 0.0001)",
            "full noisy set: 3 networks, 20 epochs, tested after each, trained as DANCE's students are",
            "ResNet-18: 32 channels in the first stage instead of 64; 3 networks with activations in bfloat16, trained "
            "for at most 200 steps on a small set and for 5 epochs on the full noisy one",
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
        dance=dance.Settings(),
        datm=Plan(experts=trajectories.ExpertRecipe(), student=Protocol(_PAPER, _SOFT_RECIPE, test_points=1)),
        rcig=rcig_plan.Plan(),
        resnet=Protocol(_RESNET, _RESNET_RECIPE, test_points=6),
        resnet_full=Protocol(_RESNET, replace(_RESNET_RECIPE, epochs=60), test_points=60),
        resnet_students=5,
        reductions=(
            "2 % of the training images are held out for the validation rule (published: none)",
            "full noisy set: 60 epochs, network and augmentation of DANCE's students (the paper's recipe is unknown)",
            "ResNet-18: the rate and the schedule are ours (the paper has no such students)",
            "RCIG: exact gradients (of random rows on CIFAR-100 at IPC 50 and Tiny-ImageNet at IPC 10), and networks "
            "that stand still during the inner steps",
            "DATM: the exact gradient; the noisy-label study followed that of TESLA (profile paper-tesla)",
        ),
    ),
}
PROFILES["paper-uniform"] = replace(
    PROFILES["paper"],
    name="paper-uniform",
    datm=replace(PROFILES["paper"].datm, per_condition=False),
    reductions=(
        *PROFILES["paper"].reductions,
        "DATM: the settings published for clean labels under every noise (the study chose some of them for each noise)",
    ),
)
PROFILES["paper-tesla"] = replace(
    PROFILES["paper"],
    name="paper-tesla",
    datm=replace(PROFILES["paper"].datm, gradient="tesla"),
    reductions=PROFILES["paper"].reductions[:-1],
)
