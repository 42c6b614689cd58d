"""Claim C3 as a whole: under labels of people, distilling gains where many are wrong and loses where few are."""

from __future__ import annotations

import pandas as pd

from ddlnl.claims._rules import FAILS, HOLDS, OPEN
from ddlnl.evaluation import RULES


def trend(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Claim C3: distilling gains where labels are often wrong and loses where they seldom are; a row per method.

    Of the noises that were run, clean labels not among them, the claim *holds* where the distilled set beats the full
    noisy set under the noise with the most wrong labels and falls behind it under the one with the fewest. It *does not
    hold* where one of the two is the other way round. In all other cases, and with a single noise, there is *not enough
    data*.
    """
    rows = []
    noisy = verdicts[(verdicts["rule"] == RULES[0]) & (verdicts["noise"] != "clean")]
    for (dataset, method), of_method in noisy.groupby(["dataset", "method"]):
        group = of_method.sort_values("rate")
        fewest, most = group.iloc[0], group.iloc[-1]
        if len(group) > 1 and (most["verdict"], fewest["verdict"]) == (HOLDS, FAILS):
            verdict = HOLDS
        elif len(group) > 1 and (most["verdict"] == FAILS or fewest["verdict"] == HOLDS):
            verdict = FAILS
        else:
            verdict = OPEN
        ends = {"few wrong": fewest["noise"], "many wrong": most["noise"]}
        gains = {"gain, few wrong": fewest["difference"], "gain, many wrong": most["difference"]}
        rows.append({"dataset": dataset, "method": method} | ends | gains | {"verdict": verdict})
    columns = ["dataset", "method", "few wrong", "many wrong", "gain, few wrong", "gain, many wrong", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def sentences(found: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) per dataset and method."""
    return [
        (
            row["verdict"],
            f"{row['dataset']}, {row['method']}: {row['gain, few wrong']:+.1f} points against the full noisy set under "
            f"{row['few wrong']}, {row['gain, many wrong']:+.1f} under {row['many wrong']}",
        )
        for _, row in found.iterrows()
    ]


def readable(found: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: the rows as they are."""
    return [found.round(1)]
