"""Small data, networks and profiles for tests: everything of a real cell, at a size that takes well under a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ddlnl.dance import Settings
from ddlnl.datasets import ImageSet
from ddlnl.datm_settings import Plan
from ddlnl.datm_settings import Settings as MatchingSettings
from ddlnl.profiles import PROFILES, Profile
from ddlnl.rcig_evaluation import Protocol as RegressionProtocol
from ddlnl.rcig_plan import Plan as GradientPlan
from ddlnl.rcig_settings import Settings as GradientSettings
from ddlnl.training import Architecture, Protocol, Recipe
from ddlnl.trajectories import ExpertRecipe

NETWORK = Architecture(depth=2, width=8)
SETTINGS = Settings(
    iterations=4,
    real_batch=6,
    experts=2,
    architecture=NETWORK,
    evaluate_at=(0.0, 1.0),
    expert_recipe=Recipe(epochs=2, augmentation="color_crop", cutmix=0.5),
)
MATCHING = MatchingSettings(
    iterations=4,
    lr_images=1.0,
    lr_labels=1.0,
    lr_step=1e-3,
    step_size=0.05,
    steps=3,
    target_epochs=1,
    batch=4,
    first_max_start=None,
    expansion=None,
    max_start=2,
    threshold=1e9,
    strategy="color_crop_cutout_scale_rotate",
    evaluate_at=(0.0, 0.5, 1.0),
)
GRADIENTS = GradientSettings(
    iterations=4,
    depth=2,
    width=4,
    pool=3,
    pool_age=12,
    pool_lr=1e-3,
    real_batch=12,
    inner_steps=5,
    hessian_steps=5,
    hessian_lr=3.0,
    lr=0.02,
    evaluate_at=(0.0, 0.5, 1.0),
)


def image_set(classes: int = 3, per_class: int = 10, side: int = 8, channels: int = 3, seed: int = 0) -> ImageSet:
    """Random images whose brightness tells the class, in shuffled class order."""
    source = np.random.default_rng(seed)
    labels = source.permutation(np.repeat(np.arange(classes), per_class))
    noise = source.integers(0, 100, (len(labels), side, side, channels))
    images = (noise + (150 * labels / max(classes - 1, 1))[:, None, None, None]).astype(np.uint8)
    names = tuple(f"class {label}" for label in range(classes))
    return ImageSet(images, labels, labels, names, "small")


def profile(**changes: object) -> Profile:
    """The demo profile with networks of width 8 and runs of a few steps."""
    recipe = Recipe(epochs=3, augmentation="color_crop", cutmix=0.5)
    small = replace(
        PROFILES["demo"],
        students=2,
        student=Protocol(NETWORK, recipe, test_points=2, max_steps=6),
        full=Protocol(NETWORK, recipe, test_points=3),
        dance=replace(SETTINGS, factor=1),
        datm=Plan(
            experts=ExpertRecipe(experts=2, epochs=3, batch_size=16, lr=0.05, architecture=NETWORK),
            student=Protocol(NETWORK, recipe, test_points=2, max_steps=6),
            settings=((1, MATCHING),),
        ),
        rcig=GradientPlan(
            settings=((1, GRADIENTS),),
            student=RegressionProtocol(width=4, steps=8, lr=1e-3, warmup=2),
        ),
    )
    return replace(small, **changes)
