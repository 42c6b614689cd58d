"""What denoising a reader's own images found, to look at and to save."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ddlnl.distilled import DistilledSet
from ddlnl.files import replacing
from ddlnl.label_errors import Suspicions
from ddlnl.own_images import OwnImages
from ddlnl.places import path_of


@dataclass(frozen=True, eq=False)
class Report:
    """What `ddlnl.denoise` found.

    images: what was read. small: `ipc` distilled images per class, to train on. found: what students think of every
    training label. accuracies: of students of `small` on the test images, as fractions of 1; empty without such images.
    settings: how it was made.
    """

    images: OwnImages
    small: DistilledSet
    found: Suspicions
    accuracies: list[float]
    settings: dict[str, object]

    @property
    def suspects(self) -> pd.DataFrame:
        """The suspected images, most doubtful first.

        Columns: index and name of the image, given and suggested label, score: the probability that the given one is
        wrong.
        """
        found = self.found
        return self._rows(found.suspected).assign(suggested=self._names(found.corrected[found.suspected]))

    @property
    def labels(self) -> pd.DataFrame:
        """Every training image in its order with the columns of `suspects`, and `corrected` in place of `suggested`:
        the suggested label of a suspected image, the given one of any other."""
        every = np.arange(len(self.images.train))
        return self._rows(every).assign(corrected=self._names(self.found.corrected))

    @property
    def transition(self) -> pd.DataFrame:
        """Estimated P(given label | true class): rows true, columns given, each row sums to one."""
        names = list(self.images.train.class_names)
        return pd.DataFrame(self.found.transition, pd.Index(names, name="true class"), names)

    def summary(self) -> list[str]:
        """The result in sentences."""
        count, train = len(self.found.suspected), self.images.train
        lines = [self.images.about] if self.images.about else []
        lines.append(
            f"{count} of {len(train)} labels ({count / len(train):.1%}) are suspected errors; by the fitted noise, "
            f"{float((1 - self.found.quality).mean()):.1%} of all labels are wrong"
            + (f", and {self.found.expected_precision:.1%} of the suspected ones." if count else ".")
        )
        if self.accuracies:
            mean, students = 100 * float(np.mean(self.accuracies)), len(self.accuracies)
            lines.append(
                f"Trained on the {len(self.small)} distilled images, students reach {mean:.1f} % on the "
                f"{len(self.images.test)} test images (mean of {students})."
            )
        if train.noise != "clean":
            truth = self.against(train.clean)
            lines.append(
                f"The true labels are known here: {truth['precision']:.1%} of the suspected labels are wrong, and "
                f"{truth['recall']:.1%} of the wrong ones are suspected; correcting them takes the wrong labels from "
                f"{truth['wrong_before']:.1%} to {truth['wrong_after']:.1%}."
            )
        return lines

    def against(self, clean: np.ndarray) -> dict[str, float]:
        """How right the suspicions are where the true labels (N,) int64 are known, as shares of 1.

        precision, recall: of the suspected images. wrong_before, wrong_after: labels that are wrong as given, and as
        corrected.
        """
        given, suspected = self.found.given, self.found.suspected
        wrong = given != clean
        hits = int(wrong[suspected].sum())
        return {
            "precision": hits / max(len(suspected), 1),
            "recall": hits / max(int(wrong.sum()), 1),
            "wrong_before": float(wrong.mean()),
            "wrong_after": float((self.found.corrected != clean).mean()),
        }

    def save(self, folder: str | Path, comparison: pd.DataFrame | None = None) -> list[Path]:
        """Write the distilled set, the tables as CSV and the settings as JSON to a folder; returns the paths.

        comparison: another table, that of `ddlnl.cleaning.beside`.
        """
        place = path_of(folder, "folder")
        tables = {"suspects": self.suspects, "labels": self.labels, "transition": self.transition.reset_index()}
        if comparison is not None:
            tables["comparison"] = comparison.round(3)
        self.small.save(place / "distilled.safetensors")
        for name, table in tables.items():
            _write(place / f"{name}.csv", table.to_csv(index=False, float_format="%.6f"))
        facts = {"summary": self.summary(), "accuracies": self.accuracies, "settings": self.settings}
        _write(place / "report.json", json.dumps(facts, indent=1))
        return [place / name for name in ("distilled.safetensors", *(f"{one}.csv" for one in tables), "report.json")]

    def _rows(self, index: np.ndarray) -> pd.DataFrame:
        names = [self.images.names[place] for place in index]
        given = self._names(self.found.given[index])
        return pd.DataFrame({"index": index, "name": names, "given": given, "score": 1 - self.found.quality[index]})

    def _names(self, labels: Iterable[int]) -> list[str]:
        return [self.images.train.class_names[label] for label in labels]


def _write(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # a file's name as it is, whatever its encoding
