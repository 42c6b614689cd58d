from __future__ import annotations

import math

import pytest
import rcig_twin as twin
import torch
import torch.nn.functional as F
from torch.func import grad

from ddlnl import rcig_meta, rcig_rates, rcig_solve
from ddlnl.generators import generator
from ddlnl.rcig_network import ACTIVATIONS, Network
from ddlnl.rcig_solve import Support
from ddlnl.rcig_updates import AdaBelief, Average

RIDGE = 0.05


class Setting:
    """A small problem in float64: three images, mirrored to a support of six, and eleven real images."""

    def __init__(self, activation="softplus", rows=4):
        self.network = Network(3, 2, 4, 8, 2, activation)
        source = generator(0, "test")

        def normal(*shape):
            return torch.randn(shape, generator=source, dtype=torch.float64)

        self.base = self.network.initialise(source).double()
        self.base += 0.1 * normal(len(self.base))
        self.images, self.labels = normal(3, 2, 8, 8), 0.5 * normal(3, 3)
        self.real, self.targets = normal(11, 2, 8, 8), torch.arange(11) % 3
        self.tangent, self.direction = (0.1 * normal(len(self.base)) for _ in range(2))
        self.log_temperature = torch.tensor(0.3, dtype=torch.float64)
        self.rows = rows

    def support(self, images=None):
        both = rcig_meta.mirrored(self.images if images is None else images)
        return Support(self.network, self.base, both, RIDGE, self.rows)

    def inner_loss(self, tangent, images, labels):
        both = rcig_meta.mirrored(images)
        return twin.inner_loss(self.network, self.base, tangent, both, labels.repeat(2, 1), RIDGE)

    def outer_loss(self, tangent, images, labels, log_temperature):
        """From the definition, differentiable in everything."""
        both, doubled = rcig_meta.mirrored(images), labels.repeat(2, 1)
        features, pushed = twin.linearised(self.network, self.base, tangent, both)
        seen, seen_pushed = twin.linearised(self.network, self.base, tangent, self.real)
        gram = features @ features.T + RIDGE * torch.eye(len(both), dtype=features.dtype)
        predictions = seen_pushed + seen @ features.T @ torch.linalg.solve(gram, doubled - pushed)
        top = doubled.topk(2, 1).values
        gap = (top[:, 0] - top[:, 1]).clamp(max=1 / 6).mean()
        return F.cross_entropy(log_temperature.exp() * predictions, self.targets) - gap


@pytest.fixture(params=ACTIVATIONS)
def setting(request):
    return Setting(request.param)


def close(mine, expected, tolerance):
    assert (mine - expected).norm() <= tolerance * expected.norm()


def test_inner_value_gradient_and_hessian_agree_with_the_unsimplified_loss(setting):
    support, labels = setting.support(), setting.labels.repeat(2, 1)

    def loss(tangent):
        return setting.inner_loss(tangent, setting.images, setting.labels)

    residual = labels - support.push(setting.tangent)
    answer = support.solve(residual)
    value = support.scale / 2 * ((residual * answer).sum() + setting.tangent.square().sum())
    assert value.item() == pytest.approx(loss(setting.tangent).item(), rel=1e-12)
    gradient = support.scale * (setting.tangent - support.pull(answer))
    close(gradient, grad(loss)(setting.tangent), 1e-10)
    product, form = support.hessian(setting.direction)
    close(product, twin.hessian_product(loss, setting.tangent, setting.direction), 1e-9)
    assert form.item() == pytest.approx((product @ setting.direction).item(), rel=1e-12)


def test_outer_loss_and_its_gradients_agree_with_autograd_on_the_definition(setting):
    leaves = [setting.tangent, setting.images, setting.labels, setting.log_temperature]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = setting.outer_loss(*leaves)
    tangent, images, labels, log_temperature = torch.autograd.grad(value, leaves)
    labels_twice = setting.labels.repeat(2, 1)
    given = setting.tangent, setting.log_temperature, setting.real, setting.targets
    direct = rcig_meta.outer(setting.support(), labels_twice, *given)
    assert direct.loss.item() == pytest.approx(value.item(), rel=1e-12)
    close(direct.tangent, tangent, 1e-9)
    close(rcig_meta.fold_mirrored(direct.images), images, 1e-8)
    close(sum(direct.labels.chunk(2)), labels, 1e-9)
    close(direct.log_temperature, log_temperature, 1e-9)


def test_implicit_gradient_agrees_with_reverse_over_reverse(setting):
    def coupling(images, labels):
        inner = grad(lambda tangent: setting.inner_loss(tangent, images, labels))
        return -(inner(setting.tangent) * setting.direction).sum()

    images, labels = grad(coupling, (0, 1))(setting.images, setting.labels)
    found = rcig_meta.implicit(setting.support(), setting.labels.repeat(2, 1), setting.tangent, setting.direction)
    close(rcig_meta.fold_mirrored(found[0]), images, 1e-8)
    close(sum(found[1].chunk(2)), labels, 1e-8)


def solved(setting, images, labels):
    """The support and the exact inner solution."""
    support = setting.support(images)
    return support, rcig_solve.inner_by_cg(support, labels.repeat(2, 1), 60)[0]


def test_meta_gradient_with_exact_solves_is_the_derivative_of_the_bilevel_objective(setting):
    def objective(images, labels):
        support, tangent = solved(setting, images, labels)
        given = setting.log_temperature, setting.real, setting.targets
        return rcig_meta.outer(support, labels.repeat(2, 1), tangent, *given).loss.item()

    support, tangent = solved(setting, setting.images, setting.labels)
    given = tangent, setting.log_temperature, setting.real, setting.targets
    direct = rcig_meta.outer(support, setting.labels.repeat(2, 1), *given)
    direction, _ = rcig_solve.inverse_hessian_by_cg(support, direct.tangent, 60, kernel=False)
    images, labels = rcig_meta.implicit(support, setting.labels.repeat(2, 1), tangent, direction)
    source, step = generator(1, "test"), 1e-5
    for leaf in ("images", "labels"):
        moved = torch.randn(getattr(setting, leaf).shape, generator=source, dtype=torch.float64)
        moves = (moved, 0 * setting.labels) if leaf == "images" else (0 * setting.images, moved)
        ends = [
            objective(setting.images + sign * step * moves[0], setting.labels + sign * step * moves[1])
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        if leaf == "images":
            parts = [(rcig_meta.fold_mirrored(one) * moved).sum().item() for one in (direct.images, images)]
        else:
            parts = [(sum(one.chunk(2)) * moved).sum().item() for one in (direct.labels, labels)]
        assert sum(parts) == pytest.approx(slope, rel=1e-5)
        assert abs(parts[0] - slope) > 0.02 * abs(slope)  # the direct part alone is not the derivative


def test_gradients_do_not_depend_on_the_size_of_the_chunks():
    results = []
    for rows in (100, 1):
        setting = Setting(rows=rows)
        given = setting.tangent, setting.log_temperature, setting.real, setting.targets
        support, labels = setting.support(), setting.labels.repeat(2, 1)
        results.append(
            [*rcig_meta.outer(support, labels, *given), *rcig_meta.implicit(support, labels, *given[:1], given[0])]
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_adam_solvers_take_the_steps_of_torch_on_the_unsimplified_loss():
    setting = Setting()
    support, labels = setting.support(), setting.labels.repeat(2, 1)
    tangent, losses, _ = rcig_solve.inner(support, labels, 1e-2, 6)
    variable = torch.zeros_like(setting.base).requires_grad_()
    optimiser = torch.optim.Adam([variable], 1e-2)
    for step in range(6):
        loss = setting.inner_loss(variable, setting.images, setting.labels)
        assert losses[step].item() == pytest.approx(loss.item(), rel=1e-9)
        (variable.grad,) = torch.autograd.grad(loss, variable)
        variable.grad[setting.network.head] = 0
        optimiser.step()
    torch.testing.assert_close(tangent, variable.detach(), rtol=1e-6, atol=1e-9)
    assert not tangent[setting.network.head].any()
    wanted = rcig_meta.outer(support, labels, tangent, setting.log_temperature, setting.real, setting.targets).tangent
    direction, residuals = rcig_solve.inverse_hessian(support, wanted, 1.0, 6)
    solution = torch.zeros_like(setting.base).requires_grad_()
    optimiser = torch.optim.Adam([solution], 1.0)
    for step in range(6):
        product = twin.hessian_product(
            lambda one: setting.inner_loss(one, setting.images, setting.labels), tangent, solution.detach()
        )
        expected = solution.detach() @ product - 2 * solution.detach() @ wanted
        assert residuals[step].item() == pytest.approx(expected.item(), rel=1e-8, abs=1e-15)
        solution.grad = product - wanted
        optimiser.step()
    torch.testing.assert_close(direction, solution.detach(), rtol=1e-6, atol=1e-9)


def test_conjugate_gradients_decrease_and_solve():
    setting = Setting()
    support = setting.support()
    tangent, losses, _ = rcig_solve.inner_by_cg(support, setting.labels.repeat(2, 1), 8)
    assert rcig_solve.score(losses) == 1
    assert losses[0].item() == pytest.approx(
        setting.inner_loss(0 * tangent, setting.images, setting.labels).item(), rel=1e-12
    )
    tangent, losses, _ = rcig_solve.inner_by_cg(support, setting.labels.repeat(2, 1), 60)
    expected = setting.inner_loss(tangent, setting.images, setting.labels).item()
    assert losses[-1].item() == pytest.approx(expected, rel=1e-12)
    direction, _ = rcig_solve.inverse_hessian_by_cg(support, setting.direction, 60)
    close(support.hessian(direction)[0], setting.direction, 1e-8)


def test_subsampled_rows_give_the_closed_forms_of_the_estimator():
    setting = Setting()
    support, labels = setting.support(), setting.labels.repeat(2, 1)
    chosen = torch.tensor([1.0, 0, 1, 1, 0, 0])
    rows = chosen.nonzero().flatten()
    jacobian = torch.stack([support.pull(one.view(6, 3)) for one in torch.eye(18, dtype=torch.float64)])
    part = jacobian.view(6, 3, -1)[rows].flatten(0, 1)
    answer = support.solve(labels - support.push(setting.tangent))
    close(support.pull(answer, chosen), part.T @ answer[rows].flatten(), 1e-12)
    inverse = support.solve(torch.eye(6, dtype=torch.float64))[rows][:, rows]
    data = part.T @ (inverse @ (part @ setting.direction).view(3, 3)).flatten()
    close(support.hessian(setting.direction, chosen)[0], support.scale * (setting.direction + data), 1e-12)
    given = setting.tangent, setting.log_temperature, setting.real, setting.targets
    every, some = (rcig_meta.outer(support, labels, *given, chosen=one) for one in (None, chosen))
    assert torch.equal(some.images[rows], every.images[rows])
    assert not some.images[chosen == 0].any()


def test_ridge_counts_images_without_their_mirror_images_and_scale_counts_all():
    support = Setting().support()
    assert support.scale == pytest.approx(RIDGE / (6 * 3))
    gram = support.factor @ support.factor.T - support.features @ support.features.T
    torch.testing.assert_close(gram, RIDGE * torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-10)


def test_margin_is_capped_and_its_gradient_is_that_of_autograd():
    labels = torch.tensor([[0.9, 0.1, -1], [0.2, 0.25, 0.0], [0.1, 0.05, 0.1]], dtype=torch.float64)
    value, gradient = rcig_meta.margin(labels)
    assert value.item() == pytest.approx((1 / 6 + 0.05 + 0) / 3)
    assert gradient[0].tolist() == [0, 0, 0]
    assert gradient[1].tolist() == pytest.approx([-1 / 3, 1 / 3, 0])
    assert gradient[2].sum().item() == 0


def test_clip_shortens_only_what_is_longer_and_leaves_zero_alone():
    direct, other = torch.tensor([3.0, 4.0]), torch.tensor([[6.0, 8.0]])
    assert rcig_meta.clip(direct, other).tolist() == [[3.0, 4.0]]
    assert rcig_meta.clip(direct, 0.1 * other).tolist() == (0.1 * other).tolist()
    assert rcig_meta.clip(direct, 0 * other).tolist() == [[0, 0]]


def test_adabelief_has_the_published_unit_values():
    variable = torch.zeros(1, dtype=torch.float64)
    optimiser = AdaBelief(variable, 0.01)
    optimiser.step(torch.ones_like(variable), 1)
    assert variable.item() == pytest.approx(-0.01, rel=1e-6)
    optimiser.step(torch.ones_like(variable), 2)
    assert variable.item() == pytest.approx(-0.01 - 1.051204 * 0.01, rel=1e-6)
    assert optimiser.square.item() / (1 - 0.999**2) == pytest.approx(0.904952, rel=1e-6)


def test_average_is_corrected_for_its_start():
    variable = torch.tensor([2.0])
    average = Average(variable, 0.99)
    assert average.value(0).item() == 2
    average.step()
    assert average.value(1).item() == pytest.approx(2)
    variable.fill_(4)
    average.step()
    assert average.value(2).item() == pytest.approx((0.99 * 2 + 4) / 1.99)


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [([3, 2, 1], 1), ([3, 2, 2], 0), ([3, 5, 2], 0), ([3, 2, 4], -1), ([3, math.nan, 1], 0), ([3, 2, math.nan], 0)],
)
def test_score_tells_monotone_from_diverging_sequences(sequence, expected):
    assert rcig_solve.score(torch.tensor(sequence, dtype=torch.float64)) == expected


def test_tuning_ends_just_above_the_last_learning_rate_that_decreases():
    def sequence(lr):
        return torch.tensor([1.0, 0.5, 0.2 if lr < 1 else 0.6])

    tried = 1e-5
    while tried < 1:
        tried *= 1.2
    assert rcig_rates.tune(sequence, 1e-5) == pytest.approx(0.84 * tried)
