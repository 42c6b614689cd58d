from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from rcig_twin import inner_loss, logits_and_features
from small import GRADIENTS, image_set

from ddlnl import archives, preprocess, rcig_early_stop, rcig_exact, rcig_solve
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


@pytest.mark.parametrize("activation", ["softplus", "relu"])
def test_the_kernel_is_that_of_the_jacobian_however_it_is_cut(activation, monkeypatch):
    network = replace(NETWORK, activation=activation)
    base = network.initialise(generator(0, "test")).double()
    images = torch.randn(5, 2, 8, 8, generator=generator(1, "test"), dtype=torch.float64)
    support = Support(network, base, images, 0.05, 4)
    jacobian = torch.func.jacrev(lambda flat: logits_and_features(network, flat, images)[0])(base).flatten(0, 1)
    jacobian[:, network.head] = 0
    for chunk in (1, 1000, 2**26):
        monkeypatch.setattr(rcig_exact, "_CHUNK", chunk)
        torch.testing.assert_close(rcig_exact.ntk(support), jacobian @ jacobian.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("has_archive", [False, True])
def test_the_early_stop_is_measured_on_cifar10_where_it_is_there_and_says_on_what(tmp_path, monkeypatch, has_archive):
    monkeypatch.delenv("DDLNL_DATA", raising=False)
    monkeypatch.setattr(archives.platformdirs, "user_cache_dir", lambda _: str(tmp_path / "none"))
    if has_archive:
        one = image_set(classes=3, per_class=12, side=16)
        arrays = {f"{part}_{what}": x for part in ("train", "test") for what, x in (("images", one.images),)}
        labels = {f"{part}_labels": one.clean for part in ("train", "test")}
        archives.write(tmp_path / "cifar10.npz", arrays | labels | {"class_names": np.array(one.class_names)})
    table = rcig_early_stop.measure((1, 2), tmp_path, "cpu")
    assert table["dataset"].eq("cifar10" if has_archive else "digits").all()
    assert table["steps"].eq(20).all()
    assert table["unknowns"].tolist() == ([9, 9, 18, 18] if has_archive else [100, 100, 200, 200])
    assert table["left"].between(-1e-5, 1).all()
    shown = []
    monkeypatch.setattr(rcig_early_stop, "display", lambda data, raw: shown.append(data))
    rcig_early_stop.show(table)
    for text in shown[0].values():
        assert ("no archive of CIFAR-10" in text) != has_archive
        assert f"{100 * table['left'].iloc[0]:.1f}" in text
        assert "none" in text


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
