"""Low-rank adapters: what trains, what is saved, and the plain model that they are merged into."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, pipeline

from metaalign_hf import MetaAlign, MetaAlignForImageClassification, UserError
from metaalign_hf.cli import run
from metaalign_hf.models.adapter_files import export_adapter
from tests.helpers.runs import assert_same_run, stopped_at_a_checkpoint, weights
from tests.helpers.squares import adapting, write_squares

VIT = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 16}
VIT |= {"patch_size": 8}


def tiny(name: str = "vit", **options) -> MetaAlignForImageClassification:
    torch.manual_seed(0)
    return MetaAlignForImageClassification.from_backbone(name, ["a", "b"], "dann", pretrained=False, **(options or VIT))


def test_it_begins_as_it_was_and_nothing_else_of_the_backbone_trains(tmp_path):
    model, images = tiny().eval(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        before = model(images).logits
        model.add_lora(r=4, alpha=8)
        assert torch.equal(model.eval()(images).logits, before)
    roles = model.parameter_roles()
    assert roles["backbone"] and all(".lora_" in name for name in roles["backbone"]) and roles["discriminator"]
    optimizer = torch.optim.SGD([p for role in roles.values() for p in role.values()], lr=0.1)
    labels, domains = torch.tensor([0, 1, -100, -100]), torch.tensor([0, 0, 1, 1])
    for _ in range(3):
        MetaAlign(optimizer, inner_lr=1.0).backward(
            [lambda: model(images[:2], labels[:2], objective="task").task_loss],
            [lambda: model(images, labels, domains, objective="alignment").alignment_loss],
        )
        optimizer.step()
    with torch.no_grad():
        trained = model.eval()(images).logits
        assert not torch.allclose(trained, before, atol=1e-3)
        model.save_pretrained(tmp_path / "adapted")
        loaded = MetaAlignForImageClassification.from_pretrained(tmp_path / "adapted").eval()
        assert torch.equal(loaded(images).logits, trained)
        assert loaded.parameter_roles()["backbone"].keys() == roles["backbone"].keys()
        loaded.export_native().save_pretrained(tmp_path / "native")
        native = AutoModelForImageClassification.from_pretrained(tmp_path / "native").eval()
        assert torch.allclose(native(images).logits, trained, atol=1e-5)
        assert not any("lora" in name for name in native.state_dict())


def test_a_layer_that_is_never_called_gets_no_adapter():
    """EVA-02 reads the weight of its qkv layer; an adapter there would train nothing."""
    model = tiny("timm/eva02_tiny_patch14_224", img_size=28)
    model.add_lora(r=2)
    chosen = model.config.lora["target_modules"]
    for name in chosen:
        torch.nn.init.normal_(model.backbone.get_submodule(name).lora_B["default"].weight)
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(model.eval().export_native().eval()(images).logits, model(images).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "timm/eva02_tiny_patch14_224"])
def test_gradient_checkpointing_gives_adapters_the_same_gradients(name):
    """Nothing before the first block trains, with which some ways of recomputing lose every gradient."""
    side = 16 if name == "vit" else 28
    model = tiny(name, **(VIT if name == "vit" else {"img_size": side}))
    model.add_lora(r=2)
    for key, parameter in model.named_parameters():
        if ".lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.05)
    images, labels, kept, gradients = torch.randn(4, 3, side, side), torch.tensor([0, 1, 1, 0]), [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        sizes: dict[int, int] = {}

        def keep(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.train()(images, labels).task_loss
        found = [parameter for key, parameter in model.named_parameters() if ".lora_" in key]
        gradients.append(torch.autograd.grad(loss, found))
        kept.append(sum(sizes.values()))
    assert all(map(torch.equal, *gradients)) and kept[1] < kept[0] / 2


def test_adapters_alone_are_what_peft_reads(tmp_path, capsys):
    """Small, on top of the plain base model, with the same logits."""
    from peft import PeftModel

    base = tiny()
    plain = base.export_native()
    plain.save_pretrained(tmp_path / "base")
    model = tiny().eval()
    model.add_lora(r=4)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "run")
    model.image_processor().save_pretrained(tmp_path / "run")
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--adapter"]) == 2
    assert "take the whole model, without --adapter" in capsys.readouterr().err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["lora"]["base"] = {"weights": "org/base", "revision": None}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert run(["export", str(tmp_path / "run"), str(tmp_path / "adapter"), "--adapter"]) == 0
    card = ModelCard.load(tmp_path / "adapter" / "README.md").data
    assert (card.base_model, card.base_model_relation, card.library_name) == ("org/base", "adapter", "peft")
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        found = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()(images).logits
        assert torch.allclose(found, model(images).logits, atol=1e-5)
    sizes = [
        (tmp_path / name).stat().st_size for name in ("run/model.safetensors", "adapter/adapter_model.safetensors")
    ]
    assert sizes[1] < sizes[0] / 2


def test_statistics_go_with_the_adapters(tmp_path):
    """Batch normalisation of a backbone with adapters moves in training, so that the base model's is not enough."""
    from peft import PeftModel

    model = tiny("timm/mobilevit_xxs", drop_rate=0.0)
    plain = model.export_native().eval()
    plain.save_pretrained(tmp_path / "base")
    model.add_lora(r=2)
    model.config.lora["base"] = {"weights": "timm/x", "revision": None}
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        model.train()(images)
        export_adapter(model.eval(), tmp_path, "--adapter")
        assert not torch.allclose(plain(images).logits, model(images).logits, atol=1e-3)
        found = PeftModel.from_pretrained(plain, tmp_path).eval()(images).logits
        assert torch.allclose(found, model(images).logits, atol=1e-5)
    based_on(tmp_path, tmp_path / "base")
    assert_same_model(MetaAlignForImageClassification.from_pretrained(tmp_path), model, images)


def based_on(adapters, base) -> None:
    """Let adapters name a folder as their base model, as a user may who has no network."""
    path = adapters / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))


def assert_same_model(found, model, images) -> None:
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state_dict().items())
    with torch.no_grad():
        assert torch.equal(found(images).logits, model(images).logits)


@pytest.fixture
def adapters(tmp_path):
    """Adapters alone with their base model in a folder, and the model that they are of."""
    model = MetaAlignForImageClassification.from_backbone(
        "vit", ["a", "b"], "gvb", pretrained=False, bottleneck_dim=8, **VIT
    )
    model.export_native().save_pretrained(tmp_path / "base")
    model.add_lora(r=4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()(torch.randn(8, 3, 16, 16))
    model.config.lora["base"] = {"weights": "org/base", "revision": "0" * 40}
    (tmp_path / "adapters").mkdir()
    export_adapter(model.eval(), tmp_path / "adapters", "--adapter")
    model.image_processor().save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters", model


def test_adapters_alone_are_read_back_as_the_very_model(adapters, tmp_path):
    """Heads that fold into one classifier for peft come back as they trained, and train on."""
    folder, model = adapters
    based_on(folder, tmp_path / "base")
    found, info = MetaAlignForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert_same_model(found, model, torch.randn(3, 3, 16, 16))
    assert not any(info.values()) and not found.training
    trained = [set(role) for role in model.parameter_roles().values()]
    assert [set(role) for role in found.parameter_roles().values()] == trained
    again = tmp_path / "again"
    again.mkdir()
    assert export_adapter(found, again, "--adapter") == "org/base"
    half = MetaAlignForImageClassification.from_pretrained(folder, dtype=torch.bfloat16)
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    with pytest.raises(UserError, match="loaded without device_map; merge them first"):
        MetaAlignForImageClassification.from_pretrained(folder, device_map="auto")


def test_adapters_that_cannot_be_read_are_refused(adapters, tmp_path, capsys):
    folder, _ = adapters
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    base = tmp_path / "base"

    def refused() -> str:
        assert run(["predict", str(folder), str(tmp_path / "image.png")]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("metaalign: ")]
        assert len(lines) == 1 and str(folder) in lines[0]
        return lines[0]

    assert f"its base model: org/base at revision {'0' * 40} is not in the local cache, and HF_HUB_OFFLINE" in refused()
    based_on(folder, base)
    assert run(["predict", str(folder), str(tmp_path / "image.png")]) == 0
    weights = load_file(base / "model.safetensors")
    moved = {key: value + 1e-3 if "attention" in key else value for key, value in weights.items()}
    save_file(moved, base / "model.safetensors", {"format": "pt"})
    assert "its adapters were trained on other weights than those of" in refused()
    save_file({key: value for key, value in weights.items() if "layer.3." not in key}, base / "model.safetensors")
    assert "lacks 16 tensors of the backbone, e.g. vit.layers.3" in refused()
    based_on(folder, tmp_path / "none")
    assert "none does not exist" in refused()
    based_on(folder, base)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    for name in ("adapter_model.safetensors", "metaalign_heads.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:100])
        assert f"{name} is damaged" in refused()
        (folder / name).write_bytes(whole)
    (folder / "metaalign_heads.safetensors").unlink()
    (folder / "metaalign_config.json").unlink()
    assert "it holds adapters without metaalign_config.json and metaalign_heads.safetensors" in refused()


@pytest.mark.parametrize(
    ("name", "lora", "said"),
    [
        ("resnet", {}, "resnet has no linear layers"),
        ("vit", {"target_modules": ["qvk"]}, "no linear layer of vit is called qvk; it has"),
        ("vit", {"r": 0}, "model.lora.r is 0: it must be a whole number, 1 or more"),
    ],
)
def test_bad_input(name, lora, said):
    options = VIT if name == "vit" else {"depths": [1, 1, 1, 1]}
    with pytest.raises(UserError, match=said) as caught:
        tiny(name, **options).add_lora(**lora)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("domains"))


def command(folders, output, *options: str) -> list[str]:
    return adapting(
        folders,
        output,
        "--model.backbone",
        "vit",
        "--model.backbone_options",
        json.dumps(VIT),
        "--model.lora",
        "{r: 4}",
        *options,
    )


def test_a_run(folders, tmp_path, monkeypatch):
    """Stages, an average, a checkpoint: stopped and resumed is never stopped; what is served is what was trained."""
    options = ["--coordination.groups", "stage", "--training.ema_decay", "0.9", "--training.checkpoint_every", "4"]
    options += ["--coordination.inner_scope", "last_stage", "--training.seed", "3"]
    assert run(command(folders, tmp_path / "whole", *options)) == 0
    assert stopped_at_a_checkpoint(monkeypatch, command(folders, tmp_path / "killed", *options)) == 130
    assert run(command(folders, tmp_path / "killed", *options, "--training.resume", "auto")) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    trained = weights(tmp_path / "whole")
    assert any(name.endswith("lora_B.default.weight") and tensor.any() for name, tensor in trained.items())
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert "hu2022lora" in (tmp_path / "whole" / "README.md").read_text()
    assert run(["export", str(tmp_path / "whole"), str(tmp_path / "native")]) == 0
    assert not any("lora" in name for name in load_file(tmp_path / "native" / "model.safetensors"))
    for place in ("whole", "native"):
        classify = pipeline("image-classification", model=str(tmp_path / place))
        files = sorted((folders / "tests").glob("*/*.png"))
        right = sum(classify(str(file), top_k=1)[0]["label"] == file.parent.name for file in files) / len(files)
        assert right == summary["target_accuracy_after"]


def test_adapters_and_a_frozen_backbone_are_two_ways(folders, tmp_path, capsys):
    assert run(command(folders, tmp_path / "run", "--model.freeze", "all")) == 2
    assert "model.freeze: adapters (model.lora) leave the backbone as it is anyway" in capsys.readouterr().err
    assert run(command(folders, tmp_path / "run", "--model.lora", "{rank: 4}")) == 2
    assert "model.lora.rank: unknown key; valid: r, alpha, target_modules" in capsys.readouterr().err
    hub = ["--hub.repo_id", "org/name", "--hub.adapter", "true"]
    assert run(command(folders, tmp_path / "run", *hub)) == 2
    assert "hub.adapter: adapters need a base model of the Hub of the same class" in capsys.readouterr().err
    assert run(command(folders, tmp_path / "run", *hub, "--hub.push_every", "2")) == 2
    assert "hub.push_every is 2: with hub.adapter true nothing reads it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
