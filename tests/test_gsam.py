"""The update against a direct transcription of its formulas, one network at a time, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import NETWORK
from torch.func import functional_call

from ddlnl import gsam, networks, training

EPS = 1e-12


def transcribed(loss, w, lr, rho, alpha):
    """The step of one network whose parameters are the vector w; `loss` maps such a vector to a number."""

    def gradient(at):
        at = at.clone().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]

    g = gradient(w)
    s = rho / ((w.abs() * g).norm() + EPS)
    e = s * w.square() * g
    h = gradient(w + e)
    c = g @ h / (g.norm() * h.norm() + EPS)
    orthogonal = g - c * g.norm() * h / (h.norm() + EPS)
    return w - lr * (h - alpha * orthogonal)


@pytest.fixture
def quadratics():
    """Three networks of a vector and a matrix, each with a quadratic of its own; (parameters, losses, loss of one)."""
    source = torch.Generator().manual_seed(0)
    w, linear = (torch.randn(3, 7, generator=source, dtype=torch.float64) for _ in range(2))
    root = torch.randn(3, 7, 7, generator=source, dtype=torch.float64)

    def loss(row):
        return lambda at: (root[row] @ at).square().sum() / 2 + linear[row] @ at

    parameters = [w[:, :3].clone().requires_grad_(), w[:, 3:].clone().view(3, 2, 2).requires_grad_()]

    def losses():
        flat = torch.cat([tensor.flatten(1) for tensor in parameters], 1)
        return torch.stack([loss(row)(flat[row]) for row in range(3)])

    return w, parameters, losses, loss


def test_a_step_on_quadratics_is_that_of_the_formulas(quadratics):
    w, parameters, losses, loss = quadratics
    before, after = gsam.step(parameters, losses, lr=0.01, rho=0.3, alpha=0.3)
    expected = torch.stack([transcribed(loss(row), w[row], 0.01, 0.3, 0.3) for row in range(3)])
    torch.testing.assert_close(torch.cat([one.detach().flatten(1) for one in parameters], 1), expected)
    torch.testing.assert_close(before, torch.stack([loss(row)(w[row]) for row in range(3)]))
    assert (after > before).all()  # the neighbour lies uphill
    plain = torch.stack([transcribed(loss(row), w[row], 0.01, 0.3, 0.0) for row in range(3)])
    assert (plain - expected).norm() > 1e-4 * expected.norm()  # so the step does tell the weight alpha


def test_a_step_without_radius_is_plain_sgd(quadratics):
    _, parameters, losses, _ = quadratics
    start = [tensor.detach().clone() for tensor in parameters]
    gradient = torch.autograd.grad(losses().sum(), parameters)
    gsam.step(parameters, losses, lr=0.01, rho=0.0, alpha=0.3)
    for tensor, old, g in zip(parameters, start, gradient, strict=True):
        torch.testing.assert_close(tensor.detach(), old - 0.01 * g, atol=1e-14, rtol=1e-14)


def test_a_step_where_every_gradient_is_zero_changes_nothing():
    parameters = [torch.ones(2, 4, requires_grad=True)]
    gsam.step(parameters, lambda: (0 * parameters[0]).sum(1), lr=0.01, rho=0.01, alpha=0.3)
    assert torch.equal(parameters[0].detach(), torch.ones(2, 4))


def test_a_step_of_a_stack_of_convnets_is_that_of_the_formulas():
    stack = training.initialise(lambda: NETWORK.build(3, 8, 3).double(), [4, 5], torch.device("cpu"))
    source = torch.Generator().manual_seed(1)
    images = torch.randn(2, 6, 3, 8, 8, generator=source, dtype=torch.float64)
    labels = torch.randint(3, (2, 6), generator=source)
    start = networks.flatten(stack.state())

    def losses():
        return torch.stack([F.cross_entropy(*pair) for pair in zip(stack(images), labels, strict=True)])

    def loss(row):
        def of(flat):
            parameters = networks.unflatten(flat, stack.skeleton)
            return F.cross_entropy(functional_call(stack.skeleton, parameters, (images[row],)), labels[row])

        return of

    gsam.step(list(stack.parameters.values()), losses, lr=0.1, rho=0.2, alpha=0.3)
    expected = torch.stack([transcribed(loss(row), start[row], 0.1, 0.2, 0.3) for row in range(2)])
    moved = networks.flatten(stack.state()) - start
    assert (moved - (expected - start)).norm() < 1e-9 * moved.norm()
