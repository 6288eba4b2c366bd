"""A third task, whole: how bright is an image? It registers itself, and nothing else knows of it."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BitImageProcessor, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from metaalign_hf.alignment import AlignmentBatch, build_alignment
from metaalign_hf.data import DomainPair, ImageSet, evaluation_batches, preprocess, training_stream
from metaalign_hf.tasks import Measure, TaskKind, register_task
from metaalign_hf.tasks.base import Answer, Batch, Scores, StepClosures, Task

KIND = register_task(
    TaskKind(
        pipeline_tag="image-regression",
        auto_class="AutoModel",
        architectures="ForImageRegression",
        load=lambda: BrightnessTask,
        measures=(Measure("within", "share within 0.1", "within_0.1", indexed=True),),
        noun="regressor",
        doing="measuring",
        done="measured",
    )
)


class BrightnessConfig(PretrainedConfig):
    model_type = "brightness"

    def __init__(self, alignment: list | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alignment = alignment or []


class BrightnessForImageRegression(PreTrainedModel):
    config_class = BrightnessConfig
    base_model_prefix = "body"

    def __init__(self, config: BrightnessConfig) -> None:
        super().__init__(config)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 8), nn.ReLU())
        self.head = nn.Linear(8, 1)
        self.alignment = build_alignment(config.alignment, 8, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, domain_labels: Tensor | None = None):
        features = self.body(pixel_values)
        output = ModelOutput(brightness=self.head(features)[:, 0].sigmoid())
        if labels is not None:
            output["task_loss"] = F.mse_loss(output["brightness"][: len(labels)], labels / 100)
        if domain_labels is not None:
            output["alignment_loss"] = self.alignment(AlignmentBatch(features, features, domain_labels)).loss
        return output

    def parameter_roles(self) -> dict[str, dict[str, nn.Parameter]]:
        named = {name: p for name, p in self.named_parameters() if not name.startswith("head")}
        return {"backbone": named, "head": {f"head.{n}": p for n, p in self.head.named_parameters()}}


AutoConfig.register("brightness", BrightnessConfig)
AutoModel.register(BrightnessConfig, BrightnessForImageRegression)


class BrightnessTask(Task):
    kind = KIND

    def __init__(self, config: Any, pair: DomainPair, model: BrightnessForImageRegression) -> None:
        processor = BitImageProcessor(size={"height": 8, "width": 8}, do_center_crop=False)
        super().__init__(config, pair, model, processor)

    def stream(self, images: ImageSet, **options: Any) -> Iterator[Batch]:
        return training_stream(images, self.processor, **options)

    def closures(self, model: nn.Module, source: list[Batch], target: list[Batch], *_: Any) -> StepClosures:
        def both(s: Batch, t: Batch) -> tuple[Tensor, Tensor]:
            pixels, counts = torch.cat([s["pixel_values"], t["pixel_values"]]), torch.tensor([len(s["labels"])] * 2)
            output = model(pixels, labels=s["labels"], domain_labels=torch.arange(2).repeat_interleave(counts))
            return output["task_loss"], output["alignment_loss"]

        pairs = list(zip(source, target, strict=bool(target)))
        return StepClosures(
            task=[lambda s=s: model(s["pixel_values"], labels=s["labels"])["task_loss"] for s in source],
            alignment=[lambda s=s, t=t: both(s, t)[1] for s, t in pairs],
            both=[lambda s=s, t=t: both(s, t) for s, t in pairs],
        )

    @torch.no_grad()
    def scores(self, model: nn.Module, domain: str, view: ImageSet, *_: Any) -> Scores:
        (batch,) = evaluation_batches(view, self.processor, len(view))
        error = (model(batch["pixel_values"])["brightness"] - batch["labels"] / 100).abs()
        return {"within": float((error < 0.1).float().mean()), "n": len(view)}

    @staticmethod
    @torch.no_grad()
    def answers(model: Any, processor: Any, files: ImageSet, options: Any, skip: Any) -> Iterator[Answer]:
        for index, path in enumerate(files.paths):
            row = {"file": path.name, "brightness": float(model(preprocess([files[index]], processor))["brightness"])}
            yield Answer([f"{path.name} {row['brightness']:.2f}"], [row])
