from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rcig_twin import inner_loss
from small import GRADIENTS, image_set

from ddlnl import preprocess, rcig_exact, rcig_solve
from ddlnl.generators import generator
from ddlnl.rcig_network import Network
from ddlnl.rcig_solve import Support

NETWORK = Network(3, depth=2, width=4, size=8, channels=2)


def problem(dtype=torch.float64):
    source = generator(0, "test")
    base = NETWORK.initialise(source).to(dtype)
    images = torch.randn(6, 2, 8, 8, generator=source).to(dtype)
    labels = torch.randn(6, 3, generator=source).to(dtype)
    return Support(NETWORK, base, images, 0.05, 4), labels


def test_the_gradient_of_the_unsimplified_inner_loss_is_zero_at_the_exact_solution():
    support, labels = problem()
    best = rcig_exact.tau_exact(support, labels)

    def gradient(tangent):
        return torch.func.grad(lambda t: inner_loss(NETWORK, support.base, t, support.images, labels, 0.05))(tangent)

    start, end = gradient(torch.zeros_like(best)), gradient(best)
    trained = torch.ones_like(best, dtype=torch.bool)
    trained[NETWORK.head] = False
    assert end[trained].abs().max() < 1e-12 * start[trained].abs().max()
    assert best[NETWORK.head].abs().max() == 0
    ours = rcig_exact.inner_loss(support, labels, best)
    assert ours == pytest.approx(float(inner_loss(NETWORK, support.base, best, support.images, labels, 0.05)))


def test_conjugate_gradients_arrive_at_the_exact_solution():
    support, labels = problem()
    best = rcig_exact.tau_exact(support, labels)
    found = rcig_solve.inner_by_cg(support, labels, 60).tangent
    torch.testing.assert_close(found, best, rtol=1e-8, atol=1e-10)


def test_the_shortfall_lies_between_nothing_done_and_the_optimum_and_falls_with_the_steps():
    train = image_set()
    fitted = preprocess.fit(train.images, "zca-relative")
    few, many = (
        rcig_exact.shortfall(train, fitted, (1, 2), replace(GRADIENTS, inner_steps=steps, inner_lr=1e-3))
        for steps in (5, 20)
    )
    assert few["unknowns"].tolist() == [18, 18, 36, 36]
    for table in (few, many):
        assert table["left"].between(-1e-6, 1).all()
        assert (table["distance"] < 1).all()
    assert (many["left"] < few["left"]).all()
    by = many.set_index(["solver", "ipc"])["left"]
    assert (by["cg"] < by["adam"]).all()
    assert many["lr"].isna().tolist() == [False, True, False, True]
