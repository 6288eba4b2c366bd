"""Pseudo-labels of a mean teacher for target images, as a third term of a detector's step.

::

    L = L_task(source) + weight L_task(strong view of the target, boxes of the teacher on the weak view) + L_alignment

The teacher is the moving average of the weights (`training.ema_decay`). The first two terms are the task objective, so
MetaAlign coordinates their sum with alignment.

Sources: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017 (the average as the teacher); Liu
et al., "Unbiased Teacher for Semi-Supervised Object Detection", ICLR 2021 (weak and strong views, a threshold on the
score); Zhao et al., "Masked Retraining Teacher-Student Framework for Domain Adaptive Object Detection" (MRT), ICCV 2023
(for detectors of the DETR family, with a threshold for each class).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, nms
from torchvision.transforms import v2

from ..errors import UserError
from ..tasks.base import Batch
from .base import Pass, TargetContext, TargetLoss, TargetStep
from .counts import CountThresholds, normalised_by_batch
from .registry import register_target_loss
from .views import normalisation

__all__ = ["MeanTeacher", "strong_view"]

_DUPLICATE_IOU = 0.7
# As in MRT: colours and sharpness alone, so that boxes on the weak view are right on the strong one.
_STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5),
    ]
)

CITATION = """\
@inproceedings{tarvainen2017mean,
  title     = {Mean Teachers Are Better Role Models: Weight-Averaged Consistency Targets Improve Semi-Supervised Deep
               Learning Results},
  author    = {Tarvainen, Antti and Valpola, Harri},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2017}
}"""


@register_target_loss("mean_teacher", task="object-detection", citation=CITATION)
class MeanTeacher(TargetLoss):
    """The detection loss on a strong view of target images, with pseudo-labels of the teacher on the weak view.

    Args:
        context: The classes, the detector's image processor, and what makes class probabilities `(B, Q, K)` of logits.
        threshold: Least score of a pseudo-label: one number, or one for each class name; or `counts`, so that the
            teacher finds as many objects of each class in an image as the source has (`CountThresholds`). The teacher
            then normalises by the batch that it labels.

    Raises:
        UserError: If the thresholds are not those of the classes.
    """

    needs_teacher = True

    def __init__(self, context: TargetContext, *, threshold: float | dict[str, float] | str = 0.5) -> None:
        super().__init__()
        labels = context.labels
        if isinstance(threshold, dict) and set(threshold) != set(labels):
            unknown, missing = sorted(set(threshold) - set(labels)), sorted(set(labels) - set(threshold))
            wrong = f"{', '.join(unknown)} is not a class" if unknown else f"{', '.join(missing)} has none"
            raise UserError(
                f"training.pseudo_label_threshold: {wrong}; give one number, or one for each of {', '.join(labels)}"
            )
        self.counts = CountThresholds(len(labels)) if threshold == "counts" else None
        given = 0.0 if self.counts is not None else threshold
        values = [given[name] for name in labels] if isinstance(given, dict) else [given] * len(labels)
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(
                    f"training.target_losses mean_teacher: threshold is {value!r}: it must lie in 0..1, or be counts"
                )
        assert context.probabilities is not None, "a detector's probabilities are needed"
        self.boxes = 0.0
        self.thresholds = torch.tensor(values)
        self.probabilities = context.probabilities
        self.mean, self.std = normalisation(context.processor)

    def passes(self, step: TargetStep) -> tuple[list[Pass], dict[str, float]]:
        """The task loss on the strong views."""
        if self.counts is None:
            views, figures = self.label(step.teacher, step.target)
        else:
            self.counts.count(step.source)
            with normalised_by_batch(step.teacher, step.model):
                views, figures = self.label(step.teacher, step.target)
        self.boxes += figures["pseudo_boxes"]
        return [step.task_pass(batch, view) for batch, view in zip(step.source, views, strict=True)], figures

    def note(self, steps: int) -> str:
        """How many pseudo-labels there were."""
        return f"Mean teacher: {self.boxes / steps:.3g} pseudo-labels per target image, averaged over the adaptation."

    def state_dict(self) -> dict[str, Any]:
        """The pseudo-labels counted so far, and what their thresholds come from."""
        counts = {} if self.counts is None else {"counts": self.counts.state_dict()}
        return {"pseudo_boxes": self.boxes, **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.boxes = state["pseudo_boxes"]
        if self.counts is not None:
            self.counts.load_state_dict(state["counts"])

    def label(self, teacher: nn.Module, target: Sequence[Batch]) -> tuple[list[Batch], dict[str, float]]:
        """Strong views of the target's images, with what the teacher finds in them.

        An image in which it finds nothing has labels None, which is different from an image without objects: a teacher
        that is not sure has not seen that nothing is there. (MRT does teach "no object" on such images.)

        Args:
            teacher: The average of the weights, in eval mode.
            target: Micro-batches, which are the weak views: `pixel_values` `(B, 3, H, W)`, perhaps `pixel_mask`.

        Returns:
            For each micro-batch a batch for the student; and figures for the log, `pseudo_boxes` per image and
            `pseudo_images`, the share of images with any.
        """
        given, counts = [], []
        for batch in target:
            labels = self._found(teacher, batch)
            counts += [0 if entry is None else len(entry["boxes"]) for entry in labels]
            strong = strong_view(batch["pixel_values"], batch.get("pixel_mask"), self.mean, self.std)
            given.append({**batch, "pixel_values": strong, "labels": labels})
        found = sum(count > 0 for count in counts)
        return given, {"pseudo_boxes": sum(counts) / len(counts), "pseudo_images": found / len(counts)}

    def _found(self, teacher: nn.Module, batch: Batch) -> list[dict[str, Tensor] | None]:
        """For each image the boxes with a score of at least their class's threshold; None where there are none."""
        candidates = self.candidates(teacher, batch)
        if self.counts is None:
            keeps = [torch.ones_like(classes, dtype=torch.bool) for _, _, classes in candidates]
        else:
            self.counts.see([(scores, classes) for _, scores, classes in candidates])
            least = self.counts.values()
            keeps = [scores >= least.to(scores)[classes] for _, scores, classes in candidates]
        return [
            {"class_labels": classes[keep], "boxes": boxes[keep]} if bool(keep.any()) else None
            for (boxes, _, classes), keep in zip(candidates, keeps, strict=True)
        ]

    @torch.no_grad()
    def candidates(self, teacher: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image boxes `(n, 4)`, scores and classes `(n,)` of the sure queries, duplicates left out."""
        output = teacher(**{key: batch[key] for key in ("pixel_values", "pixel_mask") if key in batch})
        scores, classes = self.probabilities(output.logits.float()).max(-1)
        sure = scores >= self.thresholds.to(scores)[classes]
        found = []
        for row, keep in enumerate(sure):
            boxes = output.pred_boxes[row, keep].float()
            # One object may have several queries; a student that is taught two boxes for it finds ever more of them.
            chosen = nms(box_convert(boxes, "cxcywh", "xyxy"), scores[row, keep], _DUPLICATE_IOU)
            found.append((boxes[chosen], scores[row, keep][chosen], classes[row, keep][chosen]))
        return found


def strong_view(pixel_values: Tensor, pixel_mask: Tensor | None, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The same images in other colours and less sharp, each at random by torch's global numbers; padding stays.

    Args:
        pixel_values: Images `(B, 3, H, W)`, normalised.
        pixel_mask: `(B, H, W)`, 0 on padding; None where nothing is padded.
        mean: Mean per channel by which they were normalised, in 0..1.
        std: The same for the standard deviation.

    Returns:
        Images `(B, 3, H, W)`, normalised.
    """
    shift, scale = (pixel_values.new_tensor(values).view(3, 1, 1) for values in (mean, std))
    plain = pixel_values * scale + shift
    strong = (torch.stack([_STRONG(image) for image in plain]) - shift) / scale
    return strong if pixel_mask is None else torch.where(pixel_mask[:, None].bool(), strong, pixel_values)
