"""A zero-shot head says what its dual encoder says."""

import pytest
import torch
from transformers import AutoTokenizer, TimmWrapperForImageClassification, pipeline

from metaalign_hf import MetaAlignForImageClassification, UserError
from metaalign_hf.models.dual_encoders import load_dual_encoder
from tests.helpers.dual_encoders import write_dual_encoder

LABELS = ["red", "blue", "square", "circle_two"]
CASES = [("clip", "quick_gelu"), ("clip", "gelu"), ("siglip", "gelu_pytorch_tanh")]


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator))


@pytest.mark.parametrize(("kind", "act"), CASES)
def test_its_predictions_are_the_dual_encoders(kind, act, tmp_path):
    """The image tower is the same function, and logits differ by the length of an image's embedding alone."""
    encoder = write_dual_encoder(tmp_path / "encoder", kind, act=act)
    model = MetaAlignForImageClassification.from_dual_encoder(
        str(tmp_path / "encoder"), LABELS, "cdan", images=images(8)
    )
    pixels = model.image_processor()(images(16), input_data_format="channels_first", return_tensors="pt")[
        "pixel_values"
    ]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    padding = "max_length" if kind == "siglip" else "longest"
    texts = [f"a photo of a {label.replace('_', ' ')}" for label in LABELS]
    tokens = tokenizer(texts, padding=padding, max_length=12, return_tensors="pt")
    given = {"input_ids": tokens["input_ids"]} | (
        {"attention_mask": tokens["attention_mask"]} if kind == "clip" else {}
    )
    with torch.no_grad():
        expected = encoder(pixel_values=pixels, **given).logits_per_image
        embedded = encoder.get_image_features(pixels).pooler_output
        output = model(pixels)
    assert torch.equal(output.logits.argmax(1), expected.argmax(1)) and len(expected.argmax(1).unique()) > 1
    bias = encoder.logit_bias.detach() if kind == "siglip" else 0.0
    lengths = embedded.norm(dim=1, keepdim=True)
    assert torch.allclose((output.logits - bias) / (expected - bias), lengths / lengths[:8].mean(), rtol=1e-3)
    if kind == "siglip":
        assert torch.allclose(output.features, embedded, atol=1e-5)

    model.save_pretrained(tmp_path / "adapted")
    loaded = MetaAlignForImageClassification.from_pretrained(tmp_path / "adapted").eval()
    native = loaded.export_native().eval()
    assert isinstance(native, TimmWrapperForImageClassification)
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, output.logits) and torch.equal(native(pixels).logits, output.logits)


def test_several_prompts_are_averaged(tmp_path):
    write_dual_encoder(tmp_path / "encoder", "clip")
    one, other, both = (
        load_dual_encoder(str(tmp_path / "encoder"), LABELS, prompts).text
        for prompts in ("a photo of {label}", "the {label}", ["a photo of {label}", "the {label}"])
    )
    mean = one + other
    assert torch.allclose(both, mean / mean.norm(dim=1, keepdim=True), atol=1e-6) and not torch.allclose(one, both)


def test_what_is_no_dual_encoder_is_refused(tmp_path):
    model = MetaAlignForImageClassification.from_backbone("resnet", ["a", "b"], pretrained=False)
    model.export_native().save_pretrained(tmp_path / "resnet")
    with pytest.raises(UserError, match="needs a model with a text tower .* is a resnet model"):
        load_dual_encoder(str(tmp_path / "resnet"), LABELS)
    with pytest.raises(UserError, match="must hold {label}"):
        load_dual_encoder(str(tmp_path / "resnet"), LABELS, "a photo")
    write_dual_encoder(tmp_path / "encoder", "clip")
    (tmp_path / "encoder" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_dual_encoder(str(tmp_path / "encoder"), LABELS)
    assert "\n" not in str(caught.value)


def test_a_pipeline_serves_the_native_form(tmp_path):
    from PIL import Image

    write_dual_encoder(tmp_path / "encoder", "siglip")
    model = MetaAlignForImageClassification.from_dual_encoder(str(tmp_path / "encoder"), LABELS, None, images=images(4))
    model.export_native().save_pretrained(tmp_path / "native")
    model.image_processor().save_pretrained(tmp_path / "native")
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "image.png")
    assert pipeline("image-classification", str(tmp_path / "native"))(str(tmp_path / "image.png"))[0]["label"] in LABELS
