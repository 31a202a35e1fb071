"""Heads other than one label per example: what a hook gives is what plain loops give, for models of transformers as they come."""

import importlib
import math
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rholoss import (
    IndexedBatches,
    IrreducibleLossStore,
    RhoLossSelector,
    build_selector,
    cross_fit,
    fit_irreducible_model,
    split,
)
from rholoss.scoring import default_forward, default_loss
from rholoss.tokens import causal_loss, tagging_loss

transformers = pytest.importorskip("transformers")

EXAMPLES = Path(__file__).parents[2] / "examples" / "heads"
sys.path.append(str(EXAMPLES))
SIZES = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
PAD, MASK = 0, 1


def made(kind, config, seed=0, **sizes):
    """A model with random weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config(**sizes)).eval()


def bert(kind, seed=0, **more):
    return made(kind, transformers.BertConfig, seed, **SIZES, **more)


def llama(seed=0):
    return made(transformers.LlamaForCausalLM, transformers.LlamaConfig, seed, **SIZES)


def gpt2():
    sizes = {"vocab_size": 20, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 2, "eos_token_id": 2}
    return made(transformers.GPT2LMHeadModel, transformers.GPT2Config, **sizes)


def words(n, seed=0):
    """Sequences of 2 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (n,), generator=generator).tolist()
    return [torch.randint(3, 20, (length,), generator=generator).tolist() for length in lengths]


def padded(rows, value, length, left=False):
    return torch.tensor([[value] * (length - len(row)) * left + row + [value] * (length - len(row)) * (not left) for row in rows])


def collate(examples, left=False, longer=0):
    """Tokenizer output, padded, with labels of -100 at the padding."""
    length = longer + max(len(each["input_ids"]) for each in examples)
    ids, labels = ([each[name] for each in examples] for name in ("input_ids", "labels"))
    batch = {
        "input_ids": padded(ids, PAD, length, left),
        "attention_mask": padded([[1] * len(row) for row in ids], 0, length, left),
        "labels": padded(labels, -100, length, left) if isinstance(labels[0], list) else torch.tensor(labels),
    }
    return transformers.BatchEncoding(batch)


def one_alone(model, example):
    """Logits (T, C) of one example without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([example["input_ids"]])).logits[0].double()


def nats(logits, label):
    return float(logits.exp().sum().log() - logits[label])


def class_of(model, example):
    with torch.no_grad():
        return nats(model(input_ids=torch.tensor([example["input_ids"]])).logits[0].double(), example["label"])


def tokens_of(model, example, shift, normalise=True):
    logits, total, count = one_alone(model, example), 0.0, 0
    for t, label in enumerate(example["labels"]):
        if label != -100 and not (shift and t == 0):
            total, count = total + nats(logits[t - shift], label), count + 1
    return total / max(count, 1) if normalise else total


def tagged(n):
    """Tags at some tokens; none at all in the first example."""
    rows = words(n)
    labels = [[-100 if token % 3 == 0 or not i else token % 4 for token in row] for i, row in enumerate(rows)]
    return [{"input_ids": row, "labels": tags} for row, tags in zip(rows, labels, strict=True)]


def prompted(n):
    """Text whose first token or two are a prompt; the first example has no more than that."""
    rows = [[5, 6], *words(n)[1:]]
    labels = [[-100 if t < 2 and (i % 2 or not i) else token for t, token in enumerate(row)] for i, row in enumerate(rows)]
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def masked(n):
    rows = words(n)
    labels = [[token if (i + t) % 4 == 0 and i else -100 for t, token in enumerate(row)] for i, row in enumerate(rows)]
    ids = [
        [MASK if label != -100 else token for token, label in zip(*pair, strict=True)] for pair in zip(rows, labels, strict=True)
    ]
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


SUMS = partial(causal_loss, normalise=False), partial(tagging_loss, normalise=False)
TOKENS = {
    "token classification": (lambda s: bert(transformers.BertForTokenClassification, s, num_labels=4), tagged, None, False, True),
    "token classification, summed": (
        lambda s: bert(transformers.BertForTokenClassification, s, num_labels=4), tagged, SUMS[1], False, False,
    ),
    "masked language model": (lambda s: bert(transformers.BertForMaskedLM, s), masked, tagging_loss, False, True),
    "causal language model": (llama, prompted, causal_loss, True, True),
    "causal language model, summed": (llama, prompted, SUMS[0], True, False),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
def test_scores_of_sequences_are_those_of_a_plain_loop_over_tokens(name):
    make, data_of, loss, shift, normalise = TOKENS[name]
    data, model, small = data_of(24), make(0), make(1)
    loader = DataLoader(data, batch_size=8, collate_fn=collate)
    store = IrreducibleLossStore.from_model(small, DataLoader(data, batch_size=5, collate_fn=collate), loss=loss)
    alone = [[tokens_of(each, example, shift, normalise) for example in data] for each in (model, small)]
    assert alone[0][0] == 0.0
    for chunk_size in (None, 3):
        selector = RhoLossSelector(loader, model, store, batch_size=4, loss=loss, chunk_size=chunk_size)
        for batch in selector:
            index = selector.last.candidate_index.tolist()
            expected = torch.tensor([alone[0][i] - alone[1][i] for i in index])
            assert torch.allclose(selector.last.scores, expected, atol=1e-4)
            best = sorted(sorted(range(8), key=lambda row: -expected[row])[:4])
            assert selector.last.positions.tolist() == best
            assert type(batch) is transformers.BatchEncoding
            assert batch["labels"].equal(collate([data[i] for i in index])["labels"][best])


def test_the_label_of_a_sequence_is_not_shown_to_the_model():
    data = [{"input_ids": row, "labels": i % 3} for i, row in enumerate(words(12))]
    model = bert(transformers.BertForSequenceClassification, num_labels=3)
    batch, seen = collate(data), []
    model.register_forward_pre_hook(lambda module, args, given: seen.append(sorted(given)), with_kwargs=True)
    with torch.no_grad():
        losses, own = default_loss(*default_forward(model, batch)), model(**batch).loss
    assert seen[0] == ["attention_mask", "input_ids"]
    alone = [class_of(model, {**example, "label": example["labels"]}) for example in data]
    assert torch.allclose(losses, torch.tensor(alone), atol=1e-4)
    assert math.isclose(float(losses.mean()), float(own), abs_tol=1e-5)


@pytest.mark.parametrize(
    ("make", "data_of", "loss"), [(llama, prompted, SUMS[0]), (TOKENS["masked language model"][0], masked, SUMS[1])]
)
def test_the_sum_over_the_batch_is_what_the_model_itself_trains_on(make, data_of, loss):
    batch, model = collate(data_of(12)), make(0)
    with torch.no_grad():
        (logits, labels), own = default_forward(model, batch), model(**batch).loss
    counted = labels[:, 1:] if loss is SUMS[0] else labels
    assert torch.isclose(loss(logits, labels).sum() / (counted != -100).sum(), own, atol=1e-5)


def test_the_mean_over_tokens_is_the_default_loss():
    logits, labels = torch.randn(6, 9, 5), torch.randint(5, (6, 9))
    labels[torch.rand(6, 9) < 0.4] = -100
    labels[2] = -100
    assert torch.allclose(tagging_loss(logits, labels), default_loss(logits, labels))
    assert tagging_loss(logits, labels)[2] == causal_loss(logits, labels)[2] == 0


def test_a_causal_model_with_the_default_loss_is_refused():
    data = prompted(12)
    loader = DataLoader(data, batch_size=6, collate_fn=collate)
    for model in (llama(), gpt2(), llama().forward):
        with pytest.raises(ValueError, match=r"predicts the next token.*pass loss=rholoss\.tokens\.causal_loss"):
            IrreducibleLossStore.from_model(model, loader)
    with pytest.raises(ValueError, match="predicts the next token"):
        fit_irreducible_model(llama(), loader, DataLoader(prompted(13)[12:], collate_fn=collate))
    assert len(list(build_selector("uniform", loader, llama(), batch_size=2))) == 2  # scores nothing
    store = IrreducibleLossStore.from_model(llama(), loader, loss=causal_loss)
    with pytest.warns(UserWarning, match="made with the loss 'causal_loss', and the selector scores with 'default_loss'"):
        selector = RhoLossSelector(loader, llama(), store, batch_size=2)
    with pytest.raises(ValueError, match="LlamaForCausalLM predicts the next token"):
        next(iter(selector))


def test_a_forward_of_ones_own_may_shift_for_the_default_loss():
    def shifted(model, batch):
        logits, labels = default_forward(model, batch)
        return logits[:, :-1], labels[:, 1:]

    loader = DataLoader(prompted(12), batch_size=6, collate_fn=collate)
    own = IrreducibleLossStore.from_model(llama(), loader, forward=shifted)
    assert torch.allclose(own.losses, IrreducibleLossStore.from_model(llama(), loader, loss=causal_loss).losses)


def test_a_module_of_ones_own_around_a_config_is_not_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.config, self.tagger = transformers.BertConfig(**SIZES), TOKENS["token classification"][0](0)

        def forward(self, input_ids, attention_mask):
            return self.tagger(input_ids=input_ids, attention_mask=attention_mask)

    assert IrreducibleLossStore.from_model(Own(), DataLoader(tagged(12), batch_size=6, collate_fn=collate)).coverage == 1


def test_a_model_that_reads_the_tokens_already_shifted_is_not_refused():
    sizes = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": PAD}
    model = made(transformers.T5ForConditionalGeneration, transformers.T5Config, **sizes)
    batch = collate([{"input_ids": row, "labels": row} for row in words(6)])
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    store = IrreducibleLossStore.from_model(model, IndexedBatches([(torch.arange(6), batch)]))
    with torch.no_grad():
        own = [model(**{name: column[i : i + 1] for name, column in batch.items()}).loss for i in range(6)]
    assert torch.allclose(store.losses, torch.stack(own), atol=1e-4)


def test_more_padding_changes_nothing_on_the_right_and_the_loss_on_the_left():
    data, model = prompted(8), gpt2()
    tight = causal_loss(*default_forward(model, collate(data)))
    assert torch.allclose(causal_loss(*default_forward(model, collate(data, longer=4))), tight, atol=1e-5)
    left = [causal_loss(*default_forward(model, collate(data, left=True, longer=longer))) for longer in (0, 4)]
    assert not torch.allclose(*left, atol=1e-2)


class FixedMasks(Dataset):
    """As on the page about tasks, without a tokenizer."""

    def __init__(self, rows, fixed=True):
        self.rows, self.fixed = rows, fixed

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        with torch.random.fork_rng(devices=[], enabled=self.fixed):
            if self.fixed:
                torch.default_generator.manual_seed(index)
            row = torch.tensor(self.rows[index])
            is_masked = torch.rand(len(row)) < 0.3
        return {"input_ids": row.where(~is_masked, MASK).tolist(), "labels": row.where(is_masked, -100).tolist()}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_against_itself_scores_0_only_if_a_mask_belongs_to_its_example(workers):
    model = bert(transformers.BertForMaskedLM)
    largest = []
    for fixed in (True, False):
        data = FixedMasks(words(16), fixed)
        if not fixed:
            warnings.filterwarnings("ignore", "no field of this dataset's examples is the same when they are read twice: .*masks")
        store = IrreducibleLossStore.from_model(model, DataLoader(data, batch_size=8, collate_fn=collate))
        loader = DataLoader(data, batch_size=8, shuffle=True, collate_fn=collate, num_workers=workers)
        selector = RhoLossSelector(loader, model, store, batch_size=2)
        largest.append(max(float(selector.last.scores.abs().max()) for _ in selector))
    assert largest[0] < 1e-5
    assert largest[1] > 0.5


def test_fitting_and_cross_fitting_use_the_same_hooks():
    data = prompted(40)

    def loader(part):
        return DataLoader(part, batch_size=8, collate_fn=collate)

    def fit(part):
        _, holdout, validation = split(part, holdout=0.7, validation=0.3)
        return fit_irreducible_model(llama(), loader(holdout), loader(validation), epochs=2, loss=causal_loss)

    train, holdout, validation = split(data, holdout=12, validation=8)
    fitted = fit_irreducible_model(llama(), loader(holdout), loader(validation), epochs=2, loss=causal_loss)
    expected = [tokens_of(fitted.model, validation[i], shift=True) for i in range(8)]
    assert math.isclose(fitted.best.validation_loss, sum(expected) / 8, abs_tol=1e-4)
    store = IrreducibleLossStore.from_model(fitted, loader(train), loss=causal_loss)
    assert torch.allclose(
        store[train.indices], torch.tensor([tokens_of(fitted.model, example, shift=True) for example in train]), atol=1e-4
    )
    assert cross_fit(loader(data), fit, loss=causal_loss).coverage == 1


def test_pixels_are_averaged_over_those_that_count():
    import segmentation

    generator = torch.Generator().manual_seed(0)
    logits, masks = torch.randn(5, 3, 4, 6, generator=generator), torch.randint(3, (5, 4, 6), generator=generator)
    masks[torch.rand(5, 4, 6, generator=generator) < 0.3] = segmentation.IGNORE
    masks[3] = segmentation.IGNORE
    for i, loss in enumerate(segmentation.loss(logits, masks).tolist()):
        cells = [(r, c) for r in range(4) for c in range(6) if masks[i, r, c] != segmentation.IGNORE]
        total = sum(nats(logits[i, :, r, c].double(), int(masks[i, r, c])) for r, c in cells)
        assert math.isclose(loss, total / max(len(cells), 1), abs_tol=1e-5)


def image_loss(outputs, target, of):
    """The loss of one image, a cell and an object at a time."""
    centres = {}
    for left, top, right, bottom in target["boxes"].tolist():
        centres[int((top + bottom) / 2 // of.CELL) * of.CELLS + int((left + right) / 2 // of.CELL)] = True
    total = sum(math.log1p(math.exp(-float(z) if cell in centres else float(z))) for cell, z in enumerate(outputs[:, 0]))
    objects = 0.0
    for box, label in zip(target["boxes"], target["labels"], strict=True):
        column, row = (int((box[axis] + box[axis + 2]) / 2 // of.CELL) for axis in (0, 1))
        own = outputs[row * of.CELLS + column]
        objects += nats(own[1:-4], int(label))
        for got, side, place in zip(own[-4:], box, (column, row) * 2, strict=True):
            off = abs(float(got - (side / of.CELL - place - 0.5)))
            objects += off**2 / 2 if off < 1 else off - 0.5
    return total + objects / max(len(target["labels"]), 1)


@pytest.mark.parametrize("together", [list, tuple])
def test_the_losses_of_a_detector_are_those_of_each_image_alone(together):
    import detection

    generator = torch.Generator().manual_seed(0)
    data = []
    for i in range(16):
        k = [8, 8, 8, 8, 8, 8, 8, 8, 0, 1, 2, 3, 1, 2, 3, 4][i]  # of 8 images in a batch, each with 8 objects, too
        corner = torch.rand(k, 2, generator=generator) * 20
        boxes = torch.cat([corner, corner + 4 + 8 * torch.rand(k, 2, generator=generator)], 1)
        labels = torch.randint(detection.CLASSES, (k,), generator=generator)
        data.append((torch.rand(1, detection.SIZE, detection.SIZE, generator=generator), {"boxes": boxes, "labels": labels}))

    def gathered(examples):
        images, targets = detection.collate(examples)
        return images, together(targets)

    torch.manual_seed(0)
    model, small = detection.Detector(), detection.Detector()
    hooks = {"forward": detection.forward, "loss": detection.loss}
    loader = DataLoader(data, batch_size=8, collate_fn=gathered)
    store = IrreducibleLossStore.from_model(small, loader, **hooks)
    with torch.no_grad():
        alone = [
            [image_loss(each(image[None])[0].double(), target, detection) for image, target in data] for each in (model, small)
        ]
    for chunk_size in (None, 3):
        selector = RhoLossSelector(loader, model, store, batch_size=3, chunk_size=chunk_size, **hooks)
        for images, targets in selector:
            index = selector.last.candidate_index.tolist()
            assert torch.allclose(selector.last.scores, torch.tensor([alone[0][i] - alone[1][i] for i in index]), atol=1e-4)
            chosen = selector.last.index.tolist()
            assert images.equal(torch.stack([data[i][0] for i in chosen]))
            assert type(targets) is together
            assert all(target["boxes"].equal(data[i][1]["boxes"]) for target, i in zip(targets, chosen, strict=True))


@pytest.mark.parametrize("make", ["segmentation.task", "detection.task", "text.tagging", "text.modelling"])
def test_an_example_trains_both_ways_and_prints_what_came_of_it(make, capsys):
    compare, example = (importlib.import_module(name) for name in ("compare", make.split(".")[0]))
    compare.compare(getattr(example, make.split(".")[1]), steps=40, seeds=1)
    uniform, selected = (float(share) for share in re.findall(r"wrong among the selected ([\d.]+)%", capsys.readouterr().out))
    assert 25 < uniform < 35
    assert selected < 15


def test_an_example_refuses_to_train_not_at_all(tmp_path):
    command = [sys.executable, str(EXAMPLES / "segmentation.py"), "--steps", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "expected at least 1 step and 1 seed, got 0 and 3" in done.stderr
