"""What training students gives: their accuracies along the way."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Curves:
    """Accuracies of S students at P test points: `test` and `validation` are S lists of P fractions of 1.

    `epochs` names the test points, counted from 1: epochs, and steps where a protocol counts in steps (RCIG's).
    """

    epochs: list[int]
    test: list[list[float]]
    validation: list[list[float]]
