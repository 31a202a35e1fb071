"""What RHO-LOSS selects while it trains, and what other methods would have selected from the same candidates.

    python examples/what_was_selected.py [--steps 200] [--noise 0.3] [--keep 0.1] [--seed 0] [--plot FOLDER] [--html FOLDER]

The data, the networks and the irreducible-loss model are those of quickstart.py. Prints a table as Markdown. --plot writes
shares.png, counts.png, scores.png and agreement.png into a folder; --html writes report.html, about the irreducible losses, and
run.html.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from quickstart import N_B, Digits, fit_small_network, make_network, optimizer_of, split_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, build_selector
from rholoss.diagnostics import ComparisonLog, SelectionLog

OTHERS = ("irreducible_loss", "train_loss", "gradient_norm", "bald", "uniform")


def run(steps: int, noise: float, keep: float, seed: int) -> tuple[Digits, IrreducibleLossStore, SelectionLog, ComparisonLog]:
    """Train with RHO-LOSS, and log what is selected."""
    torch.manual_seed(seed)
    digits = split_digits(noise, seed)
    store = IrreducibleLossStore.from_model(fit_small_network(digits, seed), digits.training, top_classes=3)
    model = make_network(width=512, depth=2)
    optimizer = optimizer_of(model)
    loader = DataLoader(digits.training, batch_size=N_B, shuffle=True, drop_last=True)

    def new_log() -> SelectionLog:
        return SelectionLog(len(digits.training), {"wrong label": digits.is_wrong}, correct=True)

    selector = build_selector("rho_loss", loader, model, store=store, keep=keep)
    log = new_log().attach(selector)
    others = {name: build_selector(name, loader, model, store=store, keep=keep) for name in OTHERS}
    comparison = ComparisonLog(others, new_log, every=5).attach(selector)
    while selector.step < steps:
        for x, y in selector:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if selector.step == steps:
                break
    return digits, store, log, comparison


def table(comparison: ComparisonLog) -> str:
    """What each method selected, or would have selected."""
    columns = "wrong labels, %", "already correct, %", "in common with `rho_loss`, %", "rank correlation with it"
    lines = [f"| selected by | {' | '.join(columns)} |", "|---|---|---|---|---|"]
    correlation = comparison.correlation()[0].round(decimals=2).tolist()
    for i, name in enumerate(comparison.names):
        log = comparison.logs[name].summary()
        shares = [100 * log["wrong label/selected"], 100 * log["correct/selected"], 100 * comparison.overlap()[0, i]]
        title = "`rho_loss`, which trains" if i == 0 else f"`{name}`"
        lines.append(f"| {title} | {' | '.join(f'{share:.0f}' for share in shares)} | {correlation[i] + 0.0:.2f} |")
    own = comparison.logs[comparison.names[0]].summary()
    shares = [100 * own["wrong label/candidates"], 100 * own["correct/candidates"], 100 * comparison.uniform_overlap]
    return "\n".join([*lines, f"| expected of uniform sampling | {' | '.join(f'{share:.0f}' for share in shares)} | 0 |"])


def plot(log: SelectionLog, comparison: ComparisonLog, folder: Path) -> None:
    from rholoss.diagnostics import plots

    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (
        ("shares", plots.plot_shares(log, every=10)),
        ("counts", plots.plot_counts(log, "wrong label")),
        ("scores", plots.plot_scores(log, every=10)),
        ("agreement", plots.plot_agreement(comparison)),
    ):
        figure.savefig(folder / f"{name}.png", dpi=120)


def pages(digits: Digits, store: IrreducibleLossStore, log: SelectionLog, comparison: ComparisonLog, folder: Path) -> None:
    def image(index: int) -> Tensor:
        return digits.training[index][0].view(8, 8)

    folder.mkdir(parents=True, exist_ok=True)
    data = digits.training
    store.report(data).to_html(folder / "report.html", data, selected=log.selected, show=image)
    log.to_html(folder / "run.html", data, comparison=comparison, show=image)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What RHO-LOSS selects, and what other methods would have chosen.")
    parser.add_argument("--steps", type=int, default=200, help="training steps (default: 200)")
    parser.add_argument("--noise", type=float, default=0.3, help="share of the training labels that are wrong (default: 0.3)")
    parser.add_argument("--keep", type=float, default=0.1, help="share of each candidate batch to keep (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="of the data, the weights and the batches (default: 0)")
    parser.add_argument("--plot", type=Path, help="a folder for the plots; none are drawn without it")
    parser.add_argument("--html", type=Path, help="a folder for the pages; none are written without it")
    options = parser.parse_args(arguments)
    digits, store, log, comparison = run(options.steps, options.noise, options.keep, options.seed)
    print(table(comparison))
    if options.plot:
        plot(log, comparison, options.plot)
        print(f"\nPlots: {options.plot}")
    if options.html:
        pages(digits, store, log, comparison, options.html)
        print(f"\nPages: {options.html}")


if __name__ == "__main__":
    main()
