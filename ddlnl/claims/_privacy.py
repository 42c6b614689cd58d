"""Claim C6: only synthetic data leaves the house, and it gives away less of who was in the training set."""

from __future__ import annotations

import math

import pandas as pd

from ddlnl.claims._rules import CELL, LEVEL, SEEDS, contrast, counted, decide, distillers
from ddlnl.errors import InputError
from ddlnl.privacy import RATES

STRONGEST = "the strongest"
NAMES = {"auc": "AUC"} | {f"tpr_{rate:g}": f"found at {rate:.1%} false alarms" for rate in RATES}
NEEDED = (*CELL, "attack", *NAMES)
KEYS = ["dataset", "method", "noise", "ipc", "attack"]
COLUMNS = (*KEYS, "measure", "reached", "reached_full", "less", "low", "high", "n", "unit", "rule", "verdict")


def privacy(figures: pd.DataFrame) -> pd.DataFrame:
    """Whether membership in the training set is harder to infer from what a distilled set releases than from a network
    trained on the full noisy set.

    An attack scores images by how likely they seem members. `reached` is its AUC, 0.5 where members and others look
    alike and 1 where each is told from the other; and the share of members that it finds at a rate of 0.1 % and of 1 %
    false alarms, which says whether a few are given away surely. *less* is what the strongest attack reaches on the
    full set minus what an attack reaches on the distilled one, in points (hundredths). "The strongest" is, seed by seed
    and on either side, the largest number over the attacks there are, and the claim is judged by it: an outsider takes
    the attack that works. The full set is attacked through the loss of its network alone, RCIG's sets through their
    images alone, since its students regress on free labels; a maximum over two attacks leans against the claim. That
    attacks fail is no proof: another one may do better.

    The unit is the seed, pairs share it, and the interval is a paired t interval. The claim *holds* where the whole
    interval is above zero, *does not hold* where it is below, and there is *not enough data* otherwise, also with a
    single seed. Each row is a statement by itself.

    Args:
        figures: what `ddlnl.membership.run` returns: one row per cell and attack, method "full" for the reference.

    Returns:
        One row per dataset, method, noise, IPC, attack and measure (a key of `NAMES`) that was reached in some seed.

    Raises:
        InputError: a column is missing, or a cell is there twice with the same attack.
    """
    figures = _checked(figures)
    strongest = figures.groupby(CELL, sort=False)[list(NAMES)].max().reset_index().assign(attack=STRONGEST)
    full = strongest[strongest["method"] == "full"]
    rows = pd.concat([figures, strongest])
    found = []
    for place, released in rows[rows["method"].isin(distillers(rows))].groupby(KEYS[:-1], sort=False):
        theirs = full[(full["dataset"] == place[0]) & (full["noise"] == place[2])]
        for attack, group in released.groupby("attack", sort=False):
            key = dict(zip(KEYS, (*place, attack), strict=True))
            measured = [measure for measure in NAMES if group[measure].notna().any()]
            found += [key | {"measure": measure} | _less(theirs, group, measure) for measure in measured]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _checked(figures: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in NEEDED if name not in figures]
    if missing:
        raise InputError(f"The figures lack {', '.join(missing)}; they need the columns {', '.join(NEEDED)}.")
    if figures.duplicated([*CELL, "attack"]).any():
        raise InputError(
            "The figures hold two rows of one cell and attack; each dataset, noise, method, IPC and seed may be once."
        )
    return figures.astype(dict.fromkeys(NAMES, float))


def _less(full: pd.DataFrame, mine: pd.DataFrame, measure: str) -> dict:
    pair = contrast(*(side.dropna(subset=measure) for side in (full, mine)), measure, None, [LEVEL])
    ((low, high),) = pair["bounds"]
    numbers = {"reached": pair["b"] / 100, "reached_full": pair["a"] / 100, "less": pair["difference"]}
    numbers |= {"low": low, "high": high, "n": pair["n"], "unit": SEEDS, "rule": "last"}
    return numbers | {"verdict": decide(low, high)}


def sentences(verdicts: pd.DataFrame) -> list[tuple[str, str]]:
    """(verdict, sentence) for the strongest attack on every distilled set, by every measure."""
    rows = verdicts[verdicts["attack"] == STRONGEST]
    return [
        (row.verdict, f"{row.dataset}, {row.method}, IPC {row.ipc}, {row.noise.replace(':', ' ')}: {_told(row)}")
        for row in rows.itertuples()
    ]


def _told(row: tuple) -> str:
    if math.isnan(row.less):
        return "there is no attack on the full set to compare with"
    if row.measure == "auc":
        reached = f"has an AUC of {row.reached:.3f} against {row.reached_full:.3f}"
    else:
        reached = f"is right on {row.reached:.1%} of the members against {row.reached_full:.1%}"
        reached += NAMES[row.measure].removeprefix("found")
    bounds = "unknown" if math.isnan(row.low) else f"[{row.low:+.1f}, {row.high:+.1f}]"
    how = "more" if row.less < 0 else "less"
    return (
        f"the strongest attack {reached} on the full noisy set, {abs(row.less):.1f} points {how}, 95 % interval "
        f"{bounds}, n = {counted(row.n, 'seed')}"
    )


def readable(verdicts: pd.DataFrame) -> list[pd.DataFrame]:
    """For reading: a row per attack on a distilled set, a column per measure."""
    rows = []
    for key, group in verdicts.groupby(KEYS, sort=False):
        told = {NAMES[row.measure]: _cell(row) for row in group.itertuples()}
        rows.append(dict(zip(KEYS, key, strict=True)) | dict.fromkeys(NAMES.values(), "too few others") | told)
    return [pd.DataFrame(rows)]


def _cell(row: tuple) -> str:
    bounds = "unknown" if math.isnan(row.low) else f"{row.low:.1f} to {row.high:.1f}"
    sides = [f"{side:.3f}" if row.measure == "auc" else f"{side:.1%}" for side in (row.reached, row.reached_full)]
    return f"{sides[0]}, full set {sides[1]}: {row.less:.1f} less ({bounds}), {row.verdict}"
