"""What adapted classifiers and detectors share as models of transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import UserError
from .loading import align_memory, refuse_lost_tensors
from .origin import note_checkpoint

__all__ = ["MetaAlignModel"]


class MetaAlignModel(PreTrainedModel):
    """A model of transformers, at `base_model_prefix`, with alignment heads at `alignment`.

    Attributes:
        alignment_scale: Scalar by which the gradient is multiplied that alignment sends into the inner model, while
            alignment heads learn as ever; None leaves it as it is. Set for a step, and never saved.
        frozen_modules: Those of which nothing trains, since `freeze` was called; they stay in evaluation mode.
    """

    alignment_scale: Tensor | None = None
    frozen_modules: Sequence[nn.Module] = ()

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: constructors initialise the heads, and the inner model, a `PreTrainedModel`, does so itself."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As `PreTrainedModel.from_pretrained`, but a checkpoint that lacks a tensor is refused.

        Raises:
            UserError: If tensors are missing or have another shape than the configuration says.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        place = args[0] if args else kwargs.get("pretrained_model_name_or_path")
        refuse_lost_tensors(info, place)
        note_checkpoint(model.config, place, kwargs)
        align_memory(model)
        return (model, info) if output_loading_info else model

    def train(self, mode: bool = True) -> Self:
        """As of any module, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules:
            module.eval()
        return self

    def parameter_roles(self) -> dict[str, dict[str, nn.Parameter]]:
        """Named trainable parameters by role: `backbone`, `head` and `discriminator`, as `_role_of` tells them."""
        roles: dict[str, dict[str, nn.Parameter]] = {"backbone": {}, "head": {}, "discriminator": {}}
        role_of = self._role_of()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                roles[role_of(name, parameter)][name] = parameter
        return roles

    def _role_of(self) -> Callable[[str, nn.Parameter], str]:
        """Tells the role of a parameter."""
        raise NotImplementedError

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Trade compute for memory in the inner model.

        Raises:
            UserError: If it cannot recompute its activations.
        """
        with warnings.catch_warnings():
            # transformers 5 renames the method; this name works in every release that we support.
            warnings.simplefilter("ignore", FutureWarning)
            try:
                self.base_model.gradient_checkpointing_enable(*args, **kwargs)
            except (ValueError, AssertionError) as error:
                name = getattr(self.config, "backbone_name", None) or getattr(self.config, "detector_name", None)
                raise UserError(
                    f"training.gradient_checkpointing: {name} cannot recompute its activations; leave it out"
                ) from error

    def gradient_checkpointing_disable(self) -> None:
        """Undo `gradient_checkpointing_enable`."""
        self.base_model.gradient_checkpointing_disable()

    def get_input_embeddings(self) -> nn.Module | None:
        """None: images have none. Accelerate would shard those of a backbone a second time, within another layer."""
        return None
