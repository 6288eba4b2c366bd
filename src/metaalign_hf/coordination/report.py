"""What a step measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

__all__ = ["ROLES", "StepReport"]

ROLES = ("task", "alignment")


@dataclass(frozen=True)
class StepReport:
    """What one step measured. Tensors are detached and stay on their device until `to_dict` is called.

    Attributes:
        first: The meta-train objective of this step ("task" or "alignment"), or "joint".
        task_loss: Task loss, averaged over the micro-batches; None where the step was skipped before its pass.
            With smoothing it is that before the ascent, and the task gradient of all figures is that after it.
        alignment_loss: The same for the alignment loss.
        task_gradient_norm: Euclidean norm of the task gradient; None where the two gradients were not separated.
        alignment_gradient_norm: The same for the alignment gradient.
        inner_product: `<g_task, g_alignment>` over the parameters that receive both. For `MetaAlign` the meta-test
            gradient is taken at theta'.
        cosine: `inner_product / (|g_task| |g_alignment|)` with both norms over those shared parameters, so that a
            discriminator, which only one objective trains, does not dilute it. 0 where one of the norms is 0. Where the
            step was given a penalty that stands in both losses, g_alignment is here the gradient of the alignment term
            alone, without it.
        penalty_cosine: Cosine of the task gradient with that of the penalty, where one was given.
        penalty_gradient_norm: Norm of the penalty's gradient, as it stands in the alignment loss.
        displacement: `|theta' - theta|`, the length of the inner step; 0 for `Joint`.
        skipped: Whether a scaled gradient overflowed, so that the gradient scaler will skip this step.
        groups: Names of the parameter groups, where there are groups.
        group_cosines: Cosine in each group, `(G,)`.
        group_inner_products: Inner product in each group, `(G,)`.
        group_weights: Weight of each group's inner step, `(G,)`.
    """

    first: str
    task_loss: Tensor | None
    alignment_loss: Tensor | None
    task_gradient_norm: Tensor | None = None
    alignment_gradient_norm: Tensor | None = None
    inner_product: Tensor | None = None
    cosine: Tensor | None = None
    penalty_cosine: Tensor | None = None
    penalty_gradient_norm: Tensor | None = None
    displacement: Tensor | None = None
    skipped: bool = False
    groups: Sequence[str] = ()
    group_cosines: Tensor | None = None
    group_inner_products: Tensor | None = None
    group_weights: Tensor | None = None

    def to_dict(self) -> dict[str, float | str]:
        """The report as flat plain values (this waits for the device); what was not measured is left out.

        Figures of a group are named `cosine/GROUP`, `inner_product/GROUP` and `weight/GROUP`.
        """
        values: dict[str, float | str] = {"first": self.first}
        if self.skipped:
            values["skipped"] = 1.0
        for name, value in vars(self).items():
            if not isinstance(value, Tensor):
                continue
            if name.startswith("group_"):
                short = name.removeprefix("group_").removesuffix("s")
                values.update({f"{short}/{g}": v for g, v in zip(self.groups, value.tolist(), strict=True)})
            else:
                values[name] = float(value)
        return values
