"""What the labels of distilled sets carry: how soft they are, and whether their wrong part goes where the noise goes.

The label mass S (K, K) of a distilled set has as row c the mean label of its images of class c. An image's class is the
observed label it was chosen or made for; the columns are labels too, and soft ones come from experts that learned from
observed labels. So row c estimates P(observed label j | image), averaged over the images of class c, and what it is to
be compared with depends on what these images show:

* T, P(observed j | clean c), the transition matrix: the images of class c show class c, and their labels tell how such
  images were labelled. The noise is in the labels only.
* Q T with Q = P(clean i | observed c), by Bayes' rule on the same training images: the images of class c are drawn at
  random among those with the observed label c, and their labels tell how such images were labelled.
* The identity: no noise is left in the labels. Hard labels are that always, whatever the images show.

Q alone is about clean labels, a student never sees those, so it is no reference for S. T is the first one to look at:
DATM begins with images that an expert predicts as their observed label, and while a class keeps more of its images than
are flipped to any other, those are mostly images of that class. Where a flip is more frequent than the class itself
(asymmetric noise above 0.5), experts predict the flipped label, the images of class c may show what is flipped into c,
and no reference holds row by row; that is what the pictures are for.

RCIG's labels are free real numbers that students regress on with squared error. They begin as one-hot minus 1 / K and
nothing fixes their scale afterwards: the loss that made them reads them through a learned temperature, a student
predicts the largest entry. So they have no mass and no entropy, and none is computed. What can be said of any label is
which entry is the largest, and which is the largest of the others; matrices show the numbers as they are, beside
T - 1 / K, which is the least-squares target for images whose labels were drawn from T.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import display
from scipy import special, stats

from ddlnl import noise, study
from ddlnl.cells import Cell, prepare
from ddlnl.claims import LEVEL
from ddlnl.distilled import DistilledSet
from ddlnl.errors import InputError

CELL = ["dataset", "noise", "method", "ipc", "seed"]
_NEGLIGIBLE = 1e-9  # wrong label mass below which there is nothing to divide


@dataclass(frozen=True)
class Outcome:
    """What a finished cell saw and made: `confusion` (K, K) counts its training images by clean (row) and observed
    class; `small` is the distilled set and `initial` what it was before the first update, None where none is stored."""

    cell: Cell
    confusion: np.ndarray
    small: DistilledSet
    initial: DistilledSet | None = None

    @property
    def transition(self) -> np.ndarray:
        """T (K, K), realised on the training images: rows clean, columns observed; the row of an empty class is 0."""
        return _rows_to_one(self.confusion)

    @property
    def random(self) -> np.ndarray:
        """Q T (K, K): the label mass of random images of each observed class under perfect experts."""
        return _rows_to_one(self.confusion.T) @ self.transition

    @property
    def realised_rate(self) -> float:
        """The share of the training images whose observed label is wrong."""
        return float(1 - np.trace(self.confusion) / self.confusion.sum())

    @property
    def flips(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes that noise with a structure flips, and to which class each of them goes most often; else nothing.

        Clean labels and symmetric noise have no structure, so what they flip to most often is chance.
        """
        away = self.transition * (1 - np.eye(len(self.transition)))
        structured = noise.parse(self.cell.noise).kind not in ("clean", "symmetric")
        sources = np.flatnonzero(away.sum(1) * structured)
        return sources, away[sources].argmax(1)


def outcomes(
    cells: Iterable[Cell], store_dir: str | Path | None = None, data_dir: str | Path | None = None
) -> list[Outcome]:
    """Read what finished cells made; raises `InputError` where a set is not in the store (see `study.distilled`)."""
    return [
        Outcome(
            cell,
            noise.confusion(prepare(cell, data_dir).train),
            study.distilled(cell, store_dir, data_dir),
            study.initial(cell, store_dir, data_dir),
        )
        for cell in cells
    ]


def transitions(cells: Iterable[Cell], data_dir: str | Path | None = None) -> dict[tuple[str, str, int], np.ndarray]:
    """The transition matrix that each noise has on its training images, by (dataset, noise, seed)."""
    found = {}
    for cell in cells:
        train = prepare(cell, data_dir).train
        found[train.name, cell.noise, cell.seed] = noise.realised_transition(train)
    return found


def first_seeds(found: Iterable[Outcome]) -> list[list[Outcome]]:
    """The outcomes of each method and IPC, of the first seed of each noise: what one figure shows."""
    groups: dict[tuple, dict[str, Outcome]] = {}
    for one in sorted(found, key=lambda one: one.cell.seed):
        key = (one.cell.dataset, one.cell.method, one.cell.ipc)
        groups.setdefault(key, {}).setdefault(one.cell.noise, one)
    return [list(group.values()) for group in groups.values()]


def mass(small: DistilledSet) -> np.ndarray:
    """S (K, K) float64: row c is the mean label of the images of class c, which come class after class. For free labels
    its entries are any numbers, and no mass.

    Raises `InputError` for a set without the same number of images for every class, as joined sets are.
    """
    labels = small.labels.double().numpy()
    if len(labels) != small.ipc * labels.shape[1]:
        count = f"{len(labels)} images of {labels.shape[1]} classes"
        raise InputError(f"The set has {count} and IPC {small.ipc}; it must hold IPC images of every class in order.")
    return labels.reshape(-1, small.ipc, labels.shape[1]).mean(1)


def numbers(found: Sequence[Outcome]) -> pd.DataFrame:
    """One row per cell: how soft the labels are and where their mass lies.

    With p the label of an image, S the label mass of a set (row c: mean label of the images of class c), T the
    transition matrix realised on its training images and Q = P(clean | observed) on the same images:

    *entropy* is the mean over images of -sum_j p_j log p_j in nats, for T the mean over its rows; *softness* is the
    entropy as a share of log K, where K is the number of classes.

    *own* is the mean of S_cc over all classes: the label mass on the class that the image stands for. For T it is what
    labels have that carry all of the noise on images that show their class, and for Q T on random images.

    *top* is the share of images whose largest label is that of their class; *second*, for noise with a structure, the
    share of the images of flipped classes whose largest other label is that to which their class goes most often (NaN
    where all others are equal). These two also exist for the free labels of RCIG, which have no mass: everything else
    is NaN for them.

    *wrong start* is the share of the real images that the set began as whose observed label was wrong.

    *flip* and *absorbed* are for noise with a structure (asymmetric, human). With F the classes c that it flips and
    f(c) the class to which c goes most often, flip is the mean of S_cf(c) over F, and absorbed is the sum of S_cf(c)
    over F divided by the sum of 1 - S_cc over F: the share of the wrong label mass that lies where the noise put its
    labels. Similar classes share label mass without any noise, so the same entries of the set distilled from clean
    labels with the same seed stand beside it; chance is 1 / (K - 1).

    Returns:
        The columns of the cell, `realised_rate`, `classes` (K), `chance`, `wrong_start`, and for every other number a
        column per set it is taken of: `_learned`, `_initial` (before the first update), `_clean` (the set of clean
        labels), `_transition` (T) and `_random` (Q T). NaN where there is no such set, or nothing to divide (hard
        labels have no wrong mass).
    """
    of_clean = {_without_noise(one.cell): one.small for one in found if one.cell.noise == "clean"}
    return pd.DataFrame([_row(one, of_clean.get(_without_noise(one.cell))) for one in found])


def _without_noise(cell: Cell) -> tuple:
    return cell.dataset, cell.method, cell.ipc, cell.seed, cell.profile, cell.imbalance


def _row(one: Outcome, of_clean: DistilledSet | None) -> dict:
    transition, classes = one.transition, len(one.transition)
    row = {name: getattr(one.cell, name) for name in CELL}
    row |= {"realised_rate": one.realised_rate, "classes": classes, "chance": 1 / (classes - 1)}
    row["wrong_start"] = one.small.meta.get("wrong_labels", np.nan) / len(one.small)
    sets = {"learned": one.small, "initial": one.initial, "clean": of_clean}
    matrices = {
        name: mass(small) if _has_mass(small) else np.full((classes, classes), np.nan) for name, small in sets.items()
    }
    for name, small in sets.items():
        row[f"entropy_{name}"] = _entropy(small)
        row[f"top_{name}"], row[f"second_{name}"] = _largest(small, *one.flips)
    row["entropy_transition"] = special.entr(transition).sum(1).mean()
    row["softness_learned"] = row["entropy_learned"] / np.log(classes)
    for name, matrix in (matrices | {"transition": transition, "random": one.random}).items():
        row[f"own_{name}"] = np.diag(matrix).mean()
        row[f"flip_{name}"], row[f"absorbed_{name}"] = _flipped(matrix, *one.flips)
    return row


def _has_mass(small: DistilledSet | None) -> bool:
    return small is not None and not small.free_labels


def _entropy(small: DistilledSet | None) -> float:
    return special.entr(small.labels.double().numpy()).sum(1).mean() if _has_mass(small) else np.nan


def _largest(small: DistilledSet | None, sources: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """How often the largest label is the own one, and how often the largest other one is the flip of the class."""
    if small is None:
        return np.nan, np.nan
    labels = small.labels.double().numpy()
    own = np.arange(len(labels)) // small.ipc
    top = (labels.argmax(1) == own).mean()
    others = labels.copy()
    others[np.arange(len(labels)), own] = -np.inf
    target = dict(zip(sources, targets, strict=True))
    rows = [row for row in range(len(labels)) if own[row] in target and np.ptp(np.delete(labels[row], own[row])) > 0]
    hits = [others[row].argmax() == target[own[row]] for row in rows]
    return top, float(np.mean(hits)) if hits else np.nan


def _flipped(matrix: np.ndarray, sources: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Mean mass on the flips, and their share of the wrong mass in the rows of `sources`."""
    if not sources.size or np.isnan(matrix).any():
        return np.nan, np.nan
    on_flips = matrix[sources, targets]
    wrong = (matrix * (1 - np.eye(len(matrix))))[sources].sum()
    return on_flips.mean(), on_flips.sum() / wrong if wrong > _NEGLIGIBLE else np.nan


def _rows_to_one(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def averages(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of what `numbers` gives, one row per dataset, method, IPC and noise, noises as they come.

    `seeds` counts them; `error_<number>` is half the 95 % t interval of the learned number, NaN with one seed.
    """
    groups = table.groupby([name for name in CELL if name != "seed"], sort=False)
    means, seeds = groups.mean(numeric_only=True).drop(columns="seed"), groups["seed"].count()
    quantile = stats.t.ppf((1 + LEVEL) / 2, (seeds - 1).clip(lower=1))
    for number in ("entropy", "own", "flip", "absorbed", "top", "second"):
        means[f"error_{number}"] = quantile * groups[f"{number}_learned"].std() / np.sqrt(seeds)
    return means.assign(seeds=seeds).reset_index().sort_values(["dataset", "method", "ipc"], kind="stable")


def readable(means: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two tables of texts: all conditions, and those whose noise has a structure."""
    rows = means.assign(noise=means["noise"].str.replace(":", " "))
    general = _texts(rows) | {
        "wrong start images": rows["wrong_start"].map(lambda share: "none" if np.isnan(share) else _percent(share)),
        "largest label is the own": _with_error(rows, "top"),
        "entropy (nats)": _with_error(rows, "entropy"),
        "share of log K": _plain(rows["softness_learned"]),
        "entropy, at the start": _plain(rows["entropy_initial"]),
        "entropy, T": _plain(rows["entropy_transition"]),
        "mass on the own class": _with_error(rows, "own"),
        "own, at the start": _plain(rows["own_initial"]),
        "own, T": _plain(rows["own_transition"]),
        "own, Q T": _plain(rows["own_random"]),
    }
    rows = rows[rows["flip_transition"].notna()]
    structured = _texts(rows) | {
        "second label is the flip": _with_error(rows, "second"),
        "second, clean labels": _plain(rows["second_clean"]),
        "mass on the flip": _with_error(rows, "flip"),
        "flip, at the start": _plain(rows["flip_initial"]),
        "flip, clean labels": _plain(rows["flip_clean"]),
        "flip, T": _plain(rows["flip_transition"]),
        "absorbed": _with_error(rows, "absorbed"),
        "absorbed, at the start": _plain(rows["absorbed_initial"]),
        "absorbed, clean labels": _plain(rows["absorbed_clean"]),
        "absorbed, T": _plain(rows["absorbed_transition"]),
        "chance": _plain(rows["chance"]),
    }
    return pd.DataFrame(general), pd.DataFrame(structured)


def _texts(rows: pd.DataFrame) -> dict[str, pd.Series]:
    realised = rows["realised_rate"].map(_percent)
    return {"method": rows["method"], "IPC": rows["ipc"], "noise": rows["noise"], "wrong labels": realised}


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(column: pd.Series) -> pd.Series:
    return column.map(lambda value: "none" if np.isnan(value) else f"{value:.3f}")


def _with_error(rows: pd.DataFrame, number: str) -> pd.Series:
    errors = rows[f"error_{number}"].map(lambda value: "" if np.isnan(value) else f" ± {value:.3f}")
    return _plain(rows[f"{number}_learned"]) + errors


def show(found: Sequence[Outcome]) -> None:
    """Display the numbers, averaged over seeds, with their formulas."""
    means = averages(numbers(found))
    tables = [table for table in readable(means) if len(table)]
    seeds = f"Means over {means['seeds'].max()} seeds, ± half the 95 % t interval" if means["seeds"].max() > 1 else ""
    note = seeds or "One seed: the spread between runs is not covered"
    paragraphs = inspect.getdoc(numbers).split("Returns:")[0].strip().split("\n\n")[1:]
    formulas = "".join(f"<p>{html.escape(' '.join(text.split()))}</p>" for text in paragraphs)
    body = "".join(table.to_html(index=False, border=0) for table in tables)
    folded = f"<details><summary>How the numbers are computed</summary>{formulas}</details>"
    text = "\n\n".join(table.to_string(index=False) for table in tables)
    display({"text/plain": text, "text/html": f"<p>{note}.</p>{body}{folded}"}, raw=True)
