"""The dual forward is the derivative of the network, and reverse mode differentiates it once, in everything."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad
from torch.func import functional_call, jvp

from ddlnl import _core, convolutions, tangents, winograd
from ddlnl.errors import InputError
from ddlnl.generators import generator
from ddlnl.networks import ConvNet, resnet18, unflatten


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "tangents", *shape), dtype=torch.float64).to(dtype)


def parameters_of(network: ConvNet, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Random ones: at the initial scales of 1 and shifts of 0 some mistakes would not show."""
    size = sum(one.numel() for one in network.parameters())
    return 0.3 * normal(size, seed=1, dtype=dtype)


def plainly(network: ConvNet, images: torch.Tensor):
    return lambda flat: functional_call(network, unflatten(flat, network), (images,))


def same(found, expected, tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()
        assert other.norm() > 0


@pytest.fixture(params=["compiled", "twins"])
def operators(request, monkeypatch):
    if request.param == "twins":
        monkeypatch.setattr(_core, "active", lambda tensor: False)


NETWORKS = {
    "depth 1": {"depth": 1, "width": 5, "size": 8},
    "depth 3": {"depth": 3, "width": 5, "size": 16},
    "odd sides": {"depth": 2, "width": 6, "size": 13},
    "no norm": {"depth": 3, "width": 5, "size": 16, "norm": "none"},
    "grey": {"depth": 2, "width": 5, "size": 28, "channels": 1},
    "few channels": {"depth": 2, "width": 3, "size": 9},
    "many channels": {"depth": 3, "width": 64, "size": 18},
}


@pytest.mark.usefixtures("operators")
@pytest.mark.parametrize("case", NETWORKS)
def test_value_tangent_and_all_their_gradients_are_those_of_the_network(case):
    network = ConvNet(4, **NETWORKS[case])
    channels, side = NETWORKS[case].get("channels", 3), NETWORKS[case]["size"]
    images, flat = normal(3, channels, side, side).requires_grad_(), parameters_of(network).requires_grad_()
    direction = normal(len(flat), seed=2).requires_grad_()
    seeds = normal(3, 4, seed=3), normal(3, 4, seed=4)

    def gradients(outputs):
        return grad(outputs, (images, flat, direction), seeds)

    found = tangents.dual_logits(network, images, flat, direction)
    expected = jvp(plainly(network, images), (flat,), (direction,))
    same(found, expected, 1e-11)
    same(gradients(found), gradients(expected), 1e-10)
    value, plain = tangents.logits(network, images, flat), plainly(network, images)(flat)
    same([value], [plain], 1e-11)
    same(grad(value, (images, flat), seeds[0]), grad(plain, (images, flat), seeds[0]), 1e-11)


def test_without_gradients_of_parameters_those_of_the_images_are_the_same():
    network = ConvNet(4, depth=2, width=6, size=8)
    images, flat = normal(3, 3, 8, 8).requires_grad_(), parameters_of(network)
    direction, seeds = normal(len(flat), seed=2), (normal(3, 4, seed=3), normal(3, 4, seed=4))
    alone = grad(tangents.dual_logits(network, images, flat, direction), images, seeds)
    beside = grad(tangents.dual_logits(network, images, flat.requires_grad_(), direction), (images, flat), seeds)
    assert torch.equal(alone[0], beside[0])


def test_bfloat16_stays_near_and_the_logits_are_float32():
    network = ConvNet(4, depth=2, width=16, size=16)
    images, flat = (
        one(torch.float32) for one in (lambda t: normal(8, 3, 16, 16, dtype=t), lambda t: parameters_of(network, t))
    )
    direction = normal(len(flat), seed=2, dtype=torch.float32)
    rounded = tangents.dual_logits(network, images, flat, direction, torch.bfloat16)
    assert {one.dtype for one in rounded} == {torch.float32}
    same(rounded, tangents.dual_logits(network, images, flat, direction), 0.03)


@pytest.mark.parametrize(
    "network",
    [
        ConvNet(3, 2, 4, 8, norm="batch"),
        ConvNet(3, 2, 4, 8, norm="layer"),
        ConvNet(3, 2, 4, 8, pooling="max"),
        ConvNet(3, 2, 4, 8, norm="none", pooling="none"),
        resnet18(3),
    ],
    ids=["batch", "layer", "max", "no pooling", "resnet18"],
)
def test_another_network_is_refused_in_one_sentence(network):
    flat = torch.zeros(sum(one.numel() for one in network.parameters()))
    with pytest.raises(InputError, match=r"^Tangents need a ConvNet with norm 'instance' or 'none' and pooling 'avg';"):
        tangents.logits(network, torch.zeros(1, 3, 8, 8), flat)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 5), (8, 8), (7, 18)])
def test_a_convolution_by_tiles_is_the_direct_one_with_its_gradients(size):
    x, weight = normal(3, 5, *size).requires_grad_(), normal(7, 5, 3, 3, seed=1).requires_grad_()
    found = winograd.lower(winograd.lift(x) @ winograd.lift_weight(weight), size)
    expected = F.conv2d(x, weight, padding=1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    same([found], [expected], 1e-13)
    seed = normal(*found.shape, seed=2)
    same(grad(found, (x, weight), seed), grad(expected, (x, weight), seed), 1e-13)


def test_a_convolution_by_tiles_keeps_five_digits_in_float32():
    x, weight = normal(4, 128, 16, 16), normal(128, 128, 3, 3, seed=1)
    found = winograd.lower(winograd.lift(x.float()) @ winograd.lift_weight(weight.float()), (16, 16))
    same([found], [F.conv2d(x, weight, padding=1)], 1e-5)


@pytest.mark.parametrize("channels", [1, 3, 16, 64])
@pytest.mark.parametrize("padding", [(1, 1), (3, 3)])
@pytest.mark.parametrize("moves", [True, False])
def test_a_convolution_with_its_tangent_is_the_product_rule_whichever_way_it_takes(channels, padding, moves):
    x, dx = normal(2, channels, 6, 9).requires_grad_(), normal(2, channels, 6, 9, seed=1).requires_grad_()
    weight, dweight = (normal(4, channels, 3, 3, seed=seed).requires_grad_() for seed in (2, 3))
    given = (x, dx, weight, dweight) if moves else (x, weight, dweight)
    value, tangents = convolutions.convolve(x, weight, [(dx if moves else None, dweight)] * 2, padding)
    found = value, tangents[1]
    tangent = F.conv2d(x, dweight, padding=padding) + (F.conv2d(dx, weight, padding=padding) if moves else 0)
    expected = F.conv2d(x, weight, padding=padding), tangent
    same(found, expected, 1e-12)
    seeds = [normal(*one.shape, seed=4 + i) for i, one in enumerate(found)]
    same(grad(found, given, seeds), grad(expected, given, seeds), 1e-12)
    assert torch.equal(*tangents)
    assert convolutions.convolve(x, weight, [], padding)[1] == []
