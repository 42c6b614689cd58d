"""RCIG: reparameterised convexified implicit gradients (arXiv 2302.06755).

Images, soft labels and a temperature follow the gradient of the loss, on real images, of a network that was linearised
and fitted to them; the fit is a convex problem (`rcig_solve`), its derivative the implicit function theorem's
(`rcig_meta`). Which network is linearised is drawn from a pool of different ages (`rcig_pool`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from ddlnl import evaluation, loop, rcig_meta, rcig_solve, training
from ddlnl.dance import RealBatches
from ddlnl.datasets import ImageSet
from ddlnl.generators import generator
from ddlnl.preprocess import Preprocessing
from ddlnl.rcig_initial import initial_set
from ddlnl.rcig_meta import Direct, fold_mirrored, mirrored
from ddlnl.rcig_network import Network
from ddlnl.rcig_pool import Pool
from ddlnl.rcig_rates import Rates
from ddlnl.rcig_settings import Settings
from ddlnl.rcig_solve import EVERY_ROW, Rows, Solution, Support
from ddlnl.rcig_updates import AdaBelief, Average

__all__ = ["Rcig", "Settings", "checkpoints", "distil"]

_VARIABLES = ("images", "labels", "log_temperature")
_CURVES = ("losses", "accuracies", "image_ratios", "label_ratios")
_ROWS_ON_CPU = 64  # images per call, so that activations stay in cache


class Rcig:
    """One distillation: its variables, their optimisers and averages, the pool, the two learning rates, and curves.

    `images` (n, C, H, W) in the space of `preprocessing`, `labels` (n, K) and `log_temperature` () are free real
    numbers. `wrong_labels`: initial images whose class is not their clean one.
    """

    def __init__(
        self,
        train: ImageSet,
        ipc: int,
        settings: Settings,
        preprocessing: Preprocessing,
        seed: int,
        device: torch.device,
    ) -> None:
        self.settings, self.seed, self.device = settings, seed, device
        self.real = evaluation.on_device(train, preprocessing, device)
        self.targets = torch.from_numpy(train.observed).to(device)
        self.batches = RealBatches(torch.zeros(len(train.observed)), 1, settings.real_batch, seed)
        initial = initial_set(train, ipc, settings.initialisation, preprocessing, seed)
        self.images, self.labels = initial.images.to(device), initial.labels.to(device)
        self.wrong_labels = initial.wrong_labels
        self.log_temperature = torch.zeros((), device=device)
        rates = {"images": settings.lr, "labels": settings.lr, "log_temperature": settings.lr_temperature}
        self.optimisers = {name: AdaBelief(getattr(self, name), rates[name]) for name in _VARIABLES}
        self.averages = {name: Average(getattr(self, name), settings.average) for name in _VARIABLES}
        channels, size = initial.images.shape[1:3]
        self.network = Network(train.num_classes, settings.depth, settings.width, size, channels, settings.activation)
        self.rows = _ROWS_ON_CPU if device.type == "cpu" else settings.rows_per_call or 2**31
        self.pool = Pool(self.network, settings, seed, device, self.rows)
        self.rates = Rates(settings)
        self.count, self.jittered = torch.tensor(0), torch.tensor(0)
        self.curves = {name: torch.full((settings.iterations,), torch.nan) for name in _CURVES}

    @property
    def ridge(self) -> float:
        """Proportional to the number of distilled images, mirror images not counted."""
        return self.settings.l2_rate * len(self.images)

    def support(self) -> tuple[Tensor, Tensor]:
        """What networks are fitted to: images (m, C, H, W) and labels (m, K), with mirror images where they belong."""
        if not self.settings.mirror:
            return self.images, self.labels
        return mirrored(self.images), self.labels.repeat(2, 1)

    def real_batch(self, turn: int) -> tuple[Tensor, Tensor]:
        """Real images (B, C, H, W) and observed labels (B,): reshuffled passes without replacement."""
        index = self.batches(0, turn).to(self.device)
        return self.real[index], self.targets[index]

    def quadratic(self, base: Tensor) -> Support:
        """The inner problem at the weights `base` (P,) on the present support."""
        found = Support(self.network, base, self.support()[0], self.ridge, self.rows)
        self.jittered += found.jittered
        return found

    def begin(self) -> None:
        """Choose the learning rates that are not given, on the initial set with a network outside the pool.

        That of the Hessian solver is tried on the gradient of one real batch.
        """
        settings, rates = self.settings, self.rates
        base = self.network.initialise(generator(self.seed, "tuning")).to(self.device)
        support, labels = self.quadratic(base), self.support()[1]
        rates.tune("inner", lambda lr: rcig_solve.inner(support, labels, lr, settings.inner_steps).losses)

        @functools.cache
        def gradient() -> Tensor:
            tangent = rcig_solve.inner(support, labels, rates["inner"], settings.inner_steps).tangent
            given = self.log_temperature, *self.real_batch(0), settings.margin
            return rcig_meta.outer(support, labels, tangent, *given).tangent

        def residuals(lr: float) -> Tensor:
            kernel = settings.final_kernel
            return rcig_solve.inverse_hessian(support, gradient(), lr, settings.hessian_steps, kernel=kernel)[1]

        rates.tune("hessian", residuals)

    def iterate(self, iteration: int) -> None:
        """One update of everything, in place. Raises `training.NotFinite` naming what is not finite."""
        settings = self.settings
        source = generator(self.seed, "rcig", iteration)
        model = int(torch.randint(len(self.pool), (), generator=source))
        steps = int(torch.randint(1, settings.pool_steps + 1, (), generator=source))
        variables = {name: getattr(self, name) for name in _VARIABLES}
        loop.require_finite("RCIG", self._where(iteration), **variables, network=self.pool.base[model])
        labels = self.support()[1]
        tangent, losses, support = self._solve_inner(model, labels, source)
        self.rates.note("inner", iteration, losses, adapt=True)
        direct = self._direct(support, labels, tangent, iteration, source)
        direction, residuals = self._solve_hessian(support, direct.tangent, source)
        self.rates.note("hessian", iteration, residuals, settings.adapt_hessian)
        implicit = self._implicit(support, labels, tangent, direction, source)
        loop.require_finite(
            "RCIG",
            self._where(iteration),
            inner_loss=losses,
            outer_loss=direct.loss,
            direct_gradient=direct.images,
            hessian_residual=residuals,
            implicit_gradient=implicit[0],
        )
        self._update(direct, implicit, iteration)
        self.pool.train(model, *self.support(), steps, source)

    def _chosen(self, size: int | None, of: int, source: torch.Generator) -> Rows:
        """For every step or call (of,) with `size` fresh random ones; None where every row has a gradient."""
        if not self.settings.subsampled or size is None or size >= of:
            return EVERY_ROW
        every = torch.arange(of)
        draws = (torch.randperm(of, generator=source)[:size] for _ in itertools.count())
        return (torch.isin(every, drawn).to(self.device) for drawn in draws)

    def _solve_inner(self, model: int, labels: Tensor, source: torch.Generator) -> Solution:
        settings, pool = self.settings, self.pool
        support = self.quadratic(pool.base[model].clone())
        if settings.solver == "cg":
            return rcig_solve.inner_by_cg(support, labels, settings.inner_steps)
        chosen = self._chosen(settings.inner_rows, len(labels), source)
        quirks = {}
        if settings.published_quirks:
            drifting = pool.base[model].clone()
            optimiser = pool.adam(model, drifting, copied=True)
            drifting.grad = torch.zeros_like(drifting)

            def drift() -> Support:
                optimiser.step()
                return self.quadratic(drifting.clone())

            quirks = {"drift": drift, "count": int(pool.ages[model]), "ascend_kernel": True}
        return rcig_solve.inner(support, labels, self.rates["inner"], settings.inner_steps, chosen, **quirks)

    def _solve_hessian(self, support: Support, gradient: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
        settings = self.settings
        steps, kernel = settings.hessian_steps, settings.final_kernel
        if settings.solver == "cg":
            return rcig_solve.inverse_hessian_by_cg(support, gradient, steps, kernel)
        chosen = self._chosen(settings.hessian_rows, len(support.images), source)
        return rcig_solve.inverse_hessian(support, gradient, self.rates["hessian"], steps, chosen, kernel)

    @property
    def _repeats(self) -> int:
        return self.settings.repeats if self.settings.subsampled else 1

    def _direct(
        self, support: Support, labels: Tensor, tangent: Tensor, iteration: int, source: torch.Generator
    ) -> Direct:
        settings = self.settings
        real, targets = self.real_batch(iteration)
        given = support, labels, tangent, self.log_temperature, real, targets, settings.margin
        rows = self._chosen(settings.direct_rows, len(labels), source)
        real_rows = self._chosen(settings.real_rows, len(real), source)
        found = [rcig_meta.outer(*given, next(rows), next(real_rows)) for _ in range(self._repeats)]
        return Direct(*(_mean(parts) for parts in zip(*found, strict=True)))

    def _implicit(
        self, support: Support, labels: Tensor, tangent: Tensor, direction: Tensor, source: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        rows = self._chosen(self.settings.implicit_rows, len(labels), source)
        given = support, labels, tangent, direction
        found = [rcig_meta.implicit(*given, next(rows)) for _ in range(self._repeats)]
        return tuple(_mean(parts) for parts in zip(*found, strict=True))

    def _update(self, direct: Direct, implicit: tuple[Tensor, Tensor], iteration: int) -> None:
        gradients = {"log_temperature": direct.log_temperature}
        for name, curve, one, other in (
            ("images", "image_ratios", direct.images, implicit[0]),
            ("labels", "label_ratios", direct.labels, implicit[1]),
        ):
            if self.settings.mirror:
                one, other = (fold_mirrored(part) if name == "images" else sum(part.chunk(2)) for part in (one, other))
            self.curves[curve][iteration] = float((other.norm() / one.norm()).nan_to_num())
            gradients[name] = one + rcig_meta.clip(one, other)
        if not self.settings.learn_labels:
            del gradients["labels"]
        self.count += 1
        for name, gradient in gradients.items():
            self.optimisers[name].step(gradient, int(self.count))
        for average in self.averages.values():
            average.step()
        self.curves["losses"][iteration] = float(direct.loss)
        self.curves["accuracies"][iteration] = float(direct.accuracy)
        loop.require_finite("RCIG", self._where(iteration), **{name: getattr(self, name) for name in _VARIABLES})

    def _where(self, iteration: int) -> str:
        return f"iteration {iteration} of {self.settings.iterations}"

    def product(self) -> dict[str, Tensor]:
        """The averages of images, labels and log temperature, on the CPU: what a checkpoint is."""
        return {name: average.value(int(self.count)).cpu() for name, average in self.averages.items()}

    def report(self, iteration: int) -> dict[str, float | list[float]]:
        """What a record says of the first `iteration` iterations: curves thinned to at most 50 points, and counts.

        Accuracies are on real batches with observed labels, so nothing may be chosen by them.
        """
        every = max(1, iteration // 50)
        curves = {
            name: [float(f"{one:.6g}") for one in curve[:iteration:every].tolist()]
            for name, curve in self.curves.items()
        }
        return (
            curves | self.rates.report(iteration) | {"jittered": int(self.jittered), "wrong_labels": self.wrong_labels}
        )

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs."""
        named = {name: getattr(self, name) for name in (*_VARIABLES, "count", "jittered")} | self.curves
        for name, optimiser in self.optimisers.items():
            named |= {f"mean.{name}": optimiser.mean, f"square.{name}": optimiser.square}
            named[f"average.{name}"] = self.averages[name].hidden
        return named | self.rates.tensors() | self.pool.tensors()

    def load(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


def _mean(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)


def checkpoints(settings: Settings) -> list[int]:
    """The iterations before which `distil` yields, ascending: always the first and the last."""
    return loop.checkpoints(settings.iterations, (0.0, *settings.evaluate_at))


def distil(run: Rcig, progress: training.Progress | None = None) -> Iterator[int]:
    """Yield the iteration at every checkpoint of `run`, whose `product()` is then that before the iteration.

    A run that resumes yields the checkpoints that are still to come. Raises `training.NotFinite`.
    """
    return loop.follow(run, checkpoints(run.settings), progress)
