"""The tiny networks of the laws: a class head and a domain head behind gradient reversal, as plain as can be."""

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig, RTDetrConfig, RTDetrForObjectDetection

from metaalign_hf.alignment import reverse_gradient


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.Tanh(), nn.Conv2d(6, 8, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 8)
    )


def vit() -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, depth=4, embed_dim=12, num_heads=2, num_classes=8
    )
    for block in model.blocks:
        block.attn.fused_attn = False
    return model


def resnet() -> nn.Module:
    return timm.create_model("resnet18", num_classes=8)


NETWORKS = {"conv": conv_net, "vit": vit, "resnet": resnet}


class Classifier(nn.Module):
    """A network with a class head and a domain head."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network
        self.classifier = nn.Linear(8, 3)
        self.discriminator = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))

    def forward(self, images: torch.Tensor, labels: torch.Tensor, objective: str) -> torch.Tensor:
        """The loss of an objective; `labels` are classes or, for alignment, domains."""
        features = self.backbone(images)
        if objective == "task":
            return F.cross_entropy(self.classifier(features), labels)
        logits = self.discriminator(reverse_gradient(features, 0.7)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, labels)

    def task(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self(images, labels, "task")

    def alignment(self, images: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        return self(images, domains, "alignment")


class Detector(nn.Module):
    """A DETR-style detector, and a domain head on its encoder's output."""

    def __init__(self, detector: nn.Module, width: int) -> None:
        super().__init__()
        self.detector = detector
        self.discriminator = nn.Linear(width, 1)

    def task(self, images: torch.Tensor, labels: list) -> torch.Tensor:
        return self.detector(images, labels=labels).loss

    def alignment(self, images: torch.Tensor, domains: torch.Tensor) -> torch.Tensor:
        tokens = self.detector(images).encoder_last_hidden_state
        tokens = tokens[-1].flatten(2).transpose(1, 2) if isinstance(tokens, list | tuple) else tokens
        logits = self.discriminator(reverse_gradient(tokens.mean(1), 0.7)).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, domains)


def detr() -> Detector:
    backbone = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, d_model=8, encoder_ffn_dim=8, decoder_ffn_dim=8,
        num_queries=4, num_labels=3, **sizes,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = DetrForObjectDetection(config)
    model.model.unfreeze_backbone()
    return Detector(model, 8)


def rt_detr() -> Detector:
    config = RTDetrConfig(
        backbone_config={
            "model_type": "rt_detr_resnet", "embedding_size": 4, "hidden_sizes": [4, 4, 8, 8], "depths": [1, 1, 1, 1],
            "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
        },
        encoder_hidden_dim=8, encoder_in_channels=[4, 8, 8], encoder_ffn_dim=8, encoder_attention_heads=1, d_model=8,
        decoder_in_channels=[8, 8, 8], decoder_ffn_dim=8, decoder_layers=1, decoder_attention_heads=1, num_queries=4,
        num_denoising=0, num_labels=3, decoder_n_points=1, freeze_backbone_batch_norms=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    return Detector(RTDetrForObjectDetection(config), 8)


DETECTORS = {"detr": detr, "rt_detr": rt_detr}
