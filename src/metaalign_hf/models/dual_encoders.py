"""Dual encoders (CLIP, SigLIP, SigLIP 2): their image tower as a backbone, and a classifier from their text tower.

The classifiers that transformers has for these models average the patches, which the text tower was never trained
against. Timm's image towers pool as the dual encoder does, so the image tower becomes the timm model of the same shape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from ..checks import PROMPT, check_prompts
from ..citations import cite
from ..errors import UserError, one_line
from ..progress import quiet_loading
from .backbone import BackboneSource, described_images, resolve_backbone
from .loading import require_in_reach
from .origin import loaded_commit

__all__ = ["ZeroShot", "load_dual_encoder"]

CITATION = """\
@inproceedings{radford2021learning,
  title     = {Learning Transferable Visual Models From Natural Language Supervision},
  author    = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and Goh, Gabriel and
               Agarwal, Sandhini and Sastry, Girish and Askell, Amanda and Mishkin, Pamela and Clark, Jack and
               Krueger, Gretchen and Sutskever, Ilya},
  booktitle = {International Conference on Machine Learning},
  year      = {2021}
}"""
cite("model/zero_shot", CITATION)

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
_LAYER = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_ELSEWHERE = {
    "embeddings.patch_embedding": "patch_embed.proj",
    "pre_layrnorm": "norm_pre",
    "post_layernorm": "norm",
    "head.attention.out_proj": "attn_pool.proj",
    "head.layernorm": "attn_pool.norm",
    "head.mlp.fc1": "attn_pool.mlp.fc1",
    "head.mlp.fc2": "attn_pool.mlp.fc2",
}


@dataclass(frozen=True)
class ZeroShot:
    """A dual encoder as an image classifier.

    Attributes:
        source: Of the backbone, a timm image tower.
        state: Tensors of the backbone, by the names of the timm model.
        projection: Projection `(P, D)` of the pooled feature into the common space; None where there is none.
        text: Text embeddings `(K, P)` of the classes, of length 1.
        scale: Factor on the cosine of image and text, which is one over the temperature.
        bias: What is added to it.
    """

    source: BackboneSource
    state: dict[str, Tensor]
    projection: Tensor | None
    text: Tensor
    scale: float
    bias: float

    def classifier(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Weight `(K, D)` and bias `(K,)` of the classifier on the pooled feature.

        With T the text embeddings, P the projection, s the scale and b the bias, the dual encoder says of a feature f::

            s T P f / |P f| + b

        A plain classifier cannot divide by a length of each image. It takes the mean length r over some images, which
        changes no prediction and keeps the temperature on average::

            W = (s / r) T P

        Args:
            features: Pooled features `(B, D)` of some images; of which, matters little.
        """
        projected = features if self.projection is None else features @ self.projection.T
        length = float(projected.norm(dim=1).mean())
        weight = self.text if self.projection is None else self.text @ self.projection
        return weight * (self.scale / length), torch.full((len(self.text),), self.bias)


def load_dual_encoder(name: str, labels: Sequence[str], prompts: str | Sequence[str] = PROMPT) -> ZeroShot:
    """Load a dual encoder and embed the names of the classes.

    Args:
        name: Hub id or folder of a CLIP, SigLIP or SigLIP 2 model with its tokenizer.
        labels: Class names; an underscore in one is read as a space.
        prompts: Texts with `{label}`; of several the mean of the embeddings is taken, as CLIP's authors do (Radford et
            al., ICML 2021, section 3.1.4).

    Raises:
        UserError: If it is no dual encoder, or cannot be loaded.
    """
    texts = [
        [prompt.replace("{label}", label.replace("_", " ")) for prompt in check_prompts(prompts, "prompts")]
        for label in labels
    ]
    require_in_reach(name, "model.backbone")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.backbone: {name!r} cannot be loaded ({one_line(error, first=True)})") from error
    if config.model_type not in ("clip", "siglip"):
        hint = "; of SigLIP 2 take a checkpoint of one image size" if config.model_type == "siglip2" else ""
        raise UserError(
            f"model.head: zero_shot needs a model with a text tower (CLIP, SigLIP or SigLIP 2), and {name!r} is a "
            f"{config.model_type} model{hint}"
        )
    source = _image_tower(name, config)
    try:
        with quiet_loading():
            model, info = AutoModel.from_pretrained(
                name, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # damaged files make the libraries raise nearly anything
        raise UserError(f"model.backbone: {name!r} cannot be loaded ({one_line(error, first=True)})") from error
    if info["missing_keys"]:
        lost = sorted(info["missing_keys"])
        raise UserError(f"model.backbone: {name} lacks {len(lost)} tensors of both towers, e.g. {lost[0]}")
    model.eval()
    with torch.no_grad():
        text = torch.stack([_embedded(model, tokenizer, prompts) for prompts in texts])
    projection = getattr(model, "visual_projection", None)
    bias = getattr(model, "logit_bias", None)
    return ZeroShot(
        source,
        _timm_state(model.vision_model.state_dict(), config.vision_config),
        None if projection is None else projection.weight.detach(),
        text,
        float(model.logit_scale.detach().exp()),
        0.0 if bias is None else float(bias.detach()),
    )


def _embedded(model: PreTrainedModel, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Mean embedding `(P,)` of the prompts of a class, of length 1."""
    length = model.config.text_config.max_position_embeddings
    # SigLIP was trained on texts that are filled up to the full length.
    padding = "max_length" if model.config.model_type == "siglip" else "longest"
    tokens = tokenizer(prompts, padding=padding, max_length=length, truncation=True, return_tensors="pt")
    mask = {} if padding == "max_length" else {"attention_mask": tokens["attention_mask"]}
    found = model.get_text_features(input_ids=tokens["input_ids"], **mask)
    embeddings = found if isinstance(found, Tensor) else found.pooler_output
    return F.normalize(F.normalize(embeddings.float(), dim=1).mean(0), dim=0)


def _image_tower(name: str, config: Any) -> BackboneSource:
    """The timm model of the shape of an image tower."""
    vision = config.vision_config
    if vision.hidden_act not in _ACTIVATIONS:
        raise UserError(f"model.backbone: {name!r} has the activation {vision.hidden_act}, which timm's towers lack")
    options = {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        "act_layer": _ACTIVATIONS[vision.hidden_act],
    }
    architecture = "vit_base_patch16_clip_224" if config.model_type == "clip" else "vit_base_patch16_siglip_224"
    built = resolve_backbone(architecture, pretrained=False, **options)
    mean, std, size = described_images(name)
    return BackboneSource(built.config, name, name, mean, std, size or vision.image_size, loaded_commit(name))


def _timm_state(state: dict[str, Tensor], vision: Any) -> dict[str, Tensor]:
    """Tensors of an image tower of transformers by the names of timm's."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, kind = key.rpartition(".")
        if layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", part):
            if layer[2] in _LAYER:
                found[f"blocks.{layer[1]}.{_LAYER[layer[2]]}.{kind}"] = value
        elif part in _ELSEWHERE:
            found[f"{_ELSEWHERE[part]}.{kind}"] = value
    for number in range(vision.num_hidden_layers):
        for kind in ("weight", "bias"):
            parts = [state[f"encoder.layers.{number}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            found[f"blocks.{number}.attn.qkv.{kind}"] = torch.cat(parts)
    found["pos_embed"] = state["embeddings.position_embedding.weight"][None]
    if "embeddings.class_embedding" in state:
        found["cls_token"] = state["embeddings.class_embedding"][None, None]
    if "head.probe" in state:
        found["attn_pool.latent"] = state["head.probe"]
        for kind in ("weight", "bias"):
            joined = state[f"head.attention.in_proj_{kind}"]
            width = len(joined) // 3
            found[f"attn_pool.q.{kind}"], found[f"attn_pool.kv.{kind}"] = joined[:width], joined[width:]
    return {f"timm_model.{key}": value.clone() for key, value in found.items()}
