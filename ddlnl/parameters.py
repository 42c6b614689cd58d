"""The parameters of the notebooks, refused before any work starts where they are wrong.

papermill warns about a name that a notebook does not have and goes on, and it passes on text where a number belongs; a
study that ran for hours on a default nobody asked for is worse than a refusal.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from IPython import get_ipython

from ddlnl import datasets, methods
from ddlnl.engines import ENGINES, check_device
from ddlnl.errors import InputError, nearest
from ddlnl.places import path_of
from ddlnl.profiles import PROFILES

PASSED = "ddlnl parameters passed"  # in the notes of a kernel
PLAIN = (type(None), bool, int, float, str, list, dict, datetime.date)  # what a YAML or JSON parameter can be


@dataclass(frozen=True)
class Parameters:
    """What a notebook was asked to do. After `check` nothing is None but the folders, where None means the usual place.

    methods: distillers. rates: noise rates (fractions of the labels). ipc: images per class. seeds: how many seeds.
    device: "auto", "cpu", "cuda" or "cuda:<number>". workers: cells computed side by side. engine: where that happens.
    imbalances: profiles of class sizes (`ddlnl.noise`), records: a folder of records to draw, only in notebooks that
    ask for them.
    """

    profile: str = "demo"
    dataset: str | None = None
    methods: tuple[str, ...] | None = None
    rates: tuple[float, ...] | None = None
    ipc: tuple[int, ...] | None = None
    seeds: int | None = None
    device: str = "auto"
    data_dir: str | None = None
    store_dir: str | None = None
    workers: int = 1
    engine: str = "local"
    imbalances: tuple[str, ...] = ("none",)
    records: str | None = None


OF_SOME = ("imbalances", "records")
OF_FIGURES = tuple(field.name for field in fields(Parameters) if field.name not in OF_SOME)


def check(namespace: Mapping[str, object], *more: str, only: Sequence[str] = OF_FIGURES) -> Parameters:
    """The parameters among a notebook's names (`globals()`), with the profile's values in place of None.

    Every other plain value counts as a misspelt parameter, so a notebook calls this before it assigns anything else,
    and says which it has: those of all figures, or `only` some, and `more` of `OF_SOME`. The others keep their default.
    Raises `InputError`, in one sentence, on an unknown name, a value of the wrong type, NaN, or a value that is not
    allowed.
    """
    known = [*only, *more]
    refuse_unknown(namespace, known)
    given = Parameters(**{name: namespace[name] for name in known if name in namespace})
    _text("profile", given.profile)
    methods.check(given.profile, PROFILES, "profile")
    profile = PROFILES[given.profile]
    for name in ("device", "engine"):
        _text(name, getattr(given, name))
    for name in ("data_dir", "store_dir", "records"):
        if getattr(given, name) is not None:
            path_of(_text(name, getattr(given, name)), f"parameter {name!r}")
    methods.check(given.engine, ENGINES, "engine")
    check_device(given.device, given.engine)
    return replace(
        given,
        dataset=_dataset(profile.dataset if given.dataset is None else given.dataset),
        methods=_methods(methods.DISTILLERS if given.methods is None else given.methods),
        rates=_rates(profile.rates if given.rates is None else given.rates),
        ipc=_ipc(profile.ipcs if given.ipc is None else given.ipc),
        seeds=_whole("seeds", profile.seeds if given.seeds is None else given.seeds),
        workers=_whole("workers", given.workers),
        imbalances=tuple(dict.fromkeys(_text("imbalances", one) for one in _list("imbalances", given.imbalances))),
    )


def refuse_unknown(namespace: Mapping[str, object], known: list[str]) -> None:
    """Raise `InputError` where a notebook's names hold a plain value that is none of the `known` parameters.

    In a kernel in which a check has passed before, later cells have left plain values too. Then only the names count
    that were assigned by the last cell which also assigned a parameter, so that parameters can be changed and all cells
    run again.
    """
    shell = get_ipython()
    hidden = () if shell is None else shell.user_ns_hidden
    again = None if shell is None or not shell.meta.get(PASSED) else _last_given(shell.user_ns["In"][:-1], known)
    for name, value in namespace.items():
        if isinstance(value, PLAIN) and name not in known and name not in hidden and not name.startswith("_"):
            if again is not None and name not in again:
                continue
            allowed = ", ".join(known)
            raise InputError(
                f"The parameter {name!r} is unknown; the parameters of this notebook are {allowed}."
                f"{nearest(name, known)}"
            )
    if shell is not None:
        shell.meta[PASSED] = True


def _last_given(cells: Sequence[str], known: Sequence[str]) -> set[str]:
    """The names that the last of these cells assigns which assigns a known one."""
    for source in reversed(cells):
        with contextlib.suppress(SyntaxError):  # a cell with a command of IPython
            names = {one.id for one in ast.walk(ast.parse(source)) if isinstance(getattr(one, "ctx", None), ast.Store)}
            if names & set(known):
                return names
    return set()


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"The parameter {name!r} is {value!r}, and it must be text.")
    return value


def _whole(name: str, value: object) -> int:
    methods.check_count(value, f"parameter {name!r}")
    return value


def _list(name: str, value: object) -> Sequence:
    if not isinstance(value, (list, tuple)) or not value:
        how = f"papermill takes it as -y '{name}: [...]'"
        raise InputError(f"The parameter {name!r} is {value!r}, and it must be a list with at least one entry ({how}).")
    return value


def _dataset(name: object) -> str:
    if not _text("dataset", name).endswith(".npz"):
        methods.check(name, datasets.NAMES, "dataset")
    elif not path_of(name, "dataset").is_file():
        raise InputError(f"There is no file {name}; a dataset is {', '.join(datasets.NAMES)} or an archive's path.")
    return name


def _methods(names: object) -> tuple[str, ...]:
    for name in _list("methods", names):
        methods.check(name, methods.DISTILLERS, "method")
    return tuple(dict.fromkeys(names))


def _rates(rates: object) -> tuple[float, ...]:
    for rate in _list("rates", rates):
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
            raise InputError(f"The rate {rate!r} in 'rates' is not allowed; a noise rate is a number from 0 to 1.")
    return tuple(dict.fromkeys(float(rate) for rate in rates))


def _ipc(ipc: object) -> tuple[int, ...]:
    """One IPC or a list of them, ascending."""
    many = _list("ipc", ipc) if isinstance(ipc, (list, tuple)) else [ipc]
    return tuple(sorted({_whole("ipc", one) for one in many}))
