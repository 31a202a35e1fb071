"""The command line: make, merge, judge and check stores without writing a program."""

from __future__ import annotations

import argparse
import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from rholoss.data.fingerprint import compared, difference, fingerprint
from rholoss.data.loader_view import LoaderView
from rholoss.irreducible.models import Checkpoints
from rholoss.store import IrreducibleLossStore
from rholoss.store.checks import refuse_gaps

PROGRAM = "python -m rholoss"
NAMED = "module:name, also of a module in this folder; a function or a class is called without arguments"


class UsageError(Exception):
    """The command line asks for what cannot be."""


def make_object(name: str, option: str) -> Any:
    """What a name on the command line stands for; a function or a class is called, but a model that takes arguments is not."""
    found = import_object(name, option)
    if not (inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, functools.partial)):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        if option == "--model" and not inspect.isclass(found):
            return found
        raise UsageError(f"{option} {name} is called without arguments, but {error}; name a function that makes it") from None
    return found()


def import_object(name: str, option: str) -> Any:
    """An object by ``module:name``."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise UsageError(f"{option} must be module:name, such as my_code:thing, got {name!r}")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module that this one needs
        raise UsageError(f"{option}: there is no module {error.name!r} in this folder or among the installed ones") from None
    except Exception as error:
        raise ImportError(f"{option}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), 1)
            raise UsageError(f"{option}: {module} has no {part!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        found = getattr(found, part)
    return found


@contextmanager
def this_folder_first() -> Iterator[None]:
    """Modules of the current folder can be imported."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: as on the command line; None for those of this process.

    Returns:
        0 if all went well, 1 if it did not, 2 if the command line was wrong, 130 if it was stopped by Ctrl-C.
    """
    try:
        options = parser().parse_args(arguments)
    except SystemExit as done:  # of --help, or of a wrong command line
        return int(done.code or 0)
    try:
        with this_folder_first():
            options.run(options)
    except KeyboardInterrupt:
        return _failed(f"stopped; {_how_to_go_on(options)}", 130)
    except Exception as error:
        if options.traceback:
            raise
        wrong = isinstance(error, UsageError)
        expected = wrong or isinstance(error, (ValueError, OSError, ImportError))
        return _failed(("" if expected else f"{type(error).__name__}: ") + str(error), 2 if wrong else 1)
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    raw: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}  # leaves the examples on one line
    whole = Parser(
        prog=PROGRAM,
        description="Make, merge, judge and check stores of irreducible losses.",
        epilog=f"example: {PROGRAM} score --data my_code:train_set --model my_code:il_model --out il.npz",
        **raw,
    )
    whole.add_argument("--traceback", action="store_true", help="show where in the code an error came up")
    commands = whole.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)

    def command(name: str, run: Any, what: str, example: str) -> Any:
        added = commands.add_parser(name, help=what, description=what, epilog=f"example: {PROGRAM} {name} {example}", **raw)
        added.set_defaults(run=run)
        return added

    _score_options(
        command("score", score, "score a dataset with a model", "--data my_code:train_set --model my_code:il_model --out il.npz")
    )
    _merge_options(command("merge", merge, "merge stores of different examples", "a.npz b.npz --out il.npz --examples 60000"))
    _report_options(
        command("report", report, "judge a store: print what it looks like", "il.npz --data my_code:train_set --plot il.png")
    )
    _check_options(command("check", check, "check that a store fits a dataset", "il.npz --data my_code:train_set"))
    return whole


def _score_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--data", required=True, metavar="M:N", help=f"dataset or loader: {NAMED}")
    add("--model", required=True, action="append", metavar="M:N", help="irreducible-loss model, likewise; again for several")
    add("--out", required=True, metavar="PATH", help="store to write; run again after a crash, scoring goes on where it was")
    add("--forward", metavar="M:N", help="forward(model, batch) -> (outputs, targets)")
    add("--loss", metavar="M:N", help="loss(outputs, targets) -> one loss per example")
    add("--batch-size", type=int, metavar="N", help="examples in one forward pass")
    add("--views", type=int, default=1, metavar="N", help="passes over data that are augmented at random (default: 1)")
    add("--mapped", action="store_true", help="write a folder of memory-mapped arrays, for stores larger than memory")
    add("--process", type=int, metavar="K", help="which process this is, from 0; with --processes")
    add("--processes", type=int, metavar="N", help="how many processes share the work")
    add("--distributed", action="store_true", help="share the work between the ranks that torchrun starts")
    add("--progress", action=argparse.BooleanOptionalAction, help="draw a bar (default: on a terminal)")


def _merge_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("stores", nargs="+", metavar="STORE", help="stores, none of which knows an example of another")
    command.add_argument("--out", required=True, metavar="PATH", help="store to write")
    command.add_argument("--mapped", action="store_true", help="write a folder of memory-mapped arrays")
    command.add_argument("--examples", type=int, metavar="N", help="fail unless the examples 0 to N-1 are all known")
    command.add_argument("--force", action="store_true", help="write over a store that is there")


def _report_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE")
    command.add_argument("--data", metavar="M:N", help=f"dataset that shows its labels, for what is said by class: {NAMED}")
    command.add_argument("--other", metavar="STORE", help="store by a model fitted on another half, to compare with")
    command.add_argument("--plot", metavar="FILE", help="image file to draw to")
    command.add_argument("--classes", type=int, metavar="C", help="number of classes, where the store does not say")
    command.add_argument("--plain-accuracy", type=float, metavar="A", help="of the model in training, without selection")
    command.add_argument("--validation-loss", type=float, metavar="L", help="of the fit of the irreducible-loss model")
    command.add_argument("--top", type=int, default=5, metavar="N", help="highest and lowest examples to name (default: 5)")


def _check_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE")
    command.add_argument("--data", required=True, metavar="M:N", help=f"dataset or loader to train on: {NAMED}")


def score(options: argparse.Namespace) -> None:
    """Score a dataset, or a share of it."""
    if (options.process is None) != (options.processes is None):
        raise UsageError("--process and --processes go together: --process 0 --processes 4 is the first of four")
    if options.distributed and options.processes is not None:
        raise UsageError("--distributed takes its processes from torchrun; leave --process and --processes out")
    loss = None if options.loss is None else import_object(options.loss, "--loss")
    how = {
        "forward": None if options.forward is None else import_object(options.forward, "--forward"),
        "loss": loss() if inspect.isclass(loss) else loss,
        "batch_size": options.batch_size,
        "views": options.views,
        "progress": options.progress,
        "mapped": options.mapped,
    }
    data = make_object(options.data, "--data")
    models = [make_object(model, "--model") for model in options.model]
    model = models[0] if len(models) == 1 else models
    if len(models) > 1 and any(isinstance(each, (list, tuple, Checkpoints)) for each in models):
        raise UsageError("of several --model, each must be one model; let one function return all of them")
    if options.processes is not None:
        share = {"process": options.process, "processes": options.processes}
        store = IrreducibleLossStore.score_share(model, data, options.out, **share, **how)
    else:
        with _ranks(options.distributed):
            store = IrreducibleLossStore.from_model(model, data, path=options.out, distributed=options.distributed, **how)
    if options.distributed and os.environ.get("RANK") != "0":
        return
    if store is None:
        print(f"this share is done; {options.out} will be written when the other processes are")
    else:
        print(f"{options.out}: {store.size}, mean irreducible loss {float(store.losses.mean(dtype=torch.float64)):.4f} nats")


def merge(options: argparse.Namespace) -> None:
    """Merge stores into one file."""
    if os.path.exists(options.out) and not options.force:
        raise ValueError(f"{options.out} is there already; name another path, or write over it with --force")
    if os.path.exists(options.out) and os.path.isdir(options.out) != options.mapped:
        raise ValueError(
            f"{options.out} is a {'file' if options.mapped else 'folder'}, which a store of the other kind cannot replace"
        )
    first, *others = [IrreducibleLossStore.load(path) for path in options.stores]
    store = first.merge(*others)
    if options.examples is not None:
        store = _of_all(store, options.examples)
    store.save(options.out, mapped=options.mapped)
    print(f"{options.out}: {store.size}, {store.coverage:.1%} known")


def _of_all(store: IrreducibleLossStore, n: int) -> IrreducibleLossStore:
    """A store that is checked to know the examples 0 to n-1, and no others; without ids."""
    beyond = len(store) - n if store.ids is None else int(((store.ids < 0) | (store.ids >= n)).sum())
    if beyond > 0:
        raise ValueError(f"expected the examples 0 to {n - 1}, got {beyond:,} others; --examples is how many the whole data have")
    if store.ids is None and len(store) < n:
        raise ValueError(f"expected the examples 0 to {n - 1}, got only {len(store):,}")
    refuse_gaps(store, torch.arange(n), None)
    return IrreducibleLossStore(store.losses, meta=store.meta)


def report(options: argparse.Namespace) -> None:
    """Print, and perhaps draw, what a store looks like."""
    store = IrreducibleLossStore.load(options.store)
    other = None if options.other is None else IrreducibleLossStore.load(options.other)
    data = None if options.data is None else make_object(options.data, "--data")
    given = {name: getattr(options, name) for name in ("classes", "plain_accuracy", "validation_loss", "top")}
    found = store.report(data, other=other, **given)
    if options.plot is not None:
        found.plot(options.plot)
    print(found)


def check(options: argparse.Namespace) -> None:
    """Say in what a store fits a dataset, and raise a ValueError where it does not."""
    store, data = IrreducibleLossStore.load(options.store), make_object(options.data, "--data")
    saved = store.meta.data
    now = fingerprint(data) if saved else None
    for line in compared(saved, now):
        print(line)
    how = difference(saved, now) if saved and now else None
    if how:
        raise ValueError(f"{options.store} was made from other data than {options.data}: {how}")
    view = LoaderView.of_data(data)
    view.require_index()
    index = view.drawable()
    refuse_gaps(store, index, view.dataset_length)
    print("gaps: only drawing tells" if index is None else f"gaps: none in the {len(index):,} examples that may be drawn")
    print(f"{options.store} fits {options.data}, as far as it can be told")


@contextmanager
def _ranks(distributed: bool) -> Iterator[None]:
    """The processes that torchrun started know of each other."""
    if not distributed or torch.distributed.is_initialized():
        yield
        return
    if "RANK" not in os.environ:
        raise UsageError("--distributed is for torchrun: torchrun --nproc-per-node 2 -m rholoss score ...")
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _how_to_go_on(options: argparse.Namespace) -> str:
    parts = f"{options.out}.parts" if options.command == "score" else ""
    if not os.path.exists(parts):
        return "nothing was written"
    return f"what is done is kept in {parts}: run the same command again to go on"


def _failed(message: str, code: int) -> int:
    print(f"{PROGRAM}: error: " + " ".join(message.split()), file=sys.stderr)
    return code
