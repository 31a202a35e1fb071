"""Token selection in the Trainer of transformers and TRL's SFTTrainer: the gradients are those of plain loops over the tokens."""

import copy
import re
from pathlib import Path

import pytest
import torch
from token_runs import oracle_choice, oracle_losses
from torch import nn
from torch.utils.data import DataLoader

from rholoss.integrations.token_loss import SelectedTokenLoss, active_adapter
from rholoss.tokens import token_losses

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # whatever frameworks warn of is their affair

LENGTHS = [9, 5, 7, 3, 6, 8, 4, 12]  # of the texts: four micro-batches of two
PAD = 0


def tiny_llama(seed, **more):
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes["initializer_range"] = 0.3  # so that what is attended to matters
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, pad_token_id=PAD, **more)).double()


def texts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 30, (length,), generator=generator).tolist() for length in LENGTHS]


def padded(ids, side="right"):
    """A batch as collators make it: dicts of tensors, with -100 for the padding and for the first two tokens, a prompt."""
    longest = max(map(len, ids))
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for text in ids:
        more = longest - len(text)
        for name, own, pad in (("input_ids", text, PAD), ("attention_mask", [1] * len(text), 0)):
            rows[name].append(own + [pad] * more if side == "right" else [pad] * more + own)
        labels = [-100, -100, *text[2:]]
        rows["labels"].append(labels + [-100] * more if side == "right" else [-100] * more + labels)
    return {name: torch.tensor(row) for name, row in rows.items()}


def packed(ids):
    """All texts in one row, as padding-free collators make it."""
    batch = {
        "input_ids": [token for text in ids for token in text],
        "position_ids": [t for text in ids for t in range(len(text))],
    }
    batch["labels"] = [label for text in ids for label in [-100, -100, *text[2:]]]
    return {name: torch.tensor([row]) for name, row in batch.items()}


def collate(examples):
    return padded([example["input_ids"] for example in examples])


def logits_of(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return model(**inputs, use_cache=False).logits  # with a cache, packed documents are attended across


def oracle_gradients(model, reference, micro_batches, keep, by_selected=False):
    """The gradients of one update: each micro-batch's mean over its selected tokens, by its share of all valid tokens.

    ``by_selected``: of one sum over all selected tokens, divided once.
    """
    model, sums, valid = copy.deepcopy(model), [], []
    for batch in micro_batches:
        losses = oracle_losses(logits_of(model, batch), batch["labels"])
        with torch.no_grad():
            reference_loss = oracle_losses(logits_of(reference, batch), batch["labels"])
        chosen = oracle_choice(losses, reference_loss, keep)
        sums.append((sum(losses[at] for at in chosen), len(chosen)))
        valid.append(len(losses))
    if by_selected:
        loss = sum(total for total, _ in sums) / sum(n for _, n in sums)
    else:
        loss = sum(total / n * own / sum(valid) for (total, n), own in zip(sums, valid, strict=True))
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def in_order(trainer_class):
    """The trainer, with its data as they come."""

    class InOrder(trainer_class):
        def get_train_dataloader(self):
            size = self.args.per_device_train_batch_size
            loader = DataLoader(self.train_dataset, batch_size=size, collate_fn=self.data_collator)
            return self.accelerator.prepare(loader)

    return InOrder


def arguments(folder, kind=transformers.TrainingArguments, **more):
    """One update by plain gradient descent at a learning rate of 1, so that the weights change by the gradient."""
    return kind(
        output_dir=str(folder),
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, **more},
    )


def applied(model, trainer):
    """What an update subtracted from the trained weights."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer.train()
    after = dict(model.named_parameters())
    return {name: weight - after[name].detach() for name, weight in before.items()}


def close(found, expected, factor=1.0, atol=1e-8):
    assert set(found) == set(expected)
    return all(torch.allclose(found[name], factor * grad, rtol=1e-5, atol=atol) for name, grad in expected.items())


MICRO_BATCHES = [padded(texts()[i : i + 2]) for i in range(0, 8, 2)]
DATA = [{"input_ids": ids} for ids in texts()]


def trained(folder, make_loss, **more):
    """What an update of four micro-batches subtracted, with a loss made of (model, reference); and the two."""
    model, reference = tiny_llama(0), tiny_llama(1)
    loss = make_loss(model, reference)
    args = arguments(folder, **more)
    made = in_order(transformers.Trainer)(model, args, train_dataset=DATA, data_collator=collate, compute_loss_func=loss)
    return applied(model, made), tiny_llama(0), reference


class TestTrainer:
    @pytest.mark.parametrize("keep", [0.5, 0.7, 1])
    def test_an_accumulated_update_is_that_of_plain_loops(self, tmp_path, keep):
        found, *models = trained(tmp_path, lambda *two: SelectedTokenLoss(*two, keep=keep))
        assert close(found, oracle_gradients(*models, MICRO_BATCHES, keep))

    def test_it_is_the_mean_over_the_selected_tokens_where_nothing_is_rounded(self, tmp_path):
        found, *models = trained(tmp_path, lambda *two: SelectedTokenLoss(*two, keep=0.5))  # of 10, 6, 10 and 12 tokens
        assert close(found, oracle_gradients(*models, MICRO_BATCHES, 0.5, by_selected=True))

    def test_keeping_everything_is_the_trainers_own_loss(self, tmp_path):
        found, *_ = trained(tmp_path, lambda *two: SelectedTokenLoss(*two, keep=1))
        own, *_ = trained(tmp_path, lambda *two: None)
        assert close(found, own, atol=1e-6)  # which is computed in float32

    def test_other_divisors_scale_the_gradient(self, tmp_path):
        """Without the trainer's count it is as many times too large as there are micro-batches; by its count, keep times."""

        def equal_texts(n):
            return [
                {"input_ids": ids} for ids in torch.randint(2, 30, (8, n), generator=torch.Generator().manual_seed(3)).tolist()
            ]

        model, found = tiny_llama(0), {}
        for name in ("right", "ignores", "counts all"):
            selected = SelectedTokenLoss(own := copy.deepcopy(model), tiny_llama(1), keep=0.5)

            def loss(outputs, labels, num_items_in_batch, name=name, selected=selected):
                if name == "right":
                    return selected(outputs, labels, num_items_in_batch)
                mean = selected(outputs, labels)
                return mean if name == "ignores" else mean * selected.criterion.selected.sum() / num_items_in_batch

            args, data = arguments(tmp_path), equal_texts(10)
            trainer = in_order(transformers.Trainer)(own, args, train_dataset=data, data_collator=collate, compute_loss_func=loss)
            found[name] = applied(own, trainer)
        assert close(found["ignores"], found["right"], factor=4)
        assert close(found["counts all"], found["right"], factor=0.5)

    def test_an_evaluation_is_of_all_tokens(self, tmp_path):
        model = tiny_llama(0)
        loss = SelectedTokenLoss(model, tiny_llama(1), keep=0.3)
        args = arguments(tmp_path, per_device_eval_batch_size=8)
        trainer = transformers.Trainer(model, args, eval_dataset=DATA, data_collator=collate, compute_loss_func=loss)
        batch = padded(texts())
        losses = oracle_losses(logits_of(model, batch), batch["labels"])
        assert trainer.evaluate()["eval_loss"] == pytest.approx(float(sum(losses.values())) / len(losses), rel=1e-5)


def gradients(model, reference, batch, keep=0.5):
    """Of the loss of one batch, called as trainers do; and the loss."""
    model = copy.deepcopy(model)
    loss = SelectedTokenLoss(model, reference, keep)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    value = loss(model(**inputs), batch["labels"])
    value.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


class TestPacking:
    def test_packed_documents_are_as_in_rows_of_their_own(self):
        model, reference = tiny_llama(0, use_cache=False), tiny_llama(1)  # the trainers turn off the cache of what they train
        apart = padded(texts())
        expected = gradients(model, reference, apart)
        assert close(expected, oracle_gradients(model, reference, [apart], 0.5))
        assert close(gradients(model, reference, packed(texts())), expected)

    def test_the_first_token_of_a_document_is_not_predicted_from_the_one_before(self):
        model, batch = tiny_llama(0), packed(texts())
        batch["labels"] = batch["input_ids"].clone()  # as collators that mask nothing
        loss = SelectedTokenLoss(model, tiny_llama(1), keep=1)
        loss(model(**batch), batch["labels"])
        begins = batch["position_ids"] == 0
        assert torch.equal(loss.criterion.selected, ~begins)

    def test_the_first_token_of_a_row_is_not_predicted_from_padding_on_the_left(self):
        model, batch = tiny_llama(0), padded(texts(), side="left")
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = SelectedTokenLoss(model, tiny_llama(1), keep=1)
        loss(model(**batch), batch["labels"])
        assert loss.criterion.selected.sum(1).tolist() == [length - 1 for length in LENGTHS]

    def test_padding_on_the_left_changes_nothing(self):
        model, reference = tiny_llama(0), tiny_llama(1)
        batch = padded(texts(), side="left")
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        assert close(gradients(model, reference, batch), gradients(model, reference, padded(texts())))


class TestAdapters:
    @staticmethod
    def adapted(dropout=0.0):
        """A model with an adapter to train and one that was trained before, and the latter's model."""
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=dropout)
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny_llama(0), config).double()
        model.add_adapter("reference", config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "reference" in name:
                    weight.normal_()
        with active_adapter(model, "reference"):
            alone = copy.deepcopy(model)
        return model, alone

    def test_another_adapter_is_the_reference(self, tmp_path):
        model, alone = self.adapted()
        expected = oracle_gradients(model, alone, MICRO_BATCHES, 0.5)
        assert not close(expected, oracle_gradients(model, tiny_llama(0), MICRO_BATCHES, 0.5))
        loss = SelectedTokenLoss(model, "reference", keep=0.5)
        trainer = in_order(transformers.Trainer)(
            model, arguments(tmp_path), train_dataset=DATA, data_collator=collate, compute_loss_func=loss
        )
        assert close(applied(model, trainer), expected)

    def test_the_model_is_left_as_it_was(self):
        model, _ = self.adapted(dropout=0.5)
        frozen = next(weight for name, weight in model.named_parameters() if "lora_A.default" in name)
        frozen.requires_grad_(False)
        before = [(weight.requires_grad, weight.clone()) for weight in model.parameters()]
        with active_adapter(model, "reference"):
            assert model.active_adapter == "reference"
        with pytest.raises(ValueError, match="input_ids"), active_adapter(model, "reference"):
            model(nothing=1)
        assert model.active_adapter == "default"
        assert all(
            a.requires_grad == flag and torch.equal(a, value) for a, (flag, value) in zip(model.parameters(), before, strict=True)
        )

    def test_a_new_adapter_has_no_excess_over_its_base_model(self):
        model, _ = self.adapted()
        batch = padded(texts())
        with model.disable_adapter():
            base = logits_of(model, batch)
        assert torch.equal(base, logits_of(model, batch))


class TestRefusals:
    def test_wrong_arguments(self):
        model = tiny_llama(0)
        with pytest.raises(TypeError, match="model must be a torch.nn.Module, the one that the trainer gets, got str"):
            SelectedTokenLoss("gpt2", model)
        with pytest.raises(ValueError, match=r"reference must be a model, or one of the model's adapters, \[\], got 'good'"):
            SelectedTokenLoss(model, "good")
        with pytest.raises(ValueError, match="reference must be another model: the excess of a model over itself is 0"):
            SelectedTokenLoss(model, model)
        with pytest.raises(ValueError, match="keep must be"):
            SelectedTokenLoss(model, tiny_llama(1), keep=2)
        assert not model._forward_pre_hooks

    def test_another_model_than_the_trainers(self):
        model, batch = tiny_llama(0), padded(texts())
        loss = SelectedTokenLoss(model, tiny_llama(1))
        outputs = tiny_llama(0)(**batch)
        with pytest.raises(ValueError, match="forward pass of the model before each loss; pass the very model"):
            loss(outputs, batch["labels"])
        outputs = model(**batch)
        loss(outputs, batch["labels"])
        with pytest.raises(ValueError, match="before each loss"):
            loss(outputs, batch["labels"])
        with pytest.raises(ValueError, match="and batches with labels"):
            loss(model(**batch), None)
        with pytest.raises(ValueError, match="one process per device, got 2 counts of tokens"):
            loss(model(**batch), batch["labels"], torch.tensor([9, 9]))
        positions = torch.zeros(3, *batch["labels"].shape)
        loss._note(model, (), {"position_ids": positions})
        with pytest.raises(ValueError, match=r"position_ids must have shape \(n, T\) or \(1, T\), got \(3, 8, 12\)"):
            loss(outputs, batch["labels"])

    def test_without_its_hook(self):
        model, batch = tiny_llama(0), padded(texts())
        loss = SelectedTokenLoss(model, tiny_llama(1))
        loss.remove()
        with pytest.raises(ValueError, match="before each loss"):
            loss(model(**batch), batch["labels"])

    def test_nothing_valid(self):
        model, batch = tiny_llama(0), padded(texts())
        batch["labels"][:] = -100
        loss = SelectedTokenLoss(model, tiny_llama(1))
        for count in (None, 0, torch.tensor(0), 50):
            value = loss(model(**batch), batch["labels"], count)
            value.backward()
            assert value == 0


class TestSFT:
    """TRL: run by ``make trl``, where it is installed."""

    @staticmethod
    def update(folder, way, adapters):
        """What an update of two packed micro-batches subtracted, and what the oracle says."""
        trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
        model, reference = TestAdapters.adapted() if adapters else (tiny_llama(0), tiny_llama(1))
        loss = SelectedTokenLoss(model, "reference" if adapters else reference, keep=0.5)
        original = copy.deepcopy(model)

        class Overrides(trl.SFTTrainer):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                labels = inputs.pop("labels")
                outputs = model(**inputs)
                value = loss(outputs, labels, num_items_in_batch) * self.accelerator.num_processes
                return (value, outputs) if return_outputs else value

        kind, func = (trl.SFTTrainer, loss) if way == "compute_loss_func" else (Overrides, None)
        data = datasets.Dataset.from_list(DATA)
        args = arguments(
            folder,
            trl.SFTConfig,
            packing=True,
            max_length=16,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            gradient_checkpointing=False,
            bf16=False,
            dataset_num_proc=1,
        )
        tokenizer = trained_tokenizer()
        trainer = in_order(kind)(model, args, train_dataset=data, processing_class=tokenizer, compute_loss_func=func)
        rows = list(trainer.train_dataset)
        assert len(rows) == 4
        micro_batches = [trainer.data_collator(rows[i : i + 2]) for i in (0, 2)]
        assert (micro_batches[0]["position_ids"] == 0).sum() > 1
        return applied(model, trainer), oracle_gradients(original, reference, micro_batches, 0.5)

    @pytest.mark.parametrize("way", ["compute_loss_func", "compute_loss"])
    @pytest.mark.parametrize("adapters", [False, True])
    def test_a_packed_and_accumulated_update_is_that_of_plain_loops(self, tmp_path, way, adapters):
        found, expected = self.update(tmp_path, way, adapters)
        assert close(found, expected)


def trained_tokenizer():
    from tokenizers import Tokenizer, models

    words = {f"w{i}": i for i in range(30)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w1", unk_token="w1")


def test_the_other_snippets_of_the_recipe_run(tmp_path, monkeypatch):
    for package in ("trl", "peft", "datasets"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "pages" / "recipes" / "llm_tokens.md").read_text()
    program = re.search(r"```python\n(.*?)# The recipe", page, re.DOTALL).group(1)
    snippets = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(snippets) == 2
    names = {"__name__": "__main__", "tokenizer": trained_tokenizer()}
    with torch.random.fork_rng():
        exec(program, names)
        names["reference"] = names["make_model"]()
        for snippet in snippets:
            exec(snippet, names)
            if "SFTTrainer" in snippet:
                test = torch.tensor([text["input_ids"] for text in names["test_set"]])
                losses, mask = token_losses(names["model"].eval()(test).logits, test)
                assert names["trainer"].evaluate()["eval_loss"] == pytest.approx((losses.sum() / mask.sum()).item(), rel=0.01)
    assert names["loss"].criterion.selected.any()


def test_the_hook_holds_for_a_module_inside_another():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, **inputs):
            return self.inner(**inputs)

    model, batch = tiny_llama(0), padded(texts())
    loss = SelectedTokenLoss(model, tiny_llama(1))
    assert loss(Wrapper(model)(**batch), batch["labels"]) > 0
