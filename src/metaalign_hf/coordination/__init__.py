"""The MetaAlign step: turn a task objective and an alignment objective into one gradient.

Usable alone in any PyTorch loop, with any optimiser and any model; it needs nothing but torch::

    meta = MetaAlign(optimizer, inner_lr=1.0, relative=True, first="task")
    report = meta.backward(task=[lambda: task_loss()], alignment=[lambda: alignment_loss()])
    optimizer.step()

One objective is the meta-train objective, the other the meta-test objective, and the roles swap from step to step::

    theta' = theta - alpha * g_train(theta)                    inner step
    .grad  = g_train(theta) + g_test(theta')                   first order: theta' is held constant

By Taylor, ``L_test(theta - alpha g_train) = L_test(theta) - alpha <g_train, g_test> + ...``: following this gradient
over two steps with swapped roles raises the inner product of the two gradients.

The inner step is taken by *perturb and restore*: the parameters are moved in place, the meta-test loss runs backward
through the very same module, and an exact copy is put back. No functional call and no double graph is needed, so the
step costs two passes and is exact under DDP and FSDP2, with any attention kernel, under torch.compile and gradient
checkpointing. What cannot work: optimisers and engines that hide the parameters or step by themselves (DeepSpeed ZeRO),
and the second order under FSDP2.

Source: Wei, Lan, Zeng, Chen, "MetaAlign: Coordinating Domain Alignment and Classification for Unsupervised Domain
Adaptation", CVPR 2021, section 3.
"""

from .closures import StepClosures
from .coordinator import Coordinator
from .game import SOLVERS, DoublyPerturbed, Game
from .gradient_memory import GradientMemory
from .group_weights import GroupWeights
from .inner_step import RULES, SCOPES, InnerStep, step_sizes
from .joint import Joint
from .metaalign import MetaAlign
from .remembered import REMEMBERED, RememberedMetaAlign
from .report import ROLES, StepReport
from .roles import SCHEDULES, Roles
from .share import AlignmentShare
from .shared_prefix import SharedPrefix
from .stages import Stage, find_stages, trunk_stages
from .statistics import frozen_running_statistics, has_live_statistics

__all__ = [
    "REMEMBERED",
    "ROLES",
    "RULES",
    "SCHEDULES",
    "SCOPES",
    "SOLVERS",
    "AlignmentShare",
    "Coordinator",
    "DoublyPerturbed",
    "Game",
    "GradientMemory",
    "GroupWeights",
    "InnerStep",
    "Joint",
    "MetaAlign",
    "RememberedMetaAlign",
    "Roles",
    "SharedPrefix",
    "Stage",
    "StepClosures",
    "StepReport",
    "find_stages",
    "frozen_running_statistics",
    "has_live_statistics",
    "step_sizes",
    "trunk_stages",
]
