"""Made-up archives and image sets, and what a refusal must look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from ddlnl.datasets import ImageSet
from ddlnl.errors import InputError


def arrays() -> dict[str, np.ndarray]:
    """A valid archive: twelve training and twelve test images of 4x4x3 in three classes."""
    images = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    labels = np.arange(12) % 3
    return {
        "train_images": images[:12],
        "train_labels": labels,
        "test_images": images[12:],
        "test_labels": labels[::-1].copy(),
        "class_names": np.array(["class 0", "class 1", "class 2"]),
    }


def save(path: Path, changes: Mapping[str, np.ndarray] | None = None, without: str = "") -> Path:
    """Write `arrays()`, some of them changed or left out, as an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in (arrays() | dict(changes or {})).items() if key != without})
    return path


def image_set(
    clean: np.ndarray, name: str = "own", human: Mapping[str, np.ndarray] | None = None, side: int = 1
) -> ImageSet:
    """Random grey images with these labels, in as many classes as the highest label asks for."""
    images = np.random.default_rng(0).integers(0, 256, (len(clean), side, side, 1), dtype=np.uint8)
    names = tuple(f"class {label}" for label in range(clean.max() + 1))
    return ImageSet(images, clean, clean, names, name, human or {})


def balanced(classes: int, each: int, name: str = "own", side: int = 1) -> ImageSet:
    """An image set with `each` images in every class."""
    return image_set(np.arange(classes * each) % classes, name, side=side)


def refusal(call: Callable, *arguments: object) -> str:
    """The message of a call's refusal, which must be one sentence, perhaps followed by a suggestion."""
    with pytest.raises(InputError) as error:
        call(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert message.split(" Did you mean ")[0].endswith(".")
    return message
