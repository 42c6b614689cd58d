"""Tables to verdicts: each claim of the study (arXiv 2411.11924) as a rule that is computed, never as prose.

A claim is a function from the table of records to rows that each have an effect, its interval, the number of units, the
rule it follows and a verdict: *holds*, *does not hold* or *not enough data*. `show` displays the rows of any of them.

    C1  `symmetric_noise`   a small distilled set beats the whole noisy set; from which rate on: `crossover`
    C2  `shrinks`           it gains less where wrong labels have a pattern; does it gain at all: `asymmetric_noise`
        `absorbed`          and does the pattern of the wrong labels come back in what students predict?
    C3  `natural_noise`     the same under labels of people, and
        `trend`             a gain where they are often wrong, a loss where they seldom are
    C4  `tails`             are classes with few images lost more than the others?
    C5  `costs`             is training on the small set cheaper, and after how many trainings does distilling pay?
    C6  `privacy`           do students of the small set give away less of who was in the training set?

`versus` compares with any other reference too, such as a control; `matching` compares a distilled set with the set that
it began as.
"""

from ddlnl.claims._absorption import absorbed, rates_of
from ddlnl.claims._comparison import asymmetric_noise, crossover, natural_noise, symmetric_noise, versus
from ddlnl.claims._costs import costs
from ddlnl.claims._matching import matching
from ddlnl.claims._privacy import privacy
from ddlnl.claims._rules import FAILS, HOLDS, LEVEL, OPEN, STUDENTS, distillers, interval, select
from ddlnl.claims._show import MIME, headline, show
from ddlnl.claims._shrinking import shrinks
from ddlnl.claims._tails import tails
from ddlnl.claims._trend import trend
from ddlnl.evaluation import RULES

__all__ = [
    "FAILS",
    "HOLDS",
    "LEVEL",
    "MIME",
    "OPEN",
    "RULES",
    "STUDENTS",
    "absorbed",
    "asymmetric_noise",
    "costs",
    "crossover",
    "distillers",
    "headline",
    "interval",
    "matching",
    "natural_noise",
    "privacy",
    "rates_of",
    "select",
    "show",
    "shrinks",
    "symmetric_noise",
    "tails",
    "trend",
    "versus",
]
