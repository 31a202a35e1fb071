"""Sentences of a small grammar: their words to be tagged, and their next words to be predicted, by small models of transformers.

    python examples/heads/text.py [--steps 300] [--seeds 3]

For tagging, 30 % of the sentences have the tags of others. For the language model, 30 % are words in random order. Batches are
dicts with ``labels``, as the collators of transformers make them. Needs transformers.
"""

import random

import torch
from compare import HOLDOUT, TEST, TRAINING, VALIDATION, Task, draw_wrong, main
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForTokenClassification, LlamaConfig, LlamaForCausalLM

from rholoss.scoring import default_forward
from rholoss.tokens import causal_loss, tagging_loss

WORDS = {  # "saw" and "light" are what their place makes them
    "determiner": ["the", "a", "this", "every", "some"],
    "adjective": ["light", "small", "red", "old", "quiet", "strange"],
    "noun": ["saw", "light", "cat", "river", "house", "lamp", "teacher", "song"],
    "verb": ["saw", "likes", "finds", "carries", "hears"],
    "adverb": ["quickly", "often", "never", "gladly"],
}
TAGS = list(WORDS)
VOCABULARY = ["<pad>", "<start>", *sorted({word for words in WORDS.values() for word in words})]
Example = dict[str, list[int]]
Batch = dict[str, Tensor]


def sentence(draw: random.Random) -> tuple[list[int], list[int]]:
    """Words and tags, as numbers."""
    tags = ["determiner"] + ["adjective"] * draw.randint(0, 2) + ["noun"] + ["adverb"] * draw.randint(0, 1) + ["verb"]
    tags += ["determiner"] + ["adjective"] * draw.randint(0, 2) + ["noun"]
    return [VOCABULARY.index(draw.choice(WORDS[tag])) for tag in tags], [TAGS.index(tag) for tag in tags]


def sentences(seed: int, tagging: bool) -> tuple[list[list[Example]], Tensor]:
    draw = random.Random(seed)
    is_wrong = draw_wrong(torch.Generator().manual_seed(seed))
    parts: list[list[Example]] = []
    for n in (HOLDOUT, VALIDATION, TRAINING, TEST):
        part = []
        for i in range(n):
            words, tags = sentence(draw)
            wrong = n == TRAINING and is_wrong[i]
            if wrong and tagging:
                tags = [tag for _ in range(2) for tag in sentence(draw)[1]][: len(words)]
            if wrong and not tagging:
                draw.shuffle(words)
            words, tags = [1, *words], [-100, *tags]  # the start has no tag
            part.append({"input_ids": words, "labels": tags if tagging else words})
        parts.append(part)
    return parts, is_wrong


def collate(examples: list[Example]) -> Batch:
    columns = {name: [torch.tensor(example[name]) for example in examples] for name in examples[0]}
    batch = {name: pad_sequence(columns[name], True, {"labels": -100}.get(name, 0)) for name in columns}
    return batch | {"attention_mask": (batch["input_ids"] != 0).long()}


SIZES = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def tagger() -> nn.Module:
    return BertForTokenClassification(BertConfig(**SIZES, max_position_embeddings=16, num_labels=len(TAGS)))


def language_model() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def right(model: nn.Module, batch: Batch) -> float:
    """Share of the words that get their tag."""
    logits, tags = default_forward(model, batch)
    return float((logits.argmax(-1) == tags)[tags != -100].float().mean())


def nats(model: nn.Module, batch: Batch) -> float:
    """Mean loss of a word."""
    logits, words = default_forward(model, batch)
    return float(causal_loss(logits, words, normalise=False).sum() / (words[:, 1:] != -100).sum())


def tagging(seed: int) -> Task:
    data = sentences(seed, tagging=True)
    return Task("token classification", "accuracy", *data, tagger, default_forward, tagging_loss, right, collate)


def modelling(seed: int) -> Task:
    data = sentences(seed, tagging=False)
    return Task("causal language model", "nats per word", *data, language_model, default_forward, causal_loss, nats, collate)


if __name__ == "__main__":
    main(tagging, modelling)
