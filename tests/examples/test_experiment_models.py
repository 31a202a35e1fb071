"""Models fit the tasks that they are listed for; those of other packages are asked for as those packages want it."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from experiments.models import Shifted, Sized, TransformerClassifier, bag, cnn, make_model, mlp, model_names, resnet, transformer
from experiments.tasks import Task
from torch import nn
from torch.utils.data import TensorDataset


def task_of(*shape, classes=10):
    data = TensorDataset(torch.zeros(3, *shape), torch.arange(3))
    return Task("a task", data, data, data, data, {}, classes, "accuracy", "")


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [(64,), (1, 28, 28), (1, 40, 40), (3, 32, 32)])
def test_every_model_that_is_here_fits(shape):
    task = task_of(*shape, classes=7)
    for name in model_names(task):
        if "/" not in name and name not in ("resnet34", "resnet50"):
            model = make_model(name, task)
            logits = model(torch.zeros(2, *shape))
            assert logits.shape == (2, 7), name
            logits.sum().backward()
            assert all(p.grad is not None for p in model.parameters()), name


def test_sizes_are_those_that_are_known():
    assert parameters(mlp((1, 28, 28), 10)) == 784 * 512 + 512 + 2 * (512 * 512 + 512) + 5130
    assert parameters(cnn((3, 32, 32), 10)) == 1_792 + 73_856 + 295_168 + 131_200 + 33_024 + 2_570
    assert parameters(resnet((3, 32, 32), 10)) == 11_173_962
    assert parameters(resnet((3, 32, 32), 10, "resnet34")) == 21_282_122
    assert parameters(resnet((3, 224, 224), 1000, "resnet50")) == 25_557_032


def test_shifted_images_are_parts_of_padded_ones_in_training_only():
    x = torch.rand(5, 3, 8, 8)
    model = Shifted(nn.Identity(), 2)
    padded, shifted = nn.functional.pad(x, [2] * 4), model(x)
    parts = [[padded[k, :, i : i + 8, j : j + 8] for i in range(5) for j in range(5)] for k in range(5)]
    assert all(any(torch.equal(image, part) for part in own) for image, own in zip(shifted, parts, strict=True))
    assert torch.equal(model.eval()(x), x)


def test_half_of_the_shifted_images_are_mirrored_where_that_is_asked_for():
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(400, 3, 8, 8)
    torch.manual_seed(0)
    rows = Shifted(nn.Identity(), 1, mirror=True)(x)[:, 0, 4]
    mirrored = rows[:, 4] < rows[:, 3]
    assert 150 < mirrored.sum() < 250
    torch.manual_seed(0)
    assert torch.equal(torch.where(mirrored[:, None], rows.flip(-1), rows), Shifted(nn.Identity(), 1)(x)[:, 0, 4])


def test_a_narrow_residual_network_is_made_by_name_also_inside_another_model():
    model = make_model("shifted", task_of(3, 32, 32), of="resnet8", width=16, pixels=4, mirror=True)
    assert parameters(model) == parameters(resnet((3, 32, 32), 10, "resnet8", 16)) == 78_042
    assert model.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_large_images_are_made_smaller_first():
    model = resnet((3, 96, 96), 5, width=4)
    assert model[0].kernel_size == (7, 7)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 5)


def test_models_are_drawn_from_the_global_state():
    task = task_of(4)
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(make_model("mlp", task, width=8, depth=1)[1].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_name_that_does_not_fit():
    with pytest.raises(ValueError, match=r"no model 'mpl' for a task; did you mean 'mlp'\? there are linear, mlp, small$"):
        make_model("mpl", task_of(4))
    with pytest.raises(ValueError, match="no model 'torchvision/vgg11_bn' for a task"):
        make_model("torchvision/vgg11_bn", task_of(4))


@pytest.fixture
def fake_torchvision(monkeypatch):
    asked = []

    class Network(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, classes)

        def forward(self, x):
            assert x.shape[1] == 3
            asked.append(tuple(x.shape))
            return self.head(self.body(x).mean((2, 3)))

    def get_model(name, weights, num_classes, **options):
        asked.append((name, weights, num_classes, options))
        return Network(num_classes)

    models = types.SimpleNamespace(get_model=get_model)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return asked


def test_torchvision_s_models_take_small_and_grey_images(fake_torchvision):
    model = make_model("torchvision/inception_v3", task_of(1, 28, 28))
    assert fake_torchvision == [("inception_v3", None, 10, {"aux_logits": False, "init_weights": True})]
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert fake_torchvision[-1] == (2, 3, 75, 75)
    make_model("torchvision/anything", task_of(3, 32, 32), width=3)
    assert fake_torchvision[-1] == ("anything", None, 10, {"width": 3})


@pytest.mark.usefixtures("fake_torchvision")
def test_published_weights_come_from_a_file_and_the_last_layer_stays_new(tmp_path):
    other = make_model("torchvision/vgg11_bn", task_of(3, 32, 32, classes=1000))
    torch.save(other.model.state_dict(), tmp_path / "weights.pth")
    model = make_model("torchvision/vgg11_bn", task_of(3, 32, 32), weights=tmp_path / "weights.pth")
    assert torch.equal(model.model.body.weight, other.model.body.weight)
    assert model.model.head.weight.shape == (10, 4)
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds other weights: 0 of the 4"):
        make_model("torchvision/vgg11_bn", task_of(3, 32, 32), weights=tmp_path / "weights.pth")


def test_a_torchvision_that_does_not_work_is_named(monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("torchvision"):
                raise RuntimeError("operator torchvision::nms does not exist")

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(ImportError, match=r"the model torchvision/vgg11_bn: needs torchvision.*nms.*pip install torchvision"):
        make_model("torchvision/vgg11_bn", task_of(3, 32, 32))


def test_timm_s_models_get_the_number_of_channels(monkeypatch):
    def create_model(name, pretrained, num_classes, in_chans):
        assert (name, pretrained) == ("tiny", False)
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 64, num_classes))

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    assert make_model("timm/tiny", task_of(1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"the model timm/tiny: needs timm .*pip install timm"):
        make_model("timm/tiny", task_of(3, 8, 8))


def test_transformers_get_tokens_and_give_logits():
    class Network(nn.Module):
        def forward(self, input_ids, attention_mask):
            assert input_ids.shape == (1, 2)  # as the third is padding
            return types.SimpleNamespace(logits=(input_ids * attention_mask).sum(1, keepdim=True).float())

    tokens = {"input_ids": torch.tensor([[1, 2, 9]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    assert TransformerClassifier(Network())(tokens).tolist() == [[3.0]]


def test_sentences_of_about_the_same_length_go_through_a_transformer_together():
    shapes = []

    class Network(nn.Module):
        def forward(self, input_ids, attention_mask):
            shapes.append(tuple(input_ids.shape))
            return types.SimpleNamespace(logits=(input_ids * attention_mask).sum(1, keepdim=True).float())

    lengths = torch.tensor([1, 9] * 6)
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids = torch.arange(12)[:, None].expand(-1, 9) + 1
    assert TransformerClassifier(Network())({"input_ids": ids, "attention_mask": mask})[:, 0].tolist() == [
        (i + 1) * length for i, length in enumerate(lengths.tolist())
    ]
    assert shapes == [(8, 9), (4, 9)]
    shapes.clear()
    TransformerClassifier(Network())({"input_ids": ids, "attention_mask": mask[torch.arange(12) // 8]})
    assert shapes == [(8, 1), (4, 9)]


def test_a_bag_of_words_does_not_see_padding_or_order():
    task = replace(task_of(4), train=[({"input_ids": torch.ones(4), "attention_mask": torch.ones(4)}, 0)])
    model = make_model("bag", task, words=20).eval()
    ids, mask = torch.tensor([[3, 5, 7], [7, 3, 5], [3, 5, 9]]), torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    one, two, shorter = model({"input_ids": ids, "attention_mask": mask})
    assert torch.allclose(one, two, atol=1e-6)
    assert torch.allclose(shorter, model({"input_ids": ids[2:, :2], "attention_mask": mask[2:, :2]})[0], atol=1e-6)
    assert not torch.allclose(one, shorter)
    assert one.shape == (10,)
    assert all(p.requires_grad for p in model.parameters())


def test_lower_layers_stay_as_they_are_and_a_bag_has_the_transformer_s_words(tmp_path):
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 12}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "max_position_embeddings": 8, **sizes}))
    model = transformer(2, tmp_path, pretrained=False, frozen=1)
    trained = {name.removeprefix("model.bert.").split("pooler")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[2] for name in trained if name.startswith("encoder")} == {"1", "2"}
    assert not any(name.startswith("embeddings") for name in trained)
    assert all(p.requires_grad for p in transformer(2, tmp_path, pretrained=False).parameters())
    words = bag(2, tmp_path, pretrained=False)
    assert words.embedding.weight.shape == (12, 8)
    assert not words.embedding.weight.requires_grad
    assert torch.allclose(words.embedding.weight.std(0), torch.ones(8))


def test_two_headed_outputs_are_one():
    class Network(nn.Module):
        def forward(self, x):
            return types.SimpleNamespace(logits=x.mean((2, 3)))

    assert Sized(Network(), 4)(torch.ones(1, 3, 2, 2)).shape == (1, 3)
