"""Tiny dual encoders with random weights and a tokenizer of words, as folders."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

_WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "bad",
    "square",
    "circle",
    "red",
    "blue",
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
]
_TOWER = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 40}


def write_dual_encoder(folder: Path, kind: str, *, words: list[str] = (), act: str | None = None) -> PreTrainedModel:
    """A CLIP or SigLIP of a few thousand parameters for images of 16 pixels."""
    known = {word: number for number, word in enumerate(["<pad>", "<unk>", *_WORDS, *words, "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", known["</s>"])])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=12
    )
    text = {**_TOWER, "vocab_size": len(known), "max_position_embeddings": 12, "eos_token_id": known["</s>"]}
    text |= {"pad_token_id": 0, "bos_token_id": 1}
    vision = {**_TOWER, "image_size": 16, "patch_size": 8, **({"hidden_act": act} if act else {})}
    torch.manual_seed(0)
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    else:
        model = SiglipModel(SiglipConfig(text_config={**text, "projection_size": 24}, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():  # nothing that is zero or one, so that a mix-up shows
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    BitImageProcessor(
        size={"height": 16, "width": 16},
        crop_size={"height": 16, "width": 16},
        image_mean=[0.5] * 3,
        image_std=[0.3] * 3,
    ).save_pretrained(folder)
    return model
