"""The parameters of the notebook on a reader's own images, refused before any work starts where they are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from ddlnl import denoising, evaluation, methods, noise, outputs, parameters
from ddlnl.errors import InputError
from ddlnl.profiles import PROFILES


@dataclass(frozen=True)
class OwnParameters:
    """What the notebook was asked to do; see its parameters cell. data None stands for the embedded example."""

    data: str | None = None
    noise: str | None = None
    images: int | None = None
    method: str = "dance"
    ipc: int = 10
    size: int | None = None
    profile: str = "demo"
    seed: int = 0
    device: str = "auto"
    data_dir: str | None = None
    out_dir: str = "denoised"
    compare: bool = False


OPTIONAL = ("data", "noise", "images", "size", "data_dir")
_EXPECTED = dict.fromkeys(("ipc", "seed", "size", "images"), (int, "a whole number")) | {
    "compare": (bool, "true or false")
}


def check(namespace: Mapping[str, object]) -> OwnParameters:
    """The parameters among a notebook's names (`globals()`).

    Every other plain value counts as a misspelt parameter, as in `parameters.check`. Raises `InputError`, in one
    sentence, on an unknown name, a value of the wrong type, a value that is not allowed, or an `out_dir` that cannot be
    written.
    """
    known = [field.name for field in fields(OwnParameters)]
    parameters.refuse_unknown(namespace, known)
    given = OwnParameters(**{name: namespace[name] for name in known if name in namespace})
    for name, value in asdict(given).items():
        expected = _EXPECTED.get(name, (str, "text"))
        if not (value is None and name in OPTIONAL) and type(value) is not expected[0]:
            raise InputError(f"The parameter {name!r} is {value!r}, and it must be {expected[1]}.")
    methods.check(given.profile, PROFILES, "profile")
    methods.check(given.method, denoising.ALLOWED, "method")
    if given.noise is not None:
        noise.parse(given.noise)
    evaluation.choose_device(given.device)
    outputs.require_folder(given.out_dir)
    return given
