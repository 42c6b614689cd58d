"""The command line of the benchmark: every row as soon as it is measured, then the machine."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from ddlnl import bench
from ddlnl.errors import InputError

WIDTHS = (31, 13, 9, 6, 6, 6, 6, 7, 10, 7)  # of the columns, in characters


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; `arguments` are those of the command line unless given."""
    parser = argparse.ArgumentParser("python -m ddlnl.bench", description=bench.__doc__.split(":")[0] + ".")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="rows whose names start so (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each side per row (default: 7)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as many as it takes)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    options = parser.parse_args(arguments)
    print(_line(bench.SHOWN))
    try:
        table = bench.run(**vars(options), report=lambda row: print(_line(bench.readable(row).iloc[0]), flush=True))
    except InputError as error:
        parser.exit(2, f"{error}\n")
    print(f"\n{bench.headline(table)}.\n")
    print("\n".join(f"{fact}: {text}" for fact, text in table.attrs.items()))


def _line(texts: Iterable[str]) -> str:
    first, *others = (text.rjust(width) for text, width in zip(texts, WIDTHS, strict=True))
    return "  ".join([first.strip().ljust(WIDTHS[0]), *others])


if __name__ == "__main__":
    main()
