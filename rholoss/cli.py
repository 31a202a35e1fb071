"""The command line: make, merge, judge and check stores, and look at plans, without writing a program."""

import argparse
import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch

from rholoss._version import __version__
from rholoss.data.fingerprint import compared, difference, fingerprint
from rholoss.data.loader_view import LoaderView
from rholoss.irreducible.models import Checkpoints
from rholoss.plans import SelectionPlan
from rholoss.store import IrreducibleLossStore
from rholoss.store.checks import refuse_gaps

PROGRAM = "rholoss"
NAMED = "module:name, also from this folder; a function or a class is called without arguments"


class UsageError(Exception):
    """The command line is wrong."""


def make_object(name: str, option: str) -> Any:
    """The object that a name stands for. A function or class is called, unless it is a model function that takes arguments."""
    found = import_object(name, option)
    if not (inspect.isroutine(found) or inspect.isclass(found) or isinstance(found, functools.partial)):
        return found
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError) as error:  # ValueError: a built-in one without a signature
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
            raise ImportError(f"{option}: {module} cannot be imported: {error}") from error  # a module that this one needs
        raise UsageError(f"{option}: there is no module {error.name!r} in this folder or among the installed ones") from None
    except (Exception, SystemExit) as error:
        raise ImportError(f"{option}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), 1)
            raise UsageError(f"{option}: {module} has no {part!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        found = getattr(found, part)
    return found


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns 0 for success, 1 for failure, 2 for a wrong command line, 130 if stopped by Ctrl-C."""
    try:
        options = parser().parse_args(arguments)
    except SystemExit as done:  # of --help, or of a wrong command line
        return int(done.code or 0)
    here = os.getcwd()
    sys.path.insert(0, here)  # modules of this folder can be imported
    try:
        options.run(options)
    except KeyboardInterrupt:
        return _failed(f"stopped; {_how_to_resume(options)}", 130)
    except Exception as error:
        if options.traceback:
            raise
        wrong = isinstance(error, UsageError)
        expected = wrong or isinstance(error, (ValueError, OSError, ImportError))
        return _failed(("" if expected else f"{type(error).__name__}: ") + _words(error), 2 if wrong else 1)
    finally:
        sys.path.remove(here)
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    raw: Any = {"formatter_class": argparse.RawDescriptionHelpFormatter}  # keeps the examples on one line
    whole = Parser(
        prog=PROGRAM,
        description="Make, merge, judge and check stores of irreducible losses, and look at plans.",
        epilog=f"example: {PROGRAM} score --data my_code:train_set --model my_code:il_model --out il.npz",
        **raw,
    )
    whole.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    whole.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    commands = whole.add_subparsers(dest="command", required=True, metavar="command", parser_class=Parser)
    for run, add_options, what, example in (
        (score, _score_options, "score a dataset with a model", "--data my_code:train_set --model my_code:il_model --out il.npz"),
        (merge, _merge_options, "merge stores of different examples", "a.npz b.npz --out il.npz --examples 60000"),
        (report, _report_options, "judge a store: print its report", "il.npz --data my_code:train_set --plot il.png"),
        (suspects, _suspects_options, "list probably wrong labels", "il.npz --data my_code:train_set --csv suspects.csv"),
        (check, _check_options, "check that a store fits a dataset", "il.npz --data my_code:train_set"),
        (plan, _plan_options, "look at a plan: print its summary", "run.plan --data my_code:train_set --plot plan.png"),
    ):
        name = run.__name__
        added = commands.add_parser(name, help=what, description=what, epilog=f"example: {PROGRAM} {name} {example}", **raw)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print one JSON object in place of text")
        add_options(added)
    return whole


def _score_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--data", required=True, metavar="M:N", help=f"dataset or loader: {NAMED}")
    add("--model", required=True, action="append", metavar="M:N", help="irreducible-loss model, likewise; again for several")
    add("--out", required=True, metavar="PATH", help="store to write; after a crash, run again to resume")
    add("--forward", metavar="M:N", help="forward(model, batch) -> (outputs, targets)")
    add("--loss", metavar="M:N", help="loss(outputs, targets) -> one loss per example")
    add("--batch-size", type=int, metavar="N", help="examples in one forward pass")
    add("--top-classes", type=int, default=0, metavar="K", help="most likely classes to keep, for suspects (default: none)")
    add("--views", type=int, default=1, metavar="N", help="passes over randomly augmented data (default: 1)")
    add("--mapped", action="store_true", help="write a folder of memory-mapped arrays, for stores larger than memory")
    add("--process", type=int, metavar="K", help="which process this is, from 0; with --processes")
    add("--processes", type=int, metavar="N", help="how many processes share the work")
    add("--distributed", action="store_true", help="share the work between the ranks that torchrun starts")
    add("--progress", action=argparse.BooleanOptionalAction, help="draw a bar (default: on a terminal)")


def _merge_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("stores", nargs="+", metavar="STORE", help="stores of different examples")
    add("--out", required=True, metavar="PATH", help="store to write")
    add("--mapped", action="store_true", help="write a folder of memory-mapped arrays")
    add("--examples", type=int, metavar="N", help="fail unless the examples 0 to N-1 are all known")
    add("--force", action="store_true", help="overwrite an existing store")


def _report_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("store", metavar="STORE")
    add("--data", metavar="M:N", help=f"dataset that shows its labels, for the table by class: {NAMED}")
    add("--other", metavar="STORE", help="store by a model fitted on another half, to compare with")
    add("--plot", metavar="FILE", help="image file to draw to")
    add("--html", metavar="FILE", help="page to write, with examples if --data is given")
    add("--classes", type=int, metavar="C", help="number of classes, if the store lacks it")
    add("--plain-accuracy", type=float, metavar="A", help="of the model in training, without selection")
    add("--validation-loss", type=float, metavar="L", help="of the fit of the irreducible-loss model")
    add("--top", type=int, default=5, metavar="N", help="highest and lowest examples to list (default: 5)")


def _suspects_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("store", metavar="STORE", help="made with top_classes=2 or more, or --top-classes")
    add("--data", metavar="M:N", help=f"dataset, or a part of it to look at alone, for the names of classes: {NAMED}")
    add("--csv", metavar="FILE", help="table to write")
    add("--top", type=int, metavar="N", help="list so many examples (default: those whose label is probably wrong)")


def _check_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", metavar="STORE")
    command.add_argument("--data", required=True, metavar="M:N", help=f"dataset or loader to train on: {NAMED}")


def _plan_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("plan", metavar="PLAN")
    add("--data", metavar="M:N", help=f"dataset or loader to check the plan against: {NAMED}")
    add("--other", metavar="PLAN", help="plan of the same data, to compare with")
    add("--plot", metavar="FILE", help="image file to draw to")
    add("--parquet", metavar="FILE", help="table to write: step, position, index")


def score(options: argparse.Namespace) -> None:
    """Score a dataset, or a share of it."""
    if (options.process is None) != (options.processes is None):
        raise UsageError("--process and --processes go together: --process 0 --processes 4 is the first of four")
    if options.distributed and options.processes is not None:
        raise UsageError("--distributed takes its processes from torchrun; leave --process and --processes out")
    how = _scoring_options(options)
    data = make_object(options.data, "--data")
    model = _model(options.model)
    if options.processes is not None:
        share = {"process": options.process, "processes": options.processes}
        store = IrreducibleLossStore.score_share(model, data, options.out, **share, **how)
    else:
        with _ranks(options.distributed):
            store = IrreducibleLossStore.from_model(model, data, path=options.out, distributed=options.distributed, **how)
    if options.distributed and os.environ.get("RANK") != "0":
        return
    if store is None:
        text = f"this share is done; {options.out} will be written when the other processes are"
        _say(options, text, store=options.out, finished=False)
        return
    found = store.report()
    text = f"{options.out}: {store.size}, mean irreducible loss {found.mean:.4f} nats\n{found.verdict}"
    verdict = dataclasses.asdict(found.verdict)
    _say(options, text, store=options.out, finished=True, examples=len(store), mean=found.mean, verdict=verdict)


def _scoring_options(options: argparse.Namespace) -> dict[str, Any]:
    forward = None if options.forward is None else import_object(options.forward, "--forward")
    loss = None if options.loss is None else import_object(options.loss, "--loss")
    given = {name: getattr(options, name) for name in ("batch_size", "top_classes", "views", "progress", "mapped")}
    return {**given, "forward": forward, "loss": loss() if inspect.isclass(loss) else loss}


def _model(names: list[str]) -> Any:
    models = [make_object(name, "--model") for name in names]
    if len(models) == 1:
        return models[0]
    if any(isinstance(each, (list, tuple, Checkpoints)) for each in models):
        raise UsageError("each --model of several must be one model; let one function return all of them")
    return models


def merge(options: argparse.Namespace) -> None:
    """Merge stores into one file."""
    if os.path.exists(options.out) and not options.force:
        raise ValueError(f"{options.out} exists already; choose another path, or overwrite it with --force")
    if os.path.exists(options.out) and os.path.isdir(options.out) != options.mapped:
        what = "file" if options.mapped else "folder"
        raise ValueError(f"{options.out} is a {what}, which a store of the other kind cannot replace")
    first, *others = [IrreducibleLossStore.load(path) for path in options.stores]
    store = first.merge(*others)
    if options.examples is not None:
        store = _of_all(store, options.examples)
    store.save(options.out, mapped=options.mapped)
    text = f"{options.out}: {store.size}, {store.coverage:.1%} known"
    _say(options, text, store=options.out, examples=len(store), known=store.coverage)


def _of_all(store: IrreducibleLossStore, n: int) -> IrreducibleLossStore:
    """The store without ids, checked to have exactly the examples 0 to n-1, all known."""
    beyond = len(store) - n if store.ids is None else int(((store.ids < 0) | (store.ids >= n)).sum())
    if beyond > 0:
        raise ValueError(f"expected the examples 0 to {n - 1}, got {beyond:,} others; --examples is the size of the whole data")
    if store.ids is None and len(store) < n:
        raise ValueError(f"expected the examples 0 to {n - 1}, got only {len(store):,}")
    refuse_gaps(store, torch.arange(n), None)
    return IrreducibleLossStore(store.losses, meta=store.meta, predictions=store.predictions)


def report(options: argparse.Namespace) -> None:
    """Print, and optionally draw, the report on a store."""
    _refuse_no_file(options.plot, "--plot")
    _refuse_no_file(options.html, "--html")
    store = IrreducibleLossStore.load(options.store)
    other = None if options.other is None else IrreducibleLossStore.load(options.other)
    data = None if options.data is None else make_object(options.data, "--data")
    given = {name: getattr(options, name) for name in ("classes", "plain_accuracy", "validation_loss", "top")}
    found = store.report(data, other=other, **given)
    if options.plot is not None:
        found.plot(options.plot)
    if options.html is not None:
        found.to_html(options.html, data)
    kept = {"pairs", "store", "labels"}  # not shown
    numbers = {each.name: getattr(found, each.name) for each in dataclasses.fields(found) if each.name not in kept}
    numbers["distribution"] = dataclasses.asdict(found.distribution)
    _say(options, str(found), store=options.store, **numbers, verdict=dataclasses.asdict(found.verdict))


def suspects(options: argparse.Namespace) -> None:
    """Print, and optionally write, the examples whose label is probably wrong."""
    _refuse_no_file(options.csv, "--csv")
    data = None if options.data is None else make_object(options.data, "--data")
    found = IrreducibleLossStore.load(options.store).suspects(data, top=options.top)
    if options.csv is not None:
        found.to_csv(options.csv)
    columns = {name: column.tolist() for name, column in found.columns.items()}
    _say(options, str(found), store=options.store, **columns)


def check(options: argparse.Namespace) -> None:
    """Print how a store fits a dataset, or raise a ValueError."""
    store, data = IrreducibleLossStore.load(options.store), make_object(options.data, "--data")
    saved = store.meta.data
    now = fingerprint(data) if saved else None
    found, why = compared(saved, now), ""
    try:
        how = difference(saved, now) if saved and now else None
        if how:
            raise ValueError(f"{options.store} was made from other data than {options.data}: {how}")
        view = LoaderView.of_data(data)
        view.require_index()
        index = view.drawable()
        found["gaps"] = "unknown until sampled"
        if index is not None:
            refuse_gaps(store, index, view.dataset_length)
            found["gaps"] = f"none in the {len(index):,} examples that may be drawn"
    except ValueError as error:
        why = str(error)
    lines = [f"{what}: {result}" for what, result in found.items()]
    lines += [] if why else [f"{options.store} fits {options.data}, as far as it can be compared"]
    _say(options, "\n".join(lines), store=options.store, data=options.data, compared=found, fits=not why, why=why or None)
    if why:
        raise ValueError(why)


def plan(options: argparse.Namespace) -> None:
    """Print what a plan selects; check, compare, draw or export it."""
    _refuse_no_file(options.plot, "--plot")
    _refuse_no_file(options.parquet, "--parquet")
    loaded = SelectionPlan.load(options.plan)
    if options.data is not None:
        how = loaded.difference(make_object(options.data, "--data"))
        if how:
            raise ValueError(
                f"{options.plan} was recorded over other data than {options.data}: {how}; name those, or record again"
            )
    shares = None if options.other is None else loaded.agreement(SelectionPlan.load(options.other))
    found, method = loaded.summary(), loaded.meta.get("method")
    used = f"{found['used']:.1%} of {loaded.n:,} examples"
    lines = [
        f"{options.plan}: {loaded.steps:,} steps of {loaded.n_b}, recorded by {method or 'an unknown method'}",
        f"selections: {loaded.selections:,}, of {used}; {found['repeats']:.1f} of each on average, {found['most']:.0f} at most",
    ]
    if shares is not None:
        common = f"{shares['selections']:.1%} of the selections, {shares['examples']:.1%} of the examples"
        lines.append(f"in common with {options.other}: {common}")
    if options.data is not None:
        lines.append(f"{options.plan} fits {options.data}, as far as it can be compared")
    if options.plot is not None:
        loaded.plot(options.plot)
    if options.parquet is not None:
        loaded.to_parquet(options.parquet)
    numbers = {"n_b": loaded.n_b, "examples": loaded.n, **found, "in_common": shares}
    _say(options, "\n".join(lines), plan=options.plan, method=method, **numbers)


def _say(options: argparse.Namespace, text: str, **numbers: Any) -> None:
    """Print a text, or with ``--json`` the same in names and numbers; null for a number that is not finite."""
    print(json.dumps(_finite(numbers)) if options.json else text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_no_file(path: str | None, option: str) -> None:
    """Refuse a path that no file can be written to, before anything is done."""
    folder = os.path.dirname(path or "") or "."
    if not os.path.isdir(folder):
        raise UsageError(f"{option}: there is no folder {folder}; make it, or choose another one")
    if path is not None and os.path.isdir(path):
        raise UsageError(f"{option} must be a file to write, got the folder {path}")


@contextmanager
def _ranks(distributed: bool) -> Iterator[None]:
    """Connect the processes that torchrun started."""
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


def _how_to_resume(options: argparse.Namespace) -> str:
    parts = f"{options.out}.parts" if options.command == "score" else ""
    if not os.path.exists(parts):
        return "nothing was written"
    return f"finished work is in {parts}: run the same command again to resume"


def _words(error: Exception) -> str:
    """An error as a sentence: the system's errors with their file, without their number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error)


def _failed(message: str, code: int) -> int:
    print(f"{PROGRAM}: error: " + " ".join(message.split()), file=sys.stderr)
    return code
