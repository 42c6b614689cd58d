from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from ddlnl import networks
from ddlnl.errors import InputError
from ddlnl.networks import ConvNet, Stack


@pytest.mark.parametrize(
    ("shape", "parameters", "features"),
    [
        ({"classes": 10}, 320_010, 2048),
        ({"classes": 100}, 504_420, 2048),
        ({"classes": 200, "depth": 4, "size": 64}, 857_160, 2048),
        ({"classes": 200, "depth": 3, "size": 64}, 1_938_120, 8192),
        ({"classes": 10, "channels": 1, "size": 28}, 317_706, 2048),
        ({"classes": 10, "depth": 5, "size": 128}, 615_690, 2048),
    ],
)
def test_convnets_have_the_published_number_of_parameters(shape, parameters, features):
    network = ConvNet(**shape)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    images = torch.zeros(2, shape.get("channels", 3), shape.get("size", 32), shape.get("size", 32))
    assert network.features(images).shape == (2, features)
    assert network(images).shape == (2, shape["classes"])


def test_initial_weights_are_uniform_within_one_over_the_root_of_fan_in():
    convolution = ConvNet(10).blocks[2]
    bound = 1152**-0.5
    for tensor in (convolution.weight, convolution.bias):
        assert bound * 0.95 < tensor.abs().max() <= bound
    assert convolution.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_block_is_convolution_instance_norm_relu_and_average_pooling():
    network = ConvNet(4, depth=1, width=6, size=8).double()
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    hidden = torch.nn.functional.conv2d(images, network.blocks[0].weight, network.blocks[0].bias, padding=1)
    mean, variance = hidden.mean((2, 3), keepdim=True), hidden.var((2, 3), keepdim=True, unbiased=False)
    hidden = ((hidden - mean) / (variance + 1e-5).sqrt()).relu()
    pooled = hidden.unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    torch.testing.assert_close(network.features(images), pooled.flatten(1))


def test_a_flat_vector_runs_as_the_module_does():
    network = ConvNet(5, depth=2, width=4, size=8)
    flat = networks.flatten({name: tensor.detach()[None] for name, tensor in network.named_parameters()})[0]
    order = [tensor.flatten() for tensor in network.parameters()]  # conv, norm per block, then the linear layer
    assert torch.equal(flat, torch.cat(order))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(functional_call(network, networks.unflatten(flat, network), (images,)), network(images))


@pytest.mark.parametrize("build", [lambda: ConvNet(5, depth=2, width=4, size=8), lambda: networks.resnet18(5)])
def test_a_stack_runs_every_network_on_its_own_batch(build):
    members = [build(), build()]
    stack = Stack(members)
    images = torch.randn(2, 4, 3, 8, 8)
    expected = torch.stack([network.train()(batch) for network, batch in zip(members, images, strict=True)])
    torch.testing.assert_close(stack(images), expected)
    shared = stack(images[0], training=False)
    for member, row, logits in zip(members, range(2), shared, strict=True):
        member.load_state_dict({name: tensor[row] for name, tensor in stack.state().items()})
        torch.testing.assert_close(logits, member.eval()(images[0]))


def test_batch_norm_statistics_are_kept_per_network():
    stack = Stack([networks.resnet18(5), networks.resnet18(5)])
    stack(torch.stack([torch.zeros(4, 3, 8, 8), torch.randn(4, 3, 8, 8)]))
    assert stack.state()["bn1.num_batches_tracked"].tolist() == [1, 1]
    first, second = stack.state()["bn1.running_var"]
    assert not torch.allclose(first, second)


def test_impossible_networks_are_refused_with_what_is_allowed():
    with pytest.raises(InputError, match="at most 5"):
        ConvNet(10, depth=6)
    with pytest.raises(InputError, match="instance, batch, layer, none"):
        ConvNet(10, norm="group")
    with pytest.raises(InputError, match="avg, max, none"):
        ConvNet(10, pooling="mean")
