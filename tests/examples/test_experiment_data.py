"""Every data set is read from files in its published format, divided as published, corrupted as asked; wrong files are named."""

import pickle
import shutil
import sys
import types
from collections import Counter

import numpy as np
import published
import pytest
import torch
from experiments import features
from experiments.images import Augmented, ByteImages, Translated, moved, plain
from experiments.readers import census, cifar, glue, idx, pictures, tweets
from experiments.tasks import load_task, make_model, task_names
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector
from rholoss.data.subset import labels_of


def labels(dataset):
    return labels_of(dataset)


def examples(dataset):
    """What a part holds, by content: bytes of each input."""
    return [str(x) if isinstance(x, dict) else x.numpy().tobytes() for x, _ in dataset]


def needs(*modules):
    for module in modules:
        pytest.importorskip(module, exc_type=ImportError)


class TestMnistFamily:
    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize(("name", "data"), [("mnist", "MNIST"), ("fashion-mnist", "Fashion-MNIST")])
    def test_idx_files_gzipped_or_not(self, tmp_path, suffix, name, data):
        published.mnist(tmp_path / name, suffix=suffix)
        x, y = idx.mnist(tmp_path / name, "train", data)
        images, expected = published.grey_images(120)
        assert torch.equal(x[:, 0], torch.from_numpy(images))
        assert y.tolist() == expected.tolist()
        task = load_task(name, tmp_path)
        sizes = [len(part) for part in (task.train, task.holdout, task.validation, task.test)]
        assert sizes == [100, 18, 2, 20]
        assert task.train[0][0].shape == (1, 28, 28)
        assert Counter(labels(task.train).tolist()) == dict.fromkeys(range(10), 10)

    def test_qmnist_holds_out_what_mnist_left_out(self, tmp_path):
        published.qmnist(tmp_path / "qmnist")
        task = load_task("qmnist", tmp_path)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [60, 45, 5, 10_000]
        x, y = idx.qmnist(tmp_path / "qmnist", "test50k")
        assert torch.equal(x[:, 0, 0, 0].long(), y)
        assert y[:3].tolist() == [0, 1, 2]

    def test_ambiguous_images_come_with_each_of_their_labels(self, tmp_path):
        published.ambiguous_mnist(tmp_path / "ambiguous-mnist")
        published.qmnist(tmp_path / "qmnist")
        task = load_task("ambiguous-mnist", tmp_path, with_mnist=True)
        assert len(task.train) == 30 * 4 + 60
        assert int(task.flags["ambiguous"].sum()) == 120
        assert not task.flags["wrong"].any()
        raw = torch.load(tmp_path / "ambiguous-mnist" / "amnist_labels.pt", weights_only=True)
        assert torch.equal(labels(task.train)[:120], raw.flatten())
        difference = task.train[0][0] - task.train[1][0]
        assert 0 < difference.abs().mean() < 0.1  # the same image, with other noise

    def test_translated_digits_are_the_same_by_index_and_differ_between_copies(self, tmp_path):
        published.mnist(tmp_path / "mnist")
        one, other = (load_task("translated-mnist", tmp_path, copies=3, seed=seed) for seed in (0, 0))
        assert len(one.train) == 300
        assert all(torch.equal(one.train[i][0], other.train[i][0]) for i in range(0, 300, 37))
        assert len({one.train.place(i) for i in range(300)}) > 100
        assert one.train[0][0].shape == (1, 40, 40)
        assert one.train[0][1] == one.train[100][1] == one.train[200][1]
        assert {one.test.place(i) for i in range(20)} == {(6, 6)}
        images = one.train.images
        trained, held = (set(part.which.tolist()) for part in (one.train, one.holdout))
        assert not trained & held
        assert len(images) == 120


class TestCifar:
    @pytest.mark.parametrize("form", ["py", "bin"])
    def test_cifar10_in_both_formats(self, tmp_path, form):
        published.cifar10(tmp_path / "cifar10", form=form)
        task = load_task("cifar10", tmp_path)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [50, 45, 5, 20]
        x, y = task.train[3]
        raw = published.colour_images(20, 0)[6].reshape(3, 32, 32)
        assert torch.allclose((x + 1) / 2 * 255, torch.from_numpy(raw).float(), atol=1e-4)
        assert int(y) == 6
        assert torch.equal(task.train.__getitems__([3])[0][0], x)

    @pytest.mark.parametrize("form", ["python", "binary"])
    def test_cifar100_takes_the_fine_labels_and_knows_the_superclasses(self, tmp_path, form):
        published.cifar100(tmp_path / "cifar100", form=form)
        task = load_task("cifar100", tmp_path, noise=1.0, noise_kind="similar")
        assert task.classes == 100
        clean = load_task("cifar100", tmp_path)
        assert labels(clean.train).tolist() == [i % 100 for i in range(0, 400, 2)]
        before, after = labels(clean.train), labels(task.train)
        assert torch.equal(before // 5, after // 5)
        assert task.flags["wrong"].all()
        assert not (before == after).any()

    def test_relevance_by_number(self, tmp_path):
        published.cifar100(tmp_path / "cifar100")
        task = load_task("cifar100-relevance", tmp_path)
        assert task.flags["less relevant"].float().mean() == pytest.approx(0.2, abs=0.01)
        assert torch.equal(task.flags["less relevant"], labels(task.train) >= 20)
        assert (labels(task.test) >= 20).float().mean() == pytest.approx(0.2, abs=0.01)

    def test_relevance_by_number_of_features(self, tmp_path):
        published.cifar100(tmp_path / "cifar100")
        whole, task = (load_task(name, tmp_path, features=True) for name in ("cifar100", "cifar100-relevance"))
        assert set(examples(task.train)) < set(examples(whole.train))
        assert "less relevant" not in whole.flags
        assert "frozen features" in task.notes

    @pytest.mark.parametrize("old_numpy", [False, True])
    def test_labels_that_people_gave(self, tmp_path, old_numpy):
        published.cifar10(tmp_path / "cifar10")
        published.cifar10n(tmp_path / "cifar10n", old_numpy=old_numpy)
        dirty = load_task("cifar10", tmp_path, noise="worse", holdout="dirty")
        clean = load_task("cifar10", tmp_path, noise="worse", holdout="clean")
        human = cifar.cifar10n(tmp_path / "cifar10n")
        assert torch.equal(labels(dirty.train), human["worse"][::2])
        assert torch.equal(dirty.flags["wrong"], (human["worse"] != human["clean"])[::2])
        assert torch.equal(labels(clean.train), labels(dirty.train))
        held = [sorted(labels(task.holdout).tolist() + labels(task.validation).tolist()) for task in (dirty, clean)]
        assert held == [sorted(human[name][1::2].tolist()) for name in ("worse", "clean")]
        with pytest.raises(
            ValueError, match=r"a set of labels that people gave \(aggre, worse, random1, random2, random3\), got 'worst'"
        ):
            load_task("cifar10", tmp_path, noise="worst")

    def test_labels_of_other_images_are_refused(self, tmp_path):
        published.cifar10(tmp_path / "cifar10", each=10)
        published.cifar10n(tmp_path / "cifar10n", each=20)
        with pytest.raises(ValueError, match="are not of these images"):
            load_task("cifar10", tmp_path)

    def test_a_pickle_may_hold_nothing_but_data(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return print, ("code was run",)

        published.cifar10(tmp_path)
        path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
        path.write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}, protocol=2))
        with pytest.raises(
            ValueError, match=r"data_batch_2 is damaged.*__builtin__\.print, which a batch of images has no use for"
        ):
            cifar.cifar10(tmp_path)

    def test_a_label_file_may_hold_nothing_but_data(self, tmp_path, capsys):
        class Evil:
            def __reduce__(self):
                return print, ("code was run",)

        torch.save({"clean_label": Evil()}, tmp_path / "CIFAR-10_human.pt")
        with pytest.raises(ValueError, match=r"CIFAR-10_human.pt is damaged.*six sets of labels.*UnpicklingError"):
            cifar.cifar10n(tmp_path)
        assert "code was run" not in capsys.readouterr().out

    def test_frozen_features_are_made_once_and_kept_by_content(self, tmp_path, monkeypatch):
        published.cifar10(tmp_path / "cifar10", each=40)
        made = []
        original = features.patch_features
        monkeypatch.setattr(features, "patch_features", lambda *images: made.append(1) or original(*images, filters=8))
        one, other = (load_task("cifar10", tmp_path, features=True) for _ in range(2))
        assert len(made) == 1
        assert torch.equal(one.train.tensors[0], other.train.tensors[0])
        assert one.train[0][0].shape == (32,)
        assert one.train.tensors[0].isfinite().all()
        everything = torch.cat([part.tensors[0] for part in (one.train, one.holdout, one.validation)])
        assert everything.mean(0).abs().max() < 1e-4
        assert everything.std(0) == pytest.approx(1, abs=1e-3)
        published.cifar10(tmp_path / "cifar10", each=30)
        load_task("cifar10", tmp_path, features=True)
        assert len(made) == 2
        assert not list((tmp_path / "features").glob("*.part"))


class TestPictures:
    def test_cinic10_is_three_folders_of_a_folder_a_class(self, tmp_path):
        published.cinic10(tmp_path / "cinic10")
        task = load_task("cinic10", tmp_path)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [40, 36, 4, 40]
        x, y = task.train[5]
        assert (x.shape, int(y)) == ((3, 32, 32), 1)
        raw = published.picture(tmp_path / "x.png", seed=1)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (task.train.mean, task.train.std))
        assert torch.allclose((x * std + mean) * 255, torch.from_numpy(raw).permute(2, 0, 1).float(), atol=1e-3)

    def test_relevance_by_class(self, tmp_path):
        published.cinic10(tmp_path / "cinic10")
        task = load_task("cinic10-relevance", tmp_path)
        assert set(labels(task.train).tolist()) == set(range(10))
        assert set(labels(task.test).tolist()) == set(labels(task.holdout).tolist()) == set(range(5))
        assert torch.equal(task.flags["less relevant"], labels(task.train) >= 5)

    def test_relevance_by_class_of_any_data(self, tmp_path):
        published.mnist(tmp_path / "mnist")
        task = load_task("mnist", tmp_path, relevant=3, holdout="none")
        assert torch.equal(
            task.flags["less relevant"], torch.cat([labels(load_task("mnist", tmp_path).train) >= 3, torch.zeros(5) > 0])
        )
        assert set(labels(task.test).tolist()) == {0, 1, 2}
        with pytest.raises(ValueError, match="relevant must be a number of classes, from 1 to 9, got 10"):
            load_task("mnist", tmp_path, relevant=10)

    def test_clothing1m_with_people_s_labels_held_out(self, tmp_path):
        published.clothing1m(tmp_path / "clothing1m")
        task = load_task("clothing1m", tmp_path)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [40, 24, 12, 6]
        assert task.train[0][0].shape == (3, 224, 224)
        assert "wrong" not in task.flags  # nobody knows
        paths = [set(part.paths) for part in (task.train, task.holdout, task.validation, task.test)]
        assert len(set.union(*paths)) == sum(map(len, paths))

    def test_clothing1m_with_a_tenth_of_everything_held_out_and_trained_on(self, tmp_path):
        published.clothing1m(tmp_path / "clothing1m")
        task = load_task("clothing1m", tmp_path, holdout="dirty", held_share=0.2)
        train, held, validation, test = (set(part.paths) for part in (task.train, task.holdout, task.validation, task.test))
        assert held <= train
        assert not validation & (train | test)
        assert len(train | validation) == 76
        assert len(held | validation) == 15
        assert "trains on the holdout too" in task.notes

    def test_what_is_trained_on_is_augmented_and_the_rest_is_not(self, tmp_path):
        published.cinic10(tmp_path / "cinic10")
        task = load_task("cinic10", tmp_path, augment=True)
        assert isinstance(task.train, Augmented)
        assert isinstance(task.holdout, Augmented)
        assert not isinstance(task.test, Augmented)
        assert not isinstance(task.validation, Augmented)
        assert any(not torch.equal(task.train[0][0], task.train[0][0]) for _ in range(5))
        assert torch.equal(plain(task.train)[0][0], plain(task.train)[0][0])
        assert torch.equal(labels(task.train), labels(plain(task.train)))

    @pytest.mark.parametrize("content", [b"", b"not a picture", None])
    def test_a_picture_that_cannot_be_read_is_named(self, tmp_path, content):
        published.cinic10(tmp_path / "cinic10", each=1)
        path = tmp_path / "cinic10" / "train" / "bird" / "cifar10-train-0.png"
        path.write_bytes(path.read_bytes()[:200] if content is None else content)
        dataset = load_task("cinic10", tmp_path).train
        with pytest.raises(ValueError, match=r"bird/cifar10-train-0.png is damaged: expected a picture"):
            dataset[2]
        path.unlink()
        with pytest.raises(FileNotFoundError, match="expected the picture .*cifar10-train-0.png"):
            dataset[2]


class FakeTokenizer:
    """A token a word, its length."""

    @classmethod
    def from_pretrained(cls, folder, local_files_only):
        assert local_files_only
        return cls()

    def __call__(self, sentences, padding, truncation, max_length, return_tensors):
        ids = [[len(word) for word in sentence.split()][:max_length] for sentence in sentences]
        longest = max(map(len, ids))
        table = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        return {"input_ids": table, "attention_mask": (table > 0).long()}


class FakeModel(torch.nn.Module):
    calls = 0
    config = types.SimpleNamespace(hidden_size=2)

    @classmethod
    def from_pretrained(cls, folder, local_files_only):
        return cls()

    def forward(self, input_ids, attention_mask):
        type(self).calls += 1
        hidden = torch.stack([input_ids.float(), torch.where(attention_mask > 0, 1.0, 99.0)], -1)
        return types.SimpleNamespace(last_hidden_state=hidden)


@pytest.fixture
def fake_transformers(monkeypatch, tmp_path):
    module = types.SimpleNamespace(AutoModel=FakeModel, AutoTokenizer=FakeTokenizer)
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.setattr(FakeModel, "calls", 0)
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "config.json").write_text("{}")


@pytest.mark.usefixtures("fake_transformers")
class TestSentences:
    @pytest.mark.parametrize(("name", "metric"), [("cola", "matthews"), ("sst2", "accuracy")])
    def test_even_rows_train_and_odd_ones_are_held_out(self, tmp_path, name, metric):
        getattr(published, name)(tmp_path / name)
        task = load_task(name, tmp_path)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [30, 27, 3, 12]
        assert (task.metric, task.classes) == (metric, 2)
        assert set(labels(task.train).tolist()) == {0}  # as row i has the label i % 2
        assert set(labels(task.holdout).tolist()) == {1}

    def test_features_are_means_over_real_tokens_made_once(self, tmp_path):
        published.cola(tmp_path / "cola")
        task = load_task("cola", tmp_path)
        assert torch.equal(task.train[0][0], torch.tensor([(3 + 7 + 8 + 6 + 2) / 5, 1.0]))
        calls = FakeModel.calls
        again = load_task("cola", tmp_path)
        assert FakeModel.calls == calls > 0
        assert torch.equal(again.train.tensors[0], task.train.tensors[0])
        (tmp_path / "minilm" / "config.json").write_text("{ }")
        load_task("cola", tmp_path)
        assert FakeModel.calls > calls

    def test_token_ids_come_as_dicts(self, tmp_path):
        published.sst2(tmp_path / "sst2")
        task = load_task("sst2", tmp_path, tokens=True, length=3)
        x, y = next(iter(DataLoader(task.train, batch_size=4)))
        assert x["input_ids"].shape == x["attention_mask"].shape == (4, 3)
        assert y.shape == (4,)
        assert labels_of(task.train) is not None

    def test_the_corpus_s_own_files_are_as_good_as_glue_s(self, tmp_path):
        published.cola(tmp_path)
        glue_train, glue_dev = glue.cola(tmp_path)
        (tmp_path / "train.tsv").rename(tmp_path / "in_domain_train.tsv")
        lines = (tmp_path / "dev.tsv").read_text().splitlines()
        (tmp_path / "dev.tsv").unlink()
        (tmp_path / "in_domain_dev.tsv").write_text("\n".join(lines[:5]) + "\n")
        (tmp_path / "out_of_domain_dev.tsv").write_text("\n".join(lines[5:]))  # without an end of line, as published
        train, dev = glue.cola(tmp_path)
        assert (train[0], dev[0]) == (glue_train[0], glue_dev[0])
        assert torch.equal(dev[1], glue_dev[1])

    def test_a_sentence_is_in_one_part_and_repetitions_are_flagged(self, tmp_path):
        (tmp_path / "sst2").mkdir()
        rows = ["a", "b", "a", "a", "tested", "c", "c", "tested"] + [f"odd {i}" for i in range(40)]
        (tmp_path / "sst2" / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"{row} \t1\n" for row in rows))
        (tmp_path / "sst2" / "dev.tsv").write_text("sentence\tlabel\ntested \t0\n")
        task = load_task("sst2", tmp_path)
        assert len(task.train) == 24 - 1  # "tested" is gone, "a" is twice, "c" is once
        assert len(task.holdout) + len(task.validation) == 24 - 3  # "a", "c" and "tested" are gone
        assert task.flags["duplicate"].tolist()[:3] == [False, True, True]  # a, a, and the c that row 5 had first
        assert "4 rows that were in two parts are gone" in task.notes

    def test_only_the_first_rows_if_asked(self, tmp_path):
        published.sst2(tmp_path / "sst2")
        assert len(load_task("sst2", tmp_path, rows=40).train) == 20

    def test_a_model_that_is_not_there(self, tmp_path):
        published.cola(tmp_path / "cola")
        with pytest.raises(FileNotFoundError, match="expected a model with its tokenizer in .*nowhere"):
            load_task("cola", tmp_path, encoder=tmp_path / "nowhere")


@pytest.mark.usefixtures("fake_transformers")
class TestTweets:
    def test_each_text_is_there_once_with_the_last_label_and_its_agreement(self, tmp_path):
        published.tweets(tmp_path)
        texts, y, agreement = tweets.tweets(tmp_path)
        assert texts == [f"a tweet, said\nby number {i}" for i in range(60)]
        assert y.tolist() == [0, 1, 2] * 20
        assert agreement[[0, 1, 4]].tolist() == pytest.approx([1.0, 0.6, 0.7])
        assert agreement.isnan().nonzero().flatten().tolist() == list(range(3, 60, 5))

    def test_only_what_all_agreed_about_is_held_out_and_tested_on(self, tmp_path):
        published.tweets(tmp_path / "tweets")
        task = load_task("tweets", tmp_path, tokens=True, length=9)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [60 - 2 * 4, 3, 1, 4]
        assert (task.metric, task.classes, list(task.flags)) == ("accuracy", 3, ["disputed"])
        assert int(task.flags["disputed"].sum()) == 12  # 0.6, not 0.7 and not those without
        assert not any(task.flags["disputed"][:16])  # those left of the 24 agreed ones come first
        assert "labels" not in task.notes

    def test_seeds_hold_out_others(self, tmp_path):
        published.tweets(tmp_path / "tweets", rows=200)
        one, other = (load_task("tweets", tmp_path, seed=seed, tokens=True) for seed in (0, 1))
        assert labels(one.test).tolist() != labels(other.test).tolist()


def test_sentences_through_a_real_transformer(tmp_path):
    needs("transformers", "tokenizers")
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "train", "dev", "phrase", "of", "words", *map(str, range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    fast.save_pretrained(tmp_path / "minilm")
    transformers.BertModel(config).save_pretrained(tmp_path / "minilm")
    published.sst2(tmp_path / "sst2")
    task = load_task("sst2", tmp_path)
    assert task.train[0][0].shape == (16,)
    assert task.train.tensors[0].std() > 0
    alone = features.sentence_features(["a train phrase of 0 words"], tmp_path / "minilm")
    assert torch.allclose(alone[0], task.train[0][0], atol=1e-5)
    tokens = load_task("sst2", tmp_path, tokens=True)
    model = make_model("transformer", tokens, path=tmp_path / "minilm", pretrained=False).eval()
    x, _ = next(iter(DataLoader(tokens.train, batch_size=4)))
    assert model(x).shape == (4, 2)


class TestCensus:
    def test_the_survey_s_weight_is_dropped_and_the_rest_encoded_by_the_training_data(self, tmp_path):
        published.census(tmp_path / "census")
        task = load_task("census", tmp_path)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [30, 27, 3, 20]
        assert (task.metric, task.classes) == ("auc", 2)
        (x, y), (x_test, _) = census.census(tmp_path / "census")
        assert x.shape == (60, 7 + 32 * 3 + 1)  # 32 categories of three values, one of one; no column for the weights
        assert x[:, 7:].unique().tolist() == [0, 1]
        assert x[:, 7:].sum(1).unique().tolist() == [33]
        assert x_test[:, 7:].sum(1).unique().tolist() == [32]  # a year that the training data have not
        assert x[:, :7].mean(0).abs().max() < 1e-5
        assert y.tolist() == [int(i % 10 == 0) for i in range(60)]


class TestWrongFiles:
    """Each message names the file, what was expected, and where the data come from."""

    @pytest.mark.parametrize("name", sorted(set(task_names()) - {"digits"}))
    def test_a_folder_that_is_not_there(self, tmp_path, name):
        with pytest.raises(FileNotFoundError, match=r"expected .* in .*: .*, from "):
            load_task(name, tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda b: b[:-1], r"expected 94,096 bytes for the shape \(120, 28, 28\), got 94,095"),
            (lambda b: b"\1" + b[1:], "expected an idx file of 3 dimensions, got 94,096 bytes that begin 01000803"),
            (lambda b: b[:3] + b"\1" + b[4:], "expected an idx file of 3 dimensions"),
            (lambda b: b"", "expected an idx file of 3 dimensions, got 0 bytes"),
            (lambda b: b[:4] + b"\0\0\0\3" + b[8:], r"expected 2,368 bytes for the shape \(3, 28, 28\)"),
        ],
    )
    def test_damaged_images(self, tmp_path, change, message):
        published.mnist(tmp_path, suffix="")
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(change(path.read_bytes()))
        with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte is damaged, or not a file of MNIST: {message}.*LeCun"):
            idx.mnist(tmp_path, "train")

    def test_damaged_gzip(self, tmp_path):
        published.mnist(tmp_path)
        path = tmp_path / "train-images-idx3-ubyte.gz"
        for content in (path.read_bytes()[:1000], b"no gzip", path.read_bytes()[:500] + b"\0" * 500):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="expected a whole gzip file"):
                idx.mnist(tmp_path, "train")

    def test_labels_that_do_not_fit(self, tmp_path):
        published.mnist(tmp_path, suffix="")
        published.idx(tmp_path / "train-labels-idx1-ubyte", np.arange(119) % 10)
        with pytest.raises(ValueError, match="expected 120 labels, as train-images-idx3-ubyte has images, got 119"):
            idx.mnist(tmp_path, "train")
        published.idx(tmp_path / "train-labels-idx1-ubyte", np.arange(120) % 11)
        with pytest.raises(ValueError, match="expected labels from 0 to 9, got 0 to 10"):
            idx.mnist(tmp_path, "train")

    def test_qmnist_s_labels_are_a_table(self, tmp_path):
        published.qmnist(tmp_path)
        published.idx(tmp_path / "qmnist-train-labels-idx2-int", np.zeros((60, 7)), code=0x0C)
        with pytest.raises(ValueError, match=r"expected 8 columns of int32, got 7 of torch.int32.*facebookresearch/qmnist"):
            idx.qmnist(tmp_path, "train")

    def test_ambiguous_mnist(self, tmp_path):
        published.ambiguous_mnist(tmp_path / "a")
        torch.save([1], tmp_path / "a" / "amnist_labels.pt")
        with pytest.raises(ValueError, match=r"amnist_labels.pt.*expected a tensor saved by PyTorch, got list"):
            idx.ambiguous_mnist(tmp_path / "a")
        (tmp_path / "a" / "amnist_samples.pt").write_bytes(b"none")
        with pytest.raises(ValueError, match=r"amnist_samples.pt.*expected a tensor saved by PyTorch"):
            idx.ambiguous_mnist(tmp_path / "a")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "got EOFError"),
            (b"\x80\x02}q\x00.", r"expected a batch with b'data' and b'labels', got \[\]"),
            (pickle.dumps([], protocol=2), "got list"),
            (
                pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}, protocol=2),
                "labels from 0 to 9, got 1 to 10",
            ),
            (
                pickle.dumps({b"data": np.zeros((2, 100), np.uint8), b"labels": [1, 1]}, protocol=2),
                r"bytes of shape \(2, 3,072\)",
            ),
        ],
    )
    def test_damaged_batches(self, tmp_path, content, message):
        published.cifar10(tmp_path)
        (tmp_path / "cifar-10-batches-py" / "data_batch_4").write_bytes(content)
        with pytest.raises(ValueError, match=rf"data_batch_4 is damaged, or not a file of CIFAR-10: .*{message}.*Krizhevsky"):
            cifar.cifar10(tmp_path)

    def test_missing_and_short_batches(self, tmp_path):
        published.cifar10(tmp_path, form="bin")
        path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
        path.write_bytes(path.read_bytes()[:-5])
        with pytest.raises(ValueError, match="expected records of 3,073 bytes, got 61,455 bytes"):
            cifar.cifar10(tmp_path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=r"expected data_batch_3.bin in .*CIFAR-10, from"):
            cifar.cifar10(tmp_path)

    def test_cinic10_without_pictures(self, tmp_path):
        published.cinic10(tmp_path, each=1)
        for path in (tmp_path / "train" / "dog").iterdir():
            path.unlink()
        with pytest.raises(ValueError, match=r"train/dog is damaged.*expected pictures that end in .png, got none"):
            pictures.cinic10(tmp_path, "train")
        shutil.rmtree(tmp_path / "train" / "cat")
        with pytest.raises(FileNotFoundError, match="expected cat in .*train"):
            pictures.cinic10(tmp_path, "train")

    def test_clothing1m_s_lists(self, tmp_path):
        published.clothing1m(tmp_path)
        labels_file = tmp_path / "annotations" / "noisy_label_kv.txt"
        lines = labels_file.read_text().splitlines()
        labels_file.write_text("\n".join(lines[:-1]))
        with pytest.raises(
            ValueError, match=r"noisy_train_key_list.txt.*expected paths with a label in noisy_label_kv.txt, got none for 1 of 42"
        ):
            pictures.clothing1m(tmp_path, "noisy_train")
        labels_file.write_text("\n".join([*lines, "images/a.jpg 14"]))
        with pytest.raises(ValueError, match=r"a label from 0 to 13 in each line, got 'images/a.jpg 14' in line 43"):
            pictures.clothing1m(tmp_path, "noisy_train")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the header 'sentence<tab>label', got an empty file"),
            ("gj04\t1\t\tA.\n", "the header"),
            ("sentence\tlabel\n", "expected sentences, got none"),
            ("sentence\tlabel\na\t2\n", "2 columns, and 0 or 1 in that of the label, got .* in line 2"),
            ("sentence\tlabel\na\t1\nb\tc\t1\n", "in line 3"),
        ],
    )
    def test_sentences(self, tmp_path, text, message):
        published.sst2(tmp_path / "s")
        (tmp_path / "s" / "train.tsv").write_text(text)
        with pytest.raises(ValueError, match=rf"train.tsv is damaged, or not a file of SST-2: .*{message}"):
            glue.sst2(tmp_path / "s")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("sentiment,confidence", "label,confidence", r"the columns sentiment, confidence, text, got \['label'"),
            ("neutral,0.6", "mixed,0.6", "expected a sentiment, an agreement .*got .*mixed.* in line 7"),
            ("neutral,0.6", "neutral,1.6", "in line 7"),
            ("neutral,0.6", "neutral,nan", "in line 7"),
            ("neutral,0.6", "neutral,much", "in line 7"),
            ("neutral,0.6", "neutral,0.6,0.6", "in line 7"),
        ],
    )
    def test_tweets(self, tmp_path, old, new, message):
        published.tweets(tmp_path)
        path = tmp_path / tweets.FILE
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(ValueError, match=rf"csv is damaged, or not a file of CrowdFlower's tweets: .*{message}"):
            tweets.tweets(tmp_path)
        path.write_text("sentiment,confidence,text\n")
        with pytest.raises(ValueError, match="expected tweets, got none"):
            tweets.tweets(tmp_path)

    def test_sentences_that_are_no_text(self, tmp_path):
        published.sst2(tmp_path / "s")
        (tmp_path / "s" / "train.tsv").write_bytes(b"sentence\tlabel\n\xff\xfe\t1\n")
        with pytest.raises(ValueError, match=r"train.tsv.*expected text in UTF-8"):
            glue.sst2(tmp_path / "s")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (" - 50000.", " poor", "a label of .*, got 'poor' in line 2"),
            (" 1000.31", " 1000.31, 7", "42 columns in each row, got 43 in line 1"),
        ],
    )
    def test_census(self, tmp_path, old, new, message):
        published.census(tmp_path / "c")
        path = tmp_path / "c" / "census-income.data"
        path.write_text(path.read_text().replace(old, new, 1))
        with pytest.raises(ValueError, match=rf"census-income.data.*{message}"):
            census.census(tmp_path / "c")


class TestTasks:
    @pytest.fixture
    def root(self, tmp_path):
        published.mnist(tmp_path / "mnist", train=600)
        return tmp_path

    def test_the_default_needs_no_files(self, tmp_path):
        task = load_task("digits", tmp_path, noise=0.3)
        assert [len(part) for part in (task.train, task.holdout, task.validation, task.test)] == [960, 270, 30, 537]
        assert int(task.flags["wrong"].sum()) == 288

    def test_parts_have_no_example_in_common(self, root):
        task = load_task("mnist", root)
        parts = [examples(part) for part in (task.train, task.holdout, task.validation, task.test)]
        everything = [content for part in parts for content in part]
        assert len(set(everything)) == len(everything) == 620

    @pytest.mark.parametrize("holdout", ["clean", "dirty", "none", 30])
    def test_the_kinds_of_holdout(self, root, holdout):
        task = load_task("mnist", root, noise=0.5, holdout=holdout)
        clean = load_task("mnist", root)
        truth = dict(zip(examples(clean.train) + examples(clean.holdout) + examples(clean.validation), [
            *labels(clean.train).tolist(), *labels(clean.holdout).tolist(), *labels(clean.validation).tolist()
        ], strict=True))  # fmt: skip

        def wrong(part):
            return sum(truth[x] != y for x, y in zip(examples(part), labels(part).tolist(), strict=True)) / len(part)

        assert wrong(task.train) == pytest.approx(0.5, abs=0.01)
        assert task.flags["wrong"].float().mean() == pytest.approx(wrong(task.train))
        assert wrong(task.validation) == (0.5 if holdout in ("dirty", "none") else 0)
        if holdout == "none":
            assert task.holdout is None
            assert len(task.train) == 590
        else:
            assert wrong(task.holdout) == (0.5 if holdout == "dirty" else 0)
            assert (len(task.train), len(task.holdout)) == (500, 27 if holdout == 30 else 90)

    def test_the_same_seed_makes_the_same_task_and_nothing_global_moves(self, root):
        torch.manual_seed(5)
        state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        options = {"noise": 0.2, "input_noise": 0.1, "ambiguous": 0.1, "duplicates": 0.3, "holdout": "dirty"}
        one, other, third = (load_task("mnist", root, seed=seed, **options) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), state)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
        for part in ("train", "holdout", "validation", "test"):
            for mine, its in zip(getattr(one, part).tensors, getattr(other, part).tensors, strict=True):
                assert torch.equal(mine, its)
        assert not torch.equal(one.train.tensors[0], third.train.tensors[0])

    def test_flags_say_what_was_corrupted(self, root):
        task = load_task("mnist", root, noise=0.2, input_noise=0.1, ambiguous=0.1, duplicates=0.3)
        n = 500
        assert {name: int(flag[:n].sum()) for name, flag in task.flags.items()} == {
            "wrong": 100, "noisy input": 50, "ambiguous": 50, "duplicate": 0
        }  # fmt: skip
        assert len(task.train) == 650
        assert task.flags["duplicate"][n:].all()
        known = {(x, y) for x, y in zip(examples(task.train)[:n], labels(task.train)[:n].tolist(), strict=True)}
        copies = zip(examples(task.train)[n:], labels(task.train)[n:].tolist(), strict=True)
        assert all(copy in known for copy in copies)
        assert "labels: 20.0% wrong" in task.notes

    def test_the_dirt_of_the_holdout_is_not_that_of_the_training_data_over_again(self, root):
        one = load_task("mnist", root, noise=0.5, holdout="dirty")
        wrong = [labels(part)[:50] != labels(load_task("mnist", root).__getattribute__(name))[:50] for name, part in
                 (("train", one.train), ("holdout", one.holdout))]  # fmt: skip
        assert not torch.equal(*wrong)

    def test_a_limit_keeps_the_classes_in_proportion(self, root):
        task = load_task("mnist", root, limit=50)
        assert set(Counter(labels(task.train).tolist()).values()) == {5}
        assert len(task.holdout) + len(task.validation) == 50

    def test_notes_of_whoever_prepared_the_files_are_passed_on(self, root):
        (root / "mnist" / "NOTES.txt").write_text("Recompressed.\n")
        assert load_task("mnist", root).notes == "MNIST. Recompressed. holdout: clean"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"holdout": "dirtyish"}, "holdout must be 'clean', 'dirty', 'none' or a number"),
            ({"holdout": 5}, "at least 10, got 5"),
            ({"holdout": 101}, "a holdout of 101 examples was asked for, and there are 100"),
            ({"noise": 1.5}, r"share must be in \[0, 1\], got 1.5"),
            ({"noise": "worse"}, r"noise must be a share in \[0, 1\] or a set of labels that people gave \(none here\)"),
        ],
    )
    def test_options_that_make_no_sense(self, root, options, message):
        with pytest.raises(ValueError, match=message):
            load_task("mnist", root, **options)

    def test_inputs_that_cannot_be_corrupted(self, root):
        with pytest.raises(
            ValueError, match="ambiguous: only images in memory and features can be corrupted so, not MNIST at 8 random places"
        ):
            load_task("translated-mnist", root, ambiguous=0.1)

    def test_a_name_that_is_almost_right(self, tmp_path):
        with pytest.raises(
            ValueError, match=r"no data set is called 'fashionmnist'; did you mean 'fashion-mnist'\? there are ambi"
        ):
            load_task("fashionmnist", tmp_path)


class TestImages:
    def test_moving_keeps_the_size_and_fills_with_what_is_said(self):
        image = torch.arange(1.0, 10).view(1, 3, 3)
        assert moved(image, 1, 0, fill=0.0)[0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
        assert moved(image, 0, -1, fill=-1.0)[0].tolist() == [[2, 3, -1], [5, 6, -1], [8, 9, -1]]
        assert torch.equal(moved(image, 0, 0, fill=0.0), image)

    def test_translated_images_are_whole(self):
        images = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
        dataset = Translated(images, torch.tensor([0, 1, 0]), torch.tensor([4, 5, 4]), [0.0], [1.0])
        assert all(float(x.sum()) == pytest.approx(28 * 28) for x, _ in dataset)

    def test_augmentation_draws_from_the_global_state_as_torchvision_s_does(self):
        images = ByteImages(torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8), torch.arange(4), [0.5] * 3, [0.5] * 3)
        augmented = Augmented(images)
        torch.manual_seed(0)
        one = [augmented[i][0] for i in range(4)]
        torch.manual_seed(0)
        assert all(torch.equal(x, augmented[i][0]) for i, x in enumerate(one))


class TestSelecting:
    """What comes of a task can be scored and selected from as it is."""

    @pytest.mark.usefixtures("fake_transformers")
    def test_from_token_ids(self, tmp_path):
        published.sst2(tmp_path / "sst2")
        task = load_task("sst2", tmp_path, tokens=True)

        class Counts(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.head = torch.nn.Linear(1, 2)

            def forward(self, tokens):
                return self.head(tokens["attention_mask"].sum(1, keepdim=True).float())

        store = IrreducibleLossStore.from_model(Counts(), task.train, progress=False)
        loader = DataLoader(task.train, batch_size=4, shuffle=True)
        x, y = next(iter(RhoLossSelector(loader, Counts(), store, keep=0.5)))
        assert len(x["input_ids"]) == len(y) == 4

    def test_from_augmented_images_by_the_losses_of_plain_ones(self, tmp_path):
        published.cifar10(tmp_path / "cifar10")
        task = load_task("cifar10", tmp_path, augment=True)
        model = make_model("linear", task)
        store = IrreducibleLossStore.from_model(model, plain(task.train), progress=False)
        loader = DataLoader(task.train, batch_size=4, shuffle=True)
        selector = RhoLossSelector(loader, model, store, keep=0.5)
        x, y = next(iter(selector))
        assert x.shape == (4, 3, 32, 32)
        assert torch.equal(labels(task.train)[selector.last.index], y)
