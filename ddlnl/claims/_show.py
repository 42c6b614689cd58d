"""The verdicts of any claim, displayed in a notebook and stored in it for `ddlnl.export` and `ddlnl.gallery`."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable

import pandas as pd
from IPython.display import display

from ddlnl.claims import _absorption, _comparison, _costs, _matching, _privacy, _shrinking, _tails, _trend

MIME = "application/vnd.ddlnl.claims+json"
OF_CLAIM = {
    _comparison.versus: (_comparison.sentences, _comparison.readable),
    _trend.trend: (_trend.sentences, _trend.readable),
    _shrinking.shrinks: (_shrinking.sentences, _shrinking.readable),
    _absorption.absorbed: (_absorption.sentences, _absorption.readable),
    _tails.tails: (_tails.sentences, _tails.readable),
    _matching.matching: (_matching.sentences, _matching.readable),
    _costs.costs: (_costs.sentences, _costs.readable),
    _privacy.privacy: (_privacy.sentences, _privacy.readable),
}


def headline(verdicts: pd.DataFrame, claim: Callable = _comparison.versus) -> str:
    """The result of a claim, one sentence a line."""
    return "\n".join(sentence for _, sentence in OF_CLAIM[claim][0](verdicts))


def show(verdicts: pd.DataFrame, claim: Callable = _comparison.versus) -> None:
    """Display the verdicts of a claim and its rule, and store them in the notebook.

    claim: the function that made them; `symmetric_noise`, `asymmetric_noise` and `natural_noise` are `versus`. A
    sentence that answers a question without deciding a claim has the verdict None.
    """
    say, tabulate = OF_CLAIM[claim]
    found, line = say(verdicts), headline(verdicts, claim)
    head = "".join(f"<p><strong>{html.escape(sentence)}</strong></p>" for _, sentence in found)
    tables = "".join(one.to_html(index=False, border=0, na_rep="none") for one in tabulate(verdicts) if len(one))
    paragraphs = inspect.getdoc(claim).split("Args:")[0].strip().split("\n\n")
    rule = "".join(f"<p>{html.escape(' '.join(text.split()))}</p>" for text in paragraphs)
    bundle = {
        "text/plain": line,
        "text/html": f"{head}{tables}<details><summary>How the verdict is computed</summary>{rule}</details>",
        MIME: {
            "headline": line,
            "sentences": [{"verdict": verdict, "text": sentence} for verdict, sentence in found],
            "verdicts": _json(verdicts),
        },
    }
    display(bundle, raw=True)


def _json(verdicts: pd.DataFrame) -> list[dict]:
    """Rows that strict JSON can hold: what is not a finite number is None."""
    finite = verdicts.replace([float("inf"), float("-inf")], float("nan"))
    return finite.astype(object).where(finite.notna(), None).to_dict("records")
