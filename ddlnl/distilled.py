"""The distilled set: what a distiller gives and evaluation takes."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddlnl import rcig_evaluation, training
from ddlnl.errors import InputError, reason
from ddlnl.preprocess import Preprocessing
from ddlnl.store import read_tensors, write_tensors

Protocol = training.Protocol | rcig_evaluation.Protocol
_PROTOCOLS = {"classification": training.Protocol, "regression": rcig_evaluation.Protocol}


def decode(images: Tensor, factor: int) -> Tensor:
    """Multi-formation (IDC, arXiv 2205.14959): each image is factor x factor tiles, each tile one training image.

    (n, C, H, W) to (factor^2 n, C, H, W), tile-major: all images' first tile, then all second ones. Sides that do not
    divide are padded with 0.5 at the right and bottom; upsampling is bilinear with half-pixel centres. Differentiable.
    """
    if factor == 1:
        return images
    size = images.shape[2:]
    sides = [-(-side // factor) for side in size]
    padded = F.pad(images, (0, factor * sides[1] - size[1], 0, factor * sides[0] - size[0]), value=0.5)
    tiles = [strip for band in padded.split(sides[0], 2) for strip in band.split(sides[1], 3)]
    return F.interpolate(torch.cat(tiles), size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class DistilledSet:
    """A few synthetic training images with labels, and all that is needed to train on them.

    images: (n, C, H, W) float32 in pixel space, not clamped, or, where `preprocessed`, in that of the preprocessing;
    labels: (n, K) float32, what students are trained towards: class probabilities, or, where `free_labels`, any
    numbers; factor: each image decodes to factor^2 training images; protocol: the method's published way to train
    students.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    method: str
    ipc: int
    preprocessing: Preprocessing
    protocol: Protocol
    factor: int = 1
    preprocessed: bool = False
    meta: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def free_labels(self) -> bool:
        """Whether labels are free real numbers that students regress on (RCIG's), and not probabilities."""
        return isinstance(self.protocol, rcig_evaluation.Protocol)

    def training_set(self) -> tuple[Tensor, Tensor]:
        """Preprocessed images (factor^2 n, C, H, W) and targets (factor^2 n, K) for students."""
        images = decode(self.images, self.factor)
        return images if self.preprocessed else self.preprocessing.apply(images), self.labels.repeat(self.factor**2, 1)

    def pictures(self) -> Tensor:
        """(n, C, H, W) float32 in pixel space, clamped to [0, 1], to look at."""
        return (self.preprocessing.invert(self.images) if self.preprocessed else self.images).clamp(0, 1)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically; nothing in it is ever executed."""
        write_tensors(Path(path), *self.state())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able description, as `save` writes them."""
        tensors, meta = self.state_without_preprocessing()
        tensors |= {f"preprocessing.{name}": value for name, value in self.preprocessing.tensors().items()}
        return tensors, meta

    def state_without_preprocessing(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As `state`, for a store that keeps the fitted preprocessing once for many sets."""
        meta = {
            name: getattr(self, name) for name in ("class_names", "method", "ipc", "factor", "preprocessed", "meta")
        }
        meta |= {"protocol": dataclasses.asdict(self.protocol), "preprocessing": self.preprocessing.kind}
        meta["students"] = "regression" if self.free_labels else "classification"
        return {"images": self.images, "labels": self.labels}, meta

    @classmethod
    def load(cls, path: str | Path) -> DistilledSet:
        """Read what `save` wrote.

        Raises `DamagedError` if the file does not match its checksum, `InputError` for the file of a store, which has
        no preprocessing in it, and for one that holds anything but a distilled set.
        """
        tensors, meta = read_tensors(Path(path))
        if "preprocessing.mean" not in tensors:
            raise InputError(f"{path} holds no preprocessing; a set of a store is read with study.distilled.")
        try:
            found = cls.from_state(tensors, meta)
            found._check()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no distilled set of this version ({reason(error)}).") from error
        return found

    def _check(self) -> None:
        """Raise ValueError unless the parts are what the attributes above say, and fit together."""
        if not _is_of(self, DistilledSet) or min(self.ipc, self.factor) < 1:
            raise ValueError("its description has values that it cannot have")
        fitted = self.preprocessing.tensors()
        for name, tensor in ({"images": self.images, "labels": self.labels} | fitted).items():
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"its {name} is not of finite float32 numbers")
        if self.images.dim() != 4 or self.labels.shape != (len(self.images), len(self.class_names)):
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise ValueError(f"its images and labels have the shapes {shapes} for {len(self.class_names)} classes")
        channels, pixels = self.images.shape[1], self.images[:1].numel()
        expected = {"mean": (channels,), "scale": (channels,)}
        if self.preprocessing.scale is None:
            expected = {"mean": (pixels,), "whiten": (pixels, pixels), "unwhiten": (pixels, pixels)}
        if not pixels or {name: tuple(tensor.shape) for name, tensor in fitted.items()} != expected:
            raise ValueError("its preprocessing does not fit its images")

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> DistilledSet:
        """The set whose `state` this is."""
        meta, prefix = dict(meta), "preprocessing."
        students = meta.pop("students", "classification")  # files from before RCIG do not name it
        fitted = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        return cls(
            images=tensors["images"],
            labels=tensors["labels"],
            class_names=tuple(meta.pop("class_names")),
            preprocessing=Preprocessing(meta.pop("preprocessing"), **fitted),
            protocol=_PROTOCOLS[students].from_dict(meta.pop("protocol")),
            **meta,
        )


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value, and every field of a dataclass in it, has the type that is written there."""
    if dataclasses.is_dataclass(kind):
        fields = typing.get_type_hints(kind).items()
        return type(value) is kind and all(_is_of(getattr(value, name), field) for name, field in fields)
    outer, inner = typing.get_origin(kind), typing.get_args(kind)
    if outer is types.UnionType:
        return any(_is_of(value, one) for one in inner)
    if outer is tuple:  # of one type
        return type(value) is tuple and all(_is_of(one, inner[0]) for one in value)
    return type(value) is (outer or kind) or (kind is float and type(value) is int)


def concatenate(sets: Sequence[DistilledSet]) -> DistilledSet:
    """One set with the images of all; method, IPC and protocol are those of the first.

    Raises `InputError` if preprocessing, classes, image size, factor or kind of labels differ: such images do not live
    in one space.
    """
    first = sets[0]
    for other in sets[1:]:
        first.preprocessing.require_same(other.preprocessing)
        same = first.class_names == other.class_names and first.images.shape[1:] == other.images.shape[1:]
        if not same or (first.factor, first.preprocessed, first.free_labels) != (
            other.factor,
            other.preprocessed,
            other.free_labels,
        ):
            raise InputError(
                "Distilled sets can be joined only if classes, image size, space, multi-formation factor and kind of "
                "labels agree."
            )
    images, labels = (torch.cat([getattr(one, name) for one in sets]) for name in ("images", "labels"))
    return replace(first, images=images, labels=labels)
