"""Eager baselines: what published code composes from torch's own modules and functions, written from the formulas."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from ddlnl import augment, dance
from ddlnl.generators import generator
from ddlnl.ops.reference import CODES, COLUMNS
from ddlnl.training import Recipe


def eager_tail(weight: Tensor, bias: Tensor) -> nn.Sequential:
    """Instance norm, ReLU and 2x2 average pool as modules, with copies of these parameters (C,)."""
    norm = nn.GroupNorm(len(weight), len(weight), device=weight.device, dtype=weight.dtype)
    norm.load_state_dict({"weight": weight, "bias": bias})
    return nn.Sequential(norm, nn.ReLU(inplace=True), nn.AvgPool2d(2))


class EagerConvNet(nn.Module):
    """The ConvNet of depth 3 for 32 pixels from torch's modules; parameters in the order of `networks.ConvNet`."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for channels in (3, width, width):
            tail = eager_tail(torch.ones(width), torch.zeros(width))
            blocks += [nn.Conv2d(channels, width, 3, padding=1), *tail]
        self.features = nn.Sequential(*blocks, nn.Flatten())
        self.classifier = nn.Linear(width * 4**2, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


def eager_augment(images: Tensor, table: Tensor, program: Iterable[str]) -> Tensor:
    """The operations of a program one after another; `table` has a row per image, or one for all."""
    p = dict(zip(COLUMNS, table.to(images)[..., None, None, None].unbind(1), strict=True))
    for name in program:
        images = _OPERATIONS[name](images, p)
    return images


def _program(drawn: augment.Augmentation) -> list[str]:
    names = {code: name for name, code in CODES.items()}
    return [names[code] for code in drawn.codes.tolist()]


def _color(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    x = x + p["offset"]
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * p["saturation"] + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * p["contrast"] + mean


def _grid(x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.meshgrid(*(torch.arange(n, device=x.device) for n in (len(x), height, width)), indexing="ij")


def _crop(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    height, width = x.shape[2:]
    image, row, column = _grid(x, height, width)
    row = (row + p["row_shift"][..., 0].long() + 1).clamp(0, height + 1)
    column = (column + p["column_shift"][..., 0].long() + 1).clamp(0, width + 1)
    padded = F.pad(x, (1, 1, 1, 1))  # whatever lies outside reads this border
    return padded.permute(0, 2, 3, 1).contiguous()[image, row, column].permute(0, 3, 1, 2)


def _cutout(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    height, width = x.shape[2:]
    image, row, column = _grid(x, height // 2, width // 2)
    row = (row + p["cut_row"][..., 0].long() - height // 4).clamp(0, height - 1)
    column = (column + p["cut_column"][..., 0].long() - width // 4).clamp(0, width - 1)
    kept = torch.ones(len(x), height, width, dtype=x.dtype, device=x.device)
    kept[image, row, column] = 0
    return x * kept[:, None]


def _flip(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return torch.where(p["flip"] > 0.5, x.flip(3), x)


def _affine(x: Tensor, *entries: Tensor) -> Tensor:
    rows = torch.cat([entry.flatten(1) for entry in entries], 1).view(-1, 2, 2)
    theta = F.pad(rows, (0, 1)).expand(len(x), -1, -1)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)


def _scale(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    zero = torch.zeros_like(p["scale_row"])
    return _affine(x, p["scale_column"], zero, zero, p["scale_row"])


def _rotate(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return _affine(x, p["cosine"], -p["sine"], p["sine"], p["cosine"])


_OPERATIONS = {"color": _color, "crop": _crop, "cutout": _cutout, "flip": _flip, "scale": _scale, "rotate": _rotate}


def eager_train(network: nn.Module, images: Tensor, targets: Tensor, recipe: Recipe, seed: int) -> None:
    """One epoch of `training.train` for one network, with the same draws."""
    optimiser = torch.optim.SGD(
        network.parameters(), lr=recipe.rate(0), momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    source = generator(seed, "epoch", 0)
    for index in torch.randperm(len(images), generator=source).to(images.device).split(recipe.batch_size):
        drawn = augment.draw(recipe.augmentation, len(index), images.shape[2:], source)
        loss = F.cross_entropy(network(eager_augment(images[index], drawn.table, _program(drawn))), targets[index])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


class EagerDance:
    """An iteration of DANCE with a step of torch's SGD per class and view; data and draws are those of `run`."""

    def __init__(self, run: dance.Dance, images: Tensor) -> None:
        self.run, self.images = run, images.clone().requires_grad_()
        lr = run.settings.lr_per_ipc * run.ipc
        self.optimiser = torch.optim.SGD([self.images], lr=lr, momentum=run.settings.momentum)
        width, device = run.settings.architecture.width, images.device
        self.mixed, self.expert = (EagerConvNet(width, run.classes).to(device).requires_grad_(False) for _ in range(2))
        self.real = run.real.permute(0, 3, 1, 2).float() / 255

    def iterate(self, iteration: int) -> None:
        draws = self.run.draw(iteration)
        initial, trained = self.run.initial[draws.expert], self.run.trained[draws.expert]
        vector_to_parameters(draws.mix * initial + (1 - draws.mix) * trained, self.mixed.parameters())
        vector_to_parameters(trained, self.expert.parameters())
        with torch.no_grad():
            self.images.clamp_(0, 1)
        for label in range(self.run.classes):
            real = self.real[self.run.batches(label, iteration).to(self.images.device)]
            self.step(self.matching(real, self.decoded(label), _row(draws.matching, label)))
        for label in range(self.run.classes):
            self.step(self.calibration(self.decoded(label), label, _row(draws.calibrations[0], label)))

    def decoded(self, label: int) -> Tensor:
        """The (4 ipc, C, H, W) images in the four quarters of the images of a class."""
        images = self.images[label * self.run.ipc : (label + 1) * self.run.ipc]
        half = images.shape[2] // 2
        quarters = [images[:, :, i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
        return F.interpolate(torch.cat(quarters), size=images.shape[2:], mode="bilinear", align_corners=False)

    def matching(self, real: Tensor, synthetic: Tensor, drawn: augment.Augmentation) -> Tensor:
        both = eager_augment(self.run.preprocessing.apply(torch.cat([real, synthetic])), drawn.table, _program(drawn))
        with torch.no_grad():
            mean = self.mixed.features(both[: len(real)]).mean(0)
        return (self.mixed.features(both[len(real) :]).mean(0) - mean).square().sum()

    def calibration(self, synthetic: Tensor, label: int, drawn: augment.Augmentation) -> Tensor:
        augmented = eager_augment(self.run.preprocessing.apply(synthetic), drawn.table, _program(drawn))
        logits = self.expert(augmented)
        return F.cross_entropy(logits, torch.full((len(logits),), label, device=logits.device))

    def step(self, loss: Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def _row(drawn: augment.Augmentation, label: int) -> augment.Augmentation:
    return replace(drawn, table=drawn.table[label : label + 1])
