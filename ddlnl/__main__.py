"""The command line: `study` computes the cells of a grid, `bench` measures the compiled core, `doctor` examines the
installation, `data ...` brings data to where the package looks for it and reads released distilled sets, `export` and
`summary` read notebooks and `gallery` runs them, `denoise` looks for label errors in images of your own.

What cannot be done, or not be finished, is said in a sentence on standard error, and the exit code is 2 (130 after
Ctrl-C). A traceback is a mistake in the code.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence

from ddlnl import datasets, denoise, doctor, engines, export, human_labels, methods, profiles, released, sources, study
from ddlnl.bench import __main__ as bench
from ddlnl.errors import InputError, Unfinished
from ddlnl.outputs import require_folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; `arguments` are those of the command line unless given."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (InputError, Unfinished, OSError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "Stopped. What was finished is kept: the same command goes on from there.\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m ddlnl", description="What the package does from the command line.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_study(commands)
    speed = commands.add_parser("bench", help="measure the compiled core against plain PyTorch", add_help=False)
    speed.add_argument("options", nargs=argparse.REMAINDER)
    speed.set_defaults(run=lambda options: bench.main(options.options))
    health = commands.add_parser("doctor", help="what is installed and found, and what to do about each problem")
    _add_places(health)
    health.set_defaults(run=_examine)
    data = commands.add_parser("data", help="download and import datasets and human labels")
    _add_data_commands(data.add_subparsers(required=True, metavar="COMMAND"))
    page = commands.add_parser("export", help="write an executed notebook as one HTML page that works offline")
    page.add_argument("notebook", metavar="NOTEBOOK")
    page.add_argument("html", metavar="HTML")
    page.set_defaults(run=lambda options: export.export(options.notebook, options.html))
    pages = commands.add_parser("gallery", help="run every notebook and write its page, its figures and an index")
    pages.add_argument("folder", metavar="OUT_DIR")
    pages.add_argument("--notebooks", metavar="FOLDER", help="where the notebooks are (default: those of the checkout)")
    pages.add_argument("--store-dir", metavar="S", help="folder of results (default: $DDLNL_STORE, else the user's)")
    pages.add_argument("--workers", metavar="N", type=int, default=1, help="cells computed side by side")
    pages.add_argument("--records", metavar="R", help="draw what the records of this folder have, and compute nothing")
    pages.add_argument("--profile", metavar="P", help=f"{', '.join(profiles.PROFILES)} (default: demo)")
    pages.set_defaults(run=_gallery)
    line = commands.add_parser("summary", help="print the result of an executed notebook")
    line.add_argument("notebook", metavar="NOTEBOOK")
    line.set_defaults(run=lambda options: print(export.summary(options.notebook)))
    _add_denoise(commands)
    return parser


def _add_places(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-dir", metavar="D", help="where archives are (default: $DDLNL_DATA, else user's cache)")
    command.add_argument("--store-dir", metavar="D", help="where records go (default: $DDLNL_STORE, else user's data)")


def _add_study(commands: argparse._SubParsersAction) -> None:
    purpose = "compute the cells of a grid, as a notebook would; finished ones come from the store"
    command = commands.add_parser("study", help=purpose, description=purpose)
    grid = command.add_argument_group("the grid; what is not given comes from the profile")
    grid.add_argument("--profile", default="demo", help=f"{', '.join(profiles.PROFILES)} (default: %(default)s)")
    grid.add_argument("--dataset", help=f"{', '.join(datasets.NAMES)}, or a path to an .npz archive")
    usual = methods.DISTILLERS + methods.CONTROLS
    told = f"{', '.join(methods.METHODS)} (default: {', '.join(usual)})"
    grid.add_argument("--methods", nargs="+", default=usual, metavar="M", help=told)
    grid.add_argument("--rates", nargs="+", type=float, metavar="R", help="rates of symmetric noise")
    grid.add_argument("--noises", nargs="+", metavar="N", help="noises by name, such as asymmetric:0.4 human:worst")
    grid.add_argument("--imbalance", default="none", help="none, longtail:F or step:F (default: %(default)s)")
    grid.add_argument("--ipcs", nargs="+", type=int, metavar="I", help="distilled images per class")
    grid.add_argument("--seeds", type=int, help="how many seeds")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: %(default)s)")
    command.add_argument("--workers", type=int, default=1, help="processes or jobs side by side (default: %(default)s)")
    command.add_argument("--engine", default="local", help=f"{' or '.join(engines.ENGINES)} (default: %(default)s)")
    _add_places(command)
    command.set_defaults(run=_study)


def _study(options: argparse.Namespace) -> None:
    chosen = {name: getattr(options, name) for name in inspect.signature(study.grid).parameters}
    how = {name: getattr(options, name) for name in ("store_dir", "data_dir", "device", "workers", "engine")}
    table = study.run(study.grid(**chosen), **how)
    shown = ["noise", "imbalance", "method", "ipc", "seed", "accuracy_last", "std_last", "seconds"]
    print(table[shown].to_string(index=False, float_format="{:.3f}".format))


def _examine(options: argparse.Namespace) -> None:
    problems = 0
    for finding in doctor.examine(options.data_dir, options.store_dir):
        print(finding, flush=True)
        problems += bool(finding.advice)
    if problems:
        raise InputError(f"{problems} of these are problems; what to do is said below each.")
    print("Nothing is wrong.")


def _add_data_commands(commands: argparse._SubParsersAction) -> None:
    def add(name: str, run: object, argument: str, meaning: str, purpose: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument(argument.lower(), metavar=argument, help=meaning)
        where = "where archives are, and where a new one goes (default: $DDLNL_DATA, else the user's cache directory)"
        command.add_argument("--data-dir", metavar="D", help=where)
        command.set_defaults(run=run)
        return command

    known = ", ".join(datasets.NAMES)
    add("fetch", _fetch, "NAME", f"{known}, or a path to an .npz archive", "find, else download, and check a dataset")
    layout = "tiny-imagenet-200, which holds train and val"
    add("import-tiny-imagenet", _import_tiny_imagenet, "FOLDER", layout, "make an archive from the published pictures")
    files = "CIFAR-10_human.pt or CIFAR-100_human.pt"
    add("import-cifar-n", _import_cifar_n, "LABEL_FILE", files, "add the CIFAR-N human labels to the archive of CIFAR")
    files = {"rcig": "a flax checkpoint", "datm": "folder of images_best.pt, labels_best.pt and lr_best.pt"}
    for method, meaning in files.items():
        purpose = f"write a released set of {method.upper()} as a file that ddlnl.DistilledSet.load reads"
        command = add(f"import-{method}", _import_set, "PLACE", meaning, purpose)
        command.add_argument("out", metavar="OUT", help="the file to write (.safetensors)")
        command.add_argument("--dataset", default="cifar10", metavar="NAME", help="what it was made of (cifar10)")
        command.set_defaults(read=getattr(released, method))


def _gallery(options: argparse.Namespace) -> None:
    from ddlnl import gallery  # papermill takes a second to import, and no other command needs it

    given = {} if options.profile is None else {"profile": options.profile}
    where = (options.folder, options.notebooks, options.store_dir, options.workers, given, options.records)
    print(f"The index is {gallery.build(*where)}.")


def _fetch(options: argparse.Namespace) -> None:
    _describe(datasets.load(options.name, options.data_dir))


def _import_tiny_imagenet(options: argparse.Namespace) -> None:
    path = sources.import_tiny_imagenet(options.folder, options.data_dir)
    print(f"Wrote {path}.")
    _describe(datasets.load(path))


def _import_cifar_n(options: argparse.Namespace) -> None:
    imported = human_labels.import_cifar_n(options.label_file, options.data_dir)
    rates = ", ".join(f"{name} ({rate:.2%} wrong)" for name, rate in imported.rates.items())
    origin = "the published file" if imported.published else "not byte for byte the published file"
    print(f"Added {rates} to {imported.path}, from {origin} (SHA-256 {imported.sha256}).")


def _import_set(options: argparse.Namespace) -> None:
    small = options.read(options.place, options.dataset, options.data_dir)
    small.save(options.out)
    print(f"Wrote {options.out}: {len(small)} images, IPC {small.ipc}.")


def _describe(data: datasets.Dataset) -> None:
    shape = "x".join(map(str, data.train.images.shape[1:]))
    print(
        f"{data.name}: {len(data.train)} training and {len(data.test)} test images of {shape} in "
        f"{data.train.num_classes} classes; human labels: {', '.join(data.train.human) or 'none'}."
    )


def _add_denoise(commands: argparse._SubParsersAction) -> None:
    purpose = "distil images with noisy labels, and list the labels that are likely wrong"
    command = commands.add_parser("denoise", help=purpose, description=purpose)
    told = f"a folder of pictures, <class>/<picture>, an .npz archive, or {', '.join(datasets.NAMES)}"
    command.add_argument("data", metavar="DATA", help=told)
    command.add_argument("folder", metavar="OUT_DIR", help="where the distilled set and the tables go")
    command.add_argument("--method", default="dance", help="distiller (default: %(default)s)")
    command.add_argument("--ipc", type=int, default=10, help="distilled images per class (default: %(default)s)")
    command.add_argument("--profile", default="demo", help="settings (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of every random draw (default: %(default)s)")
    command.add_argument("--size", type=int, help="side in pixels that pictures are brought to (default: 32 or 64)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1 (default: %(default)s)")
    command.add_argument("--data-dir", metavar="D", help="where archives are (default: $DDLNL_DATA, else user's cache)")
    command.set_defaults(run=_denoise)


def _denoise(options: argparse.Namespace) -> None:
    require_folder(options.folder)
    names = ("method", "ipc", "profile", "seed", "device", "size", "data_dir")
    report = denoise(options.data, **{name: getattr(options, name) for name in names})
    paths = report.save(options.folder)
    print(*report.summary(), f"Wrote {', '.join(map(str, paths))}.", sep="\n")


if __name__ == "__main__":
    main()
