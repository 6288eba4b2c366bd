"""A tiny member of every detector family, from configurations: no network."""

from typing import Any

from transformers import ConvNextConfig, PreTrainedConfig, ResNetConfig, RTDetrResNetConfig

from metaalign_hf import MetaAlignForObjectDetection

LABELS = ["cat", "dog", "eel"]


def resnet(**options: Any) -> PreTrainedConfig:
    return ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        **{"out_features": ["stage2", "stage3", "stage4"], **options},
    )


def _transformer(**options: Any) -> dict[str, Any]:
    return {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 7,
        **options,
    }


def _hybrid(**options: Any) -> dict[str, Any]:
    return {
        "encoder_in_channels": [12, 16, 20],
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "feat_strides": [8, 16, 32],
        "d_model": 32,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 32,
        "decoder_attention_heads": 4,
        "decoder_layers": 2,
        "num_queries": 7,
        "num_denoising": 6,
        "hidden_expansion": 0.5,
        "freeze_backbone_batch_norms": False,
        **options,
    }


def _vit(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
        "out_indices": [1, 3],
        **options,
    }


def detector_settings() -> dict[str, tuple[str, dict[str, Any]]]:
    """Model type and options by family; made anew on each call, since configurations are mutable."""
    two_stage = {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 7}
    return {
        "detr": ("detr", _transformer(backbone_config=resnet())),
        "detr_timm": ("detr", _transformer(backbone_config=timm())),
        "detr_convnext": ("detr", _transformer(backbone_config=convnext())),
        "conditional_detr": ("conditional_detr", _transformer(backbone_config=resnet())),
        "dab_detr": (
            "dab-detr",
            {**{k: v for k, v in _transformer(backbone_config=resnet()).items() if k != "d_model"}, "hidden_size": 32},
        ),
        "deformable_detr": ("deformable_detr", _transformer(backbone_config=resnet(), num_feature_levels=4)),
        "deformable_two_stage": ("deformable_detr", _transformer(backbone_config=resnet(), **two_stage)),
        "rt_detr": ("rt_detr", _hybrid(backbone_config=rt_resnet())),
        "rt_detr_v2": ("rt_detr_v2", _hybrid(backbone_config=rt_resnet())),
        "d_fine": ("d_fine", _hybrid(backbone_config=resnet())),
        "deimv2": ("deimv2", _hybrid(backbone_config=resnet())),
        "lw_detr": ("lw_detr", _group(backbone_config=_lw_vit(), projector_scale_factors=[1.0])),
        "rf_detr": ("rf_detr", _group(backbone_config=_vit(model_type="rf_detr_dinov2", num_windows=2))),
        "yolos": (
            "yolos",
            {
                "hidden_size": 32,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 64,
                "image_size": [64, 64],
                "patch_size": 16,
                "num_detection_tokens": 7,
                "use_mid_position_embeddings": False,
            },
        ),
    }


def timm() -> PreTrainedConfig:
    from transformers import TimmBackboneConfig

    return TimmBackboneConfig(backbone="resnet10t", use_pretrained_backbone=False, out_indices=[3, 4])


def convnext() -> PreTrainedConfig:
    return ConvNextConfig(
        hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )


def rt_resnet() -> PreTrainedConfig:
    return RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _group(**options: Any) -> dict[str, Any]:
    return {
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_self_attention_heads": 4,
        "decoder_cross_attention_heads": 4,
        "decoder_ffn_dim": 32,
        "num_queries": 7,
        "group_detr": 3,
        "num_feature_levels": 1,
        "hidden_expansion": 0.5,
        **options,
    }


def _lw_vit() -> dict[str, Any]:
    windows = {"pretrain_image_size": 64, "window_block_indices": [0], "num_windows": 4}
    return _vit(model_type="lw_detr_vit", **windows)


def tiny_detector(family: str, alignment: Any = "detr", **options: Any) -> MetaAlignForObjectDetection:
    """A detector with random weights."""
    model_type, settings = detector_settings()[family]
    return MetaAlignForObjectDetection.from_detector(
        model_type, LABELS, alignment, pretrained=False, **{**settings, **options}
    )
