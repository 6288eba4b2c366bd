"""Image classification as a task of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...batch_norm import batch_statistics
from ...configuration import Config
from ...coordination import SharedPrefix, has_live_statistics
from ...data import (
    DomainPair,
    ImageSet,
    augment,
    evaluation_batches,
    load_domain_pair,
    load_target,
    preprocess,
    training_stream,
)
from ...data.blocks import random_order
from ...data.domain_pair import LABELS
from ...data.fixed_views import with_fixed_views
from ...data.label_agreement import UNKNOWN
from ...errors import UserError
from ...evaluation import (
    FEWEST_IMAGES,
    CachedOutputs,
    Collected,
    collect_outputs,
    compute_validators,
    evaluate_classifier,
    gather_rows,
    get_validator,
    in_order,
    open_set,
    predict_probabilities,
)
from ...interruption import Interruption
from ...models import IGNORED_LABEL, MetaAlignForImageClassification
from ...models.origin import is_pretrained
from ...progress import track
from ...reports.outputs import MOST_FEATURES, MOST_IMAGES, classifier_outputs
from ...reports.target_images import Prediction, draw_target_images
from ...run_folder import TARGET_IMAGES_FILE
from ...target_losses import LogitsLoss, SelfTraining, TargetContext, build_target_losses
from ..base import Batch, Kept, Scores, StepClosures, Task, rows_of
from ..computed_once import computed_pair
from ..passes import full_passes, task_pass
from ..starting_point import check_labels, recorded_batch_norm
from ..summary import RunFacts, Summary
from . import IMAGE_CLASSIFICATION, serving
from .frozen import check_something_aligns, check_statistics_stay, leave_out_frozen_stages, why_not_cached
from .mixing import mix, together, with_target_labels
from .model import build_model, try_one_image, without_unused_alignment, zero_shot_labels
from .pair_checks import check_metric, check_open, check_sources

__all__ = ["ClassificationTask"]


_CACHED_VIEWS = 4
"""Augmented views of each training image, where features are cached and nothing is said."""

_EXAMPLES = 128
"""Target test images that are predicted for the picture: many enough to hold some that changed their class."""


class ClassificationTask(Task):
    """A domain pair of labelled images and a classifier; see `tasks.base.Task`.

    Args:
        config: The whole configuration.
        pair: The domain pair; by default the one that `config.data` describes.
        model: The model; by default the one that `config.model` describes.

    Raises:
        UserError: If the data or the model cannot be loaded, or their labels differ.
    """

    kind = IMAGE_CLASSIFICATION
    validator = "bnm"
    annotations = LABELS
    measure = staticmethod(serving.measure)
    answers = staticmethod(serving.answers)
    confidences = staticmethod(serving.confidences)

    def __init__(
        self,
        config: Config,
        pair: DomainPair[ImageSet] | None = None,
        model: MetaAlignForImageClassification | None = None,
    ) -> None:
        data, select_by = config.data, config.training.select_by
        if config.training.pseudo_label_weight > 0:
            raise UserError("training.pseudo_label_weight: pseudo-labels are for detectors; leave it at 0")
        check_statistics_stay(config)
        if select_by not in (None, "auto") and data.augmentation == "none" and get_validator(select_by).needs_augmented:
            raise UserError(
                f"training.select_by: {select_by} compares augmented views; set data.augmentation, or select by another"
            )
        if pair is None and data.source is None and config.model.checkpoint is None and model is None:
            name = str(config.model.backbone).rstrip("/").split("/")[-1]
            pair = load_target(data.target, zero_shot_labels(config), name, data.label_policy)
        elif pair is None and data.source is None:
            model = model or build_model(config.model, [])
            name = (config.model.checkpoint or model.config.backbone_name or "model").rstrip("/").split("/")[-1]
            pair = load_target(data.target, model.config.labels, name, data.label_policy)
        elif pair is None:
            assert data.source is not None
            pair = load_domain_pair(data.source, data.target, data.label_policy, data.target_labeled)
        model = model or build_model(without_unused_alignment(config), pair.labels, pair.target_train)
        check_labels(model.config.labels, pair.labels)
        pair = pair.in_order(model.config.labels)
        check_sources(config, pair, model)
        check_open(pair, model)
        check_metric(config, pair)
        if (reason := model.no_native_form()) is not None:
            raise UserError(f"model: what is trained could not be exported: {reason}")
        model.set_image_sizes(data.image_size, data.resize_size)
        super().__init__(config, pair, model, model.image_processor())
        if not pair.has_source:
            self._let_the_target_lead()
        try_one_image(model, self.processor)
        self.target_losses = build_target_losses(
            config.training.target_loss_specs, TargetContext(pair.labels, self.processor)
        )
        self._pictures = self.pair.target_test_images
        self._freeze()

    def _freeze(self) -> None:
        """What `model.freeze` says, and images in fixed views where that is said, or features are cached."""
        config, model = self.config, self.model
        if config.model.freeze != "none":
            model.freeze(config.model.freeze)
        if config.model.freeze == "all":
            self.statistics = batch_statistics("frozen", model, True)
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise UserError("model.freeze: with all of the backbone and, without a source, the head nothing trains")
            if config.coordination.method != "source_only":
                check_something_aligns(model)
        reason, views = why_not_cached(config, self.target_losses), config.data.views
        if reason is None and config.model.freeze != "all":
            reason = leave_out_frozen_stages(config, model, self.statistics.name)
        self._settle_cache(reason)
        if self.cached or views is not None:
            count = _CACHED_VIEWS if views is None else views
            self.pair = with_fixed_views(self.pair, self.processor, config.data.augmentation, count)

    @property
    def heads_alone(self) -> bool:
        """Where all of the backbone is left out."""
        return self.cached and self.config.model.freeze == "all"

    def prepare(self, accelerator: Accelerator, stop: Interruption) -> bool:
        """Compute what a frozen backbone, or its frozen stages, give."""
        if not self._cached_on(accelerator):
            return False
        self.pair = computed_pair(
            *(self.pair, self.model, self.processor, self.config, accelerator, self.bad_images, stop),
            # The stages after others take what these gave in the type that they gave it in.
            as_stored=self.config.model.freeze != "all",
        )
        return True

    @property
    def notes(self) -> list[str]:
        """Plain statements about the data, and about features that are computed once."""
        notes, data = super().notes, self.config.data
        freeze = self.config.model.freeze
        if freeze == "none":
            return notes
        what = "The frozen backbone's features are"
        if freeze != "all":
            what = "What the frozen stages give is" if freeze > 1 else "What the frozen stage gives is"
        if not self.cached:
            return [*notes, f"{what} computed in every pass: {self._without_cache}."]
        views = "" if data.augmentation == "none" else f" in {data.views or _CACHED_VIEWS} augmented views"
        return [*notes, f"{what} computed once for each image{views}."]

    def _let_the_target_lead(self) -> None:
        """Without a source the head stays as it learnt from labels, and statistics become the target's.

        Source: Liang et al., SHOT, ICML 2020, section 3: the classifier is frozen, the features move to it. Layers
        whose statistics were frozen when the model was trained stay so: its weights know no others.

        Selection asks whether predictions agree in augmented views: there is no source accuracy to guard it, and
        information maximisation raises bnm whatever becomes of the model.
        """
        if self.config.data.augmentation != "none":
            self.validator = "agreement"
        for module in (self.model.classifier, self.model.alignment):
            if module is not None:
                module.requires_grad_(False)
        if self.config.training.batch_norm == "auto":
            recorded = recorded_batch_norm(self.config.model.checkpoint)
            frozen = is_pretrained(self.model.config) if recorded is None else recorded == "frozen"
            self.statistics = batch_statistics("frozen" if frozen else "mixed", self.model, frozen)

    def stream(self, images: ImageSet, **options: Any) -> Iterator[Batch]:
        """Endless micro-batches of training images."""
        return training_stream(images, self.processor, **options)

    def with_target_labels(self, source: Batch, few: Batch) -> Batch:
        """Source rows and labelled target rows, see `with_target_labels`."""
        return with_target_labels(source, few)

    def closures(self, model: nn.Module, source: list[Batch], target: list[Batch], progress: float) -> StepClosures:
        """A task pass with the source's loss, an alignment pass on both domains, and one forward for a joint step."""
        statistics = self.statistics
        if not self.pair.has_source:
            self._move_statistics(model, target)
            return StepClosures()
        mixed = [mix(s, t) for s, t in zip(source, target, strict=True)] if target else []
        if mixed and (entry := self._shared_entry()) is not None:
            together = statistics.task_needs_target(model, "domain_labels" in source[0])
            return self._shared_closures(model, entry, source, mixed, progress, together)
        return full_passes(
            model,
            statistics,
            source,
            mixed,
            progress,
            penalty=bool(self._penalties),
            aligns=self.model.alignment is not None,
        )

    def target_pass(self, model: nn.Module, source: Batch, view: Batch) -> Callable[[], Tensor]:
        """A pass that returns the loss on target images, on both domains where batch statistics need it."""
        rows = None
        if self.statistics.task_needs_target(model):
            view = together({**source, "labels": torch.full_like(source["labels"], IGNORED_LABEL)}, view, 1)
            rows = rows_of(source, view)
        return task_pass(model, view, partial(self.statistics.task_pass, model, rows))

    def logits_pass(
        self, model: nn.Module, source: Batch, view: Batch, loss: Callable[[Tensor], Tensor]
    ) -> Callable[[], Tensor]:
        """A pass that returns a loss of the logits of target images, on both domains where batch statistics need it."""
        pixels, rows, first = view["pixel_values"], None, 0
        if self.pair.has_source and self.statistics.task_needs_target(model):
            mixed, first = mix(source, view), len(source["labels"])
            pixels, rows = mixed["pixel_values"], rows_of(source, mixed)
        # Without a source, running statistics are moved by plain views and by no augmented one.
        moves = not self.pair.has_source and view["plain"]

        def run() -> Tensor:
            with nullcontext() if moves else self.statistics.task_pass(model, rows):
                logits: Tensor = model(pixels).logits
            return loss(logits[first:])

        return run

    def _move_statistics(self, model: nn.Module, target: Sequence[Batch]) -> None:
        """Let running statistics follow the target's plain views, where no target loss passes these."""
        plain = any(isinstance(loss, LogitsLoss) and loss.plain for loss in self.target_losses)
        if not plain and self.statistics.one_pass_moves and has_live_statistics(model):
            with torch.no_grad():
                for batch in target:
                    model(batch["pixel_values"])

    def _shared_entry(self) -> nn.Module | None:
        """The submodule before which both passes of a step can share one run, or None for full passes."""
        coordination, training = self.config.coordination, self.config.training
        two_passes = coordination.method == "metaalign" and coordination.direction == "fresh"
        if not two_passes or self.target_losses or coordination.inner_scope == "all" or coordination.order == 2:
            return None
        if not coordination.share_prefix or training.gradient_checkpointing or training.compile:
            return None
        # Features of the whole backbone enter where the heads begin.
        return self.model.stage_entry("head" if self.heads_alone else coordination.inner_scope)

    def _shared_closures(
        self,
        model: nn.Module,
        entry: nn.Module,
        source: list[Batch],
        mixed: list[Batch],
        progress: float,
        together: bool,
    ) -> StepClosures:
        """Both passes on the mixed batch; past the entry the task's goes on with the target if it needs it."""
        prefixes, statistics = [SharedPrefix(self.model, entry) for _ in mixed], self.statistics

        def task(prefix: SharedPrefix, own: Batch, batch: Batch) -> Callable[[], Tensor]:
            rows, until = rows_of(own, batch), None if together else entry
            labels = (batch if together else own)["labels"]

            def run() -> Tensor:
                part = prefix.run(slice(len(labels)), freeze_statistics=statistics.one_pass_moves)
                with statistics.on_both(model, rows, until), part:
                    return model(batch["pixel_values"], labels=labels, objective="task").task_loss

            return run

        def alignment(
            prefix: SharedPrefix, own: Batch, batch: Batch, objective: str = "alignment"
        ) -> Callable[[], Tensor]:
            rows = rows_of(own, batch)

            def run() -> Tensor:
                with statistics.on_both(model, rows), prefix.run():
                    return model(**batch, progress=progress, objective=objective).alignment_loss

            return run

        passes = list(zip(prefixes, source, mixed, strict=True))
        return StepClosures(
            task=[task(*pass_) for pass_ in passes],
            alignment=[alignment(*pass_) for pass_ in passes],
            shared=prefixes,
            penalty=[alignment(*pass_, "penalty") for pass_ in passes] if self._penalties else [],
        )

    @property
    def _penalties(self) -> list[str]:
        """Names of the penalties that stand in both losses."""
        return [] if self.model.alignment is None else self.model.alignment.shared_penalties()

    @property
    def metric(self) -> str:
        """The measure that `training.metric` names."""
        return self.config.training.metric

    @property
    def validation_views(self) -> int:
        """Images are seen plain and, where training augments them, augmented."""
        return 1 if self.config.data.augmentation == "none" else 2

    def scores(
        self, model: nn.Module, domain: str, view: ImageSet, rank: int, world_size: int, kept: Kept | None
    ) -> Scores:
        """Figures on the test images of a domain."""
        size, source = self.config.training.evaluation_batch_size, domain == "source"
        outputs: list[tuple[Tensor, Tensor]] = []
        taught = [] if source else [loss for loss in self.target_losses if isinstance(loss, SelfTraining)]
        counts = torch.zeros(1, 3, dtype=torch.long, device=next(model.parameters()).device)
        collected = Collected(self._reported_order(view)[:MOST_FEATURES])

        def keep(output: Any, labels: Tensor) -> None:
            for loss in taught:
                counts.add_(counts.new_tensor(loss.judge(output.logits, labels)))
            if kept is not None and world_size == 1:
                collected.add(output.features, output.logits)
                if source:
                    outputs.append((output.features.float(), output.logits.float()))

        batches = evaluation_batches(view, self.processor, size, rank=rank, world_size=world_size)
        batches = track(batches, f"evaluating on {domain}", len(view), count=lambda b: world_size * len(b["labels"]))
        with self.statistics.as_source(model) if source else nullcontext():
            found = evaluate_classifier(model, batches, len(self.pair.labels), keep)
        logged: dict[str, Any] = {}
        for loss in taught:
            # For the report alone: how many of the labels that it accepts on labelled test images are right.
            count, accepted, right = loss.judged = tuple(gather_rows(counts, world_size).sum(0).tolist())
            agreement = {"self_training_agreement": right / accepted} if accepted else {}
            logged = {"logged": {"self_training_accepted": accepted / max(count, 1), **agreement}}
        if kept is not None and outputs:
            kept["source"] = [torch.cat(rows) for rows in zip(*outputs, strict=True)]
        if kept is not None and world_size == 1:
            kept[f"collected {domain}"] = collected
        if not source and self.pair.labels[-1] == UNKNOWN:
            opened = open_set(found.per_class, found.counts)
            if not math.isnan(opened.hos):
                logged = {"logged": {**logged.get("logged", {}), **opened.shares}, "open_set": str(opened)}
        unknown = math.isnan(found.average_precision)
        return {**asdict(found), **({"average_precision": None} if unknown else {}), **logged}

    @torch.no_grad()
    def predictions(
        self, model: nn.Module, view: ImageSet, rank: int, world_size: int
    ) -> tuple[np.ndarray[Any, Any], Scores | None]:
        """The logits `(N, K)` of images; see `Task.predictions`."""
        size, labels = self.config.training.evaluation_batch_size, self.pair.labels
        rows = [torch.empty(0, len(labels))]
        batches = evaluation_batches(view, self.processor, size, rank=rank, world_size=world_size)
        batches = track(batches, "predicting", len(view), count=lambda b: world_size * len(b["index"]))
        if view.labels is not None:
            figures = asdict(
                evaluate_classifier(model, batches, len(labels), lambda out, _: rows.append(out.logits.float().cpu()))
            )
            return in_order(torch.cat(rows), len(view), world_size).numpy(), figures
        model.eval()
        device = next(model.parameters()).device
        rows += [model(pixel_values=batch["pixel_values"].to(device)).logits.float().cpu() for batch in batches]
        return in_order(torch.cat(rows), len(view), world_size).numpy(), None

    def examples(self, model: nn.Module) -> Scores:
        """Predictions for a random choice of the target test images, for the picture; their labels are not read."""
        shown = self._shown()
        was_training = model.training
        found = predict_probabilities(model, ({"pixel_values": values} for (values,) in self._views(shown, None)))
        model.train(was_training)
        confidence, label = found.max(1)
        return {"label": label.tolist(), "confidence": confidence.tolist()}

    def outputs(self, model: nn.Module, kept: Kept) -> dict[str, Tensor]:
        """Classes, confidences and features of test images of both domains, and their labels where they are known.

        Images that an evaluation has just seen do not go through the model again; of others a sample does.
        """
        labelled = self.pair.target_evaluation
        views = {
            "source": self.pair.source_test,
            "target": self.pair.target_test_images if labelled is None else labelled,
        }
        found: dict[str, tuple[Tensor, Tensor, Tensor, Sequence[int] | None]] = {}
        for domain, view in views.items():
            if len(view) == 0:
                continue
            order, seen = self._reported_order(view), kept.get(f"collected {domain}")
            rows = order[: MOST_FEATURES if seen is None else MOST_IMAGES]
            if seen is None:
                seen = Collected(range(len(rows)))
                with self.statistics.as_source(model) if domain == "source" else nullcontext():
                    views_of = self._views(view.subset(rows).without_annotations(), None)
                    ((features, logits),) = collect_outputs(model, views_of)
                seen.add(features, logits)
                label, confidence = seen.predictions()
            else:
                label, confidence = (values[rows] for values in seen.predictions())
            labels = view.labels
            found[domain] = label, confidence, seen.features(), None if labels is None else [labels[n] for n in rows]
        return classifier_outputs(found)

    def _reported_order(self, view: ImageSet) -> list[int]:
        """The order in which images are taken for the report."""
        return random_order(view, [self.config.training.seed, 6]).tolist()

    def _shown(self, view: ImageSet | None = None) -> ImageSet:
        view = self.pair.target_test_images if view is None else view
        order = random_order(view, [self.config.training.seed, 5])
        return view.subset(order[:_EXAMPLES].tolist()).without_annotations()

    def further_figures(self, after: dict[str, Scores]) -> dict[str, Any]:
        """Those of an open set."""
        logged = after.get("target", {}).get("logged", {})
        return {f"target_{name}_after": logged[name] for name in ("known", "unknown", "hos") if "hos" in logged}

    def summary(self, facts: RunFacts, before: dict[str, Scores], after: dict[str, Scores]) -> Summary:
        """As every task's, and how an open set is told apart."""
        scores = {"before": before.get("target", {}), "after": after.get("target", {})}
        told = [f"{when}: {found['open_set']}" for when, found in scores.items() if "open_set" in found]
        notes = [f"Open set, {'; '.join(told)}."] if told else []
        return super().summary(replace(facts, notes=[*facts.notes, *notes]), before, after)

    def validate(self, model: nn.Module, rank: int, world_size: int, kept: Kept | None = None) -> dict[str, float]:
        """Every validator, on held-out source images and on target training images without labels."""
        order = self._selection_order(self.pair.source_test, 2, rank, world_size)
        source = self.pair.source_test.subset(order)
        target = self.pair.target_train.subset(self._selection_order(self.pair.target_train, 3, rank, world_size))
        sizes = [len(target), *([len(source)] if self.pair.has_source else [])]
        if min(sizes) * world_size < FEWEST_IMAGES:
            return {}
        labels = torch.tensor(source.labels or [], dtype=torch.long, device=next(model.parameters()).device)
        if not self.pair.has_source:
            source_features = source_logits = labels.new_empty(0, len(self.pair.labels), dtype=torch.float)
        elif kept and "source" in kept:
            # The test images have been through the model already.
            source_features, source_logits = (rows[order] for rows in kept["source"])
        else:
            with self.statistics.as_source(model):
                ((source_features, source_logits),) = self._outputs(model, "source", source, None)
        # The same augmented views at every evaluation, so that models are compared on equal terms.
        generator = np.random.default_rng([self.config.training.seed, 4, rank])
        augmented = self.config.data.augmentation != "none"
        outputs = self._outputs(model, "target", target, generator if augmented else None)
        (target_features, target_logits), *other = outputs
        rows = [source_features, source_logits, labels, target_features, target_logits, *(x for _, x in other)]
        return compute_validators(CachedOutputs(*(gather_rows(x, world_size) for x in rows)))

    def pixel_values(self, images: Sequence[Tensor]) -> Tensor:
        """Images as the model sees them in evaluation."""
        return preprocess(images, self.processor)

    def features(self, pixel_values: Tensor) -> Tensor:
        """The pooled features that the classifier sees."""
        features: Tensor = self.model(pixel_values=pixel_values).features
        return features

    def _outputs(
        self, model: nn.Module, domain: str, images: ImageSet, generator: np.random.Generator | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Features and logits of the images as evaluated and, given a generator, as augmented."""
        views, title = self._views(images, generator), f"{domain} images for validators"
        return collect_outputs(model, track(views, title, len(images), count=lambda views: len(views[0])))

    def _selection_order(self, view: ImageSet, salt: int, rank: int, world_size: int) -> list[int]:
        """This process's share of a random choice, in a random order: no statistic depends on how images are sorted."""
        order = random_order(view, [self.config.training.seed, salt])
        whole = min(self.config.training.selection_images, len(view)) // world_size * world_size
        return order[rank:whole:world_size].tolist()

    def _views(self, view: ImageSet, generator: np.random.Generator | None) -> Iterator[tuple[Tensor, ...]]:
        """Batches of the images as evaluated and, given a generator, as augmented."""
        size = self.config.training.evaluation_batch_size
        for start in range(0, len(view), size):
            images = self.read(view, range(start, min(start + size, len(view))))
            plain = preprocess(images, self.processor)
            if generator is None:
                yield (plain,)
            else:
                yield plain, augment(images, self.processor, self.config.data.augmentation, generator)

    def write_files(self, folder: Path, before: Scores, after: Scores) -> list[str]:
        """A picture of target test images: the most and least confident, and those that changed their class."""
        old, new = (
            [Prediction(*pair) for pair in zip(found["label"], found["confidence"], strict=True)]
            for found in (before, after)
        )
        shown = self._shown(self._pictures)
        names = [path.name for path in shown.paths]
        draw_target_images(shown.load, old, new, self.pair.labels, names).save(folder / TARGET_IMAGES_FILE)
        return [TARGET_IMAGES_FILE]

    @property
    def model_name(self) -> str:
        """The backbone's name."""
        return self.model.config.backbone_name or ""

    @property
    def penalty(self) -> str | None:
        """Name of the penalty that stands in both losses, such as that of GVB's bridge."""
        return " and ".join(self._penalties) or None
