"""The typed configuration of a domain pair."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from ..checks import LARGEST_SEED, Limits, check_entries
from ..errors import UserError, did_you_mean
from .reading import FILE_KINDS, unread_of_domain
from .section import Section

__all__ = ["DIGITS", "FILE_KINDS", "SCENES", "SOLAR", "DataConfig", "DomainConfig", "Kind"]

DIGITS = ("mnist", "uci_digits", "mnist_m")
SOLAR = ("solar_mono", "solar_poly")
SCENES = (
    "scenes_plain",
    "scenes_photo",
    "scenes_fog",
    "scenes_night",
    "scenes_noise",
    "scenes_ground",
    "scenes_writers",
)
Kind = Literal[
    "digits",
    "solar",
    "imagefolder",
    "list",
    "dataset",
    "parquet",
    "arrow",
    "webdataset",
    "digit_scenes",
    "coco",
    "voc",
    "yolo",
]
EMBEDDED = ("digits", "solar", "digit_scenes")
KIND_OF_ENDING = {".txt": "list", ".json": "coco", ".yaml": "yolo", ".yml": "yolo"} | {
    f".{kind}": kind for kind in ("parquet", "arrow")
}


@dataclass
class DomainConfig:
    """Where the images of a domain come from.

    Args:
        kind: digits or solar (embedded), imagefolder (one folder per class), list (a file with lines `path label`),
            dataset (a data set of the Hub or a local one), or parquet, arrow or webdataset (a file, a folder, a pattern
            or an address such as s3://BUCKET/FILE); for detectors digit_scenes (embedded), coco (a json file and a
            folder of images), voc (a folder with JPEGImages, Annotations and ImageSets/Main), yolo (the yaml file of
            a data set), dataset, parquet, arrow or webdataset.
        name: Name of an embedded domain (mnist, uci_digits, mnist_m; solar_mono, solar_poly; scenes_plain,
            scenes_photo, and with one gap each scenes_fog, scenes_night, scenes_noise, scenes_ground, scenes_writers);
            for other kinds a display name.
        path: Folder of images, list file, or data set id or folder.
        root: Folder that the paths of a list start from; by default the list's own folder.
        outside_root: refuse a path that leaves the folder which the paths of a list, a coco, voc or yolo domain start
            from, by `..`, as an absolute path or by a link; or allow it, in files that you trust.
        labels_file: Class names of a list, or of a data set whose labels are plain integers, one a line.
        test_path: Folder or list of test images; the same as path tests on the training images, as published tables do.
        annotations: The json file of a coco domain.
        test_annotations: The json file of its test images.
        config_name: Configuration of the data set.
        revision: Revision of the data set.
        domain_column: Column of the data set that names the domain.
        domain: Value of that column to keep.
        image_column: Column with the images.
        label_column: Column with the labels.
        objects_column: Column with the objects of a detection data set, a dict of lists or a list of dicts.
        classes: Classes to keep, in the order of the model's class indices; by default all. Of a classifier's source,
            such as those that the target is known to have; of its target none may be named, for that would use its
            labels.
        box_format: How its boxes are written: xywh (COCO) or xyxy, in pixels.
        bad_boxes: What happens to boxes without area or outside the image, unknown categories and repeated ids: drop
            (and count in the notes) or error.
        train_split: Split with the training images; of a voc domain a list in ImageSets/Main, or several, with the
            folder they are in: VOC2007/trainval,VOC2012/trainval; of a yolo domain a key of its yaml file.
        test_split: Split with the test images; by default a share of the training split.
        test_fraction: Share of the images that is held out as test images where there is no test path or split.
        split_seed: Seed of that choice, which never looks at labels.
        streaming: Of a parquet, arrow or webdataset domain, or a data set in such files: leave it where it is, and read
            its images in blocks when they are needed; for data that do not fit on this disk. It needs a test_path or
            test_split.
        shuffle_buffer: Among as many images a streamed domain is shuffled; the order of its blocks is random anyway.
        streaming_gigabytes: As much of a streamed domain is kept on this disk, in HF_HOME/metaalign_hf.
    """

    kind: Kind = "digits"
    name: str | None = None
    path: str | None = None
    root: str | None = None
    outside_root: Literal["refuse", "allow"] = "refuse"
    labels_file: str | None = None
    test_path: str | None = None
    annotations: str | None = None
    test_annotations: str | None = None
    config_name: str | None = None
    revision: str | None = None
    domain_column: str | None = None
    domain: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    objects_column: str = "objects"
    classes: list[str] | None = None
    box_format: Literal["xywh", "xyxy"] = "xywh"
    bad_boxes: Literal["drop", "error"] = "drop"
    train_split: str = "train"
    test_split: str | None = None
    test_fraction: float = 0.2
    split_seed: int = 0
    streaming: bool = False
    shuffle_buffer: int = 2000
    streaming_gigabytes: float = 10.0

    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "test_fraction": Limits(0, 1, inside=True),
        "split_seed": Limits(0, LARGEST_SEED),
        "shuffle_buffer": Limits(1),
        "streaming_gigabytes": Limits(0, inside=True),
    }

    def __post_init__(self) -> None:
        self.check()

    def check(self, prefix: str = "") -> None:
        """Refuse values that no domain can use.

        Args:
            prefix: What the keys start with in the error, such as `data.source.`.

        Raises:
            UserError: For the first one.
        """
        check_entries(self, prefix, self.LIMITS)
        for key, reason in unread_of_domain(self).items():
            raise UserError(f"{prefix}{key} is {getattr(self, key)}: {reason}")

    @classmethod
    def parse(cls, text: str) -> "DomainConfig":
        """A domain from its short form.

        Args:
            text: `mnist`, `uci_digits`, `mnist_m`, `solar_mono`, `solar_poly`, `imagefolder:FOLDER`, `list:FILE`,
                `dataset:ORG/NAME`, `parquet:FILES`, `arrow:FILES` or `webdataset:FILES`; for detectors `scenes_plain`,
                `scenes_photo`, `scenes_fog` and the other embedded scenes, `coco:ANNOTATIONS.json`, `voc:FOLDER`,
                `yolo:DATA.yaml`, or one of `dataset`, `parquet`, `arrow`, `webdataset`.

        Returns:
            The domain.

        Raises:
            UserError: If the text is none of these.
        """
        kind, colon, path = (part.strip() for part in text.partition(":"))
        if not colon and text in DIGITS:
            return cls(kind="digits", name=text)
        if not colon and text in SOLAR:
            return cls(kind="solar", name=text)
        if not colon and text in SCENES:
            return cls(kind="digit_scenes", name=text)
        if kind == "coco" and path:
            return cls(kind="coco", annotations=path)
        kinds = [k for k in get_args(Kind) if k not in EMBEDDED]
        if colon and kind in kinds and path:
            return cls(kind=kind, path=path)  # type: ignore[arg-type]
        if kind in kinds and not path:
            raise UserError(f"domain {text!r} has no path; write {kind}:PATH, and refine it with more keys")
        hint = f"{_nearest_form(text, kinds)} ".lstrip()
        forms = ["imagefolder:FOLDER", "list:FILE", "dataset:ORG/NAME", *(f"{kind}:FILES" for kind in FILE_KINDS)]
        forms += ["coco:ANNOTATIONS.json", "voc:FOLDER", "yolo:DATA.yaml"]
        valid = ", ".join([*DIGITS, *SOLAR, *SCENES, *forms])
        raise UserError(f"domain {text!r} is unknown; {hint}valid: {valid}")

    def is_same_place(self, other: "DomainConfig") -> bool:
        """Whether both take their training images from the same place."""
        return self._place() == other._place()

    def _place(self) -> tuple[str | None, ...]:
        files = (self.path, self.annotations, self.root)
        embedded = self.name if self.path is None and self.annotations is None else None
        rest = (self.config_name, self.revision, self.domain_column, self.domain, self.train_split, embedded)
        return (self.kind, *(file and os.path.realpath(os.path.expanduser(file)) for file in files), *rest)

    def short_form(self) -> str:
        """The text that `parse` reads, without what refines it."""
        if self.kind in EMBEDDED:
            return str(self.name)
        return f"{self.kind}:{self.annotations if self.kind == 'coco' else self.path}"

    def describe(self) -> str:
        """A short name of the domain for tables."""
        base = self.name or (self.path or self.annotations or "").rstrip("/").rsplit("/", 1)[-1] or self.kind
        return f"{base}/{self.domain}" if self.domain is not None else base


@dataclass
class DataConfig(Section):
    """A domain pair and its preprocessing.

    Args:
        source: The labelled domain, or a list of several; none adapts model.checkpoint to the target without its
            source.
        target: The domain to adapt to; its labels, if any, are used for evaluation only.
        target_labeled: A few labelled images of the target, all of which the task loss uses beside the source's
            (semi-supervised); they take no part in alignment or selection. Keep them out of the target's test images.
        source_sampling: Of several sources: even, the same number of images from each; or size, in proportion to it.
        label_policy: strict, both domains have the same class names; shared, only the classes of both are kept; source,
            the classes of the source are kept, and others of the target are left out of its evaluation; or open, for
            classifiers, the same but others of the target count as one more class, unknown.
        image_size: Side of the square images that a classifier sees, in pixels; null takes that of the backbone's own
            pretrained configuration, or of model.checkpoint.
        detector_size: Size of the images that a detector sees, in pixels: a number for squares, or two for the shortest
            and the longest edge; null keeps what the detector's own image processor does.
        resize_size: Side of the square that images are resized to before cropping, in pixels; null takes image_size /
            0.875, or where neither is given that of model.checkpoint.
        augmentation: Of training images: none (centre crop), crop (random crop), or crop_flip (and horizontal flip).
            Detectors also have flip (nothing else), crop_flip_color (and scale jitter and photometric distortion), and
            crop_flip_strong (and blur, noise and cut-out; on images of the target crop and flip alone), of which strong
            has what leaves objects in their places; their crop keeps the objects whose centre stays inside.
        num_workers: Loader processes per domain; 0 loads in the main process.
        on_bad_image: error, an image that cannot be read stops the run, which can go on once it is put right; or skip,
            it is replaced by the next one of its domain in training, and left out of the evaluation, for which all test
            images are read once before the run. bad_images.jsonl in training.output_dir lists them.
        views: Augmented versions of each training image, made once, of which every batch takes one; null makes a new
            one for every batch, and 4 where features of a classifier's whole backbone are cached.
        cache_features: auto, where the whole backbone of a classifier is frozen (model.freeze all) and no target loss
            needs views of its own, its features are computed once for each image and view, before the first step, and
            training and evaluation run on them; where some stages are frozen and views is set, so is what these give,
            and so are the maps of a detector's frozen backbone, where all its images have one size; always refuses a
            run in which that cannot be; never computes them in every pass.
        cache_folder: Folder of features.safetensors, which holds them; null is training.output_dir. Runs on the same
            data, backbone and views may share it.
        cache_gigabytes: Largest size of that file.
    """

    source: DomainConfig | list[DomainConfig] | None
    target: DomainConfig
    target_labeled: DomainConfig | None = None
    source_sampling: Literal["even", "size"] = "even"
    label_policy: Literal["strict", "shared", "source", "open"] = "strict"
    image_size: int | None = None
    detector_size: int | list[int] | None = None
    resize_size: int | None = None
    augmentation: Literal["none", "crop", "crop_flip", "flip", "crop_flip_color", "strong", "crop_flip_strong"] = (
        "crop_flip"
    )
    num_workers: int = 0
    on_bad_image: Literal["error", "skip"] = "error"
    views: int | None = None
    cache_features: Literal["auto", "always", "never"] = "auto"
    cache_folder: str | None = None
    cache_gigabytes: float = 20.0

    SECTION = "data"
    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "image_size": Limits(1),
        "detector_size": Limits(1),
        "resize_size": Limits(1),
        "num_workers": Limits(0),
        "views": Limits(1),
        "cache_gigabytes": Limits(0, inside=True),
    }

    def check(self) -> None:
        """As `Section.check`, and what the values must be together."""
        super().check()
        for number, domain in enumerate(self.sources):
            domain.check(f"data.source[{number}]." if isinstance(self.source, list) else "data.source.")
        self.target.check("data.target.")
        if self.target_labeled is not None:
            self.target_labeled.check("data.target_labeled.")

    @property
    def sources(self) -> list[DomainConfig]:
        """The source, or all of them, as a list; empty without a source."""
        return self.source if isinstance(self.source, list) else [] if self.source is None else [self.source]


def _nearest_form(text: str, kinds: list[str]) -> str:
    """What was meant by a domain that is none: a question, or nothing."""
    kind, colon, path = text.partition(":")
    place = Path(text).expanduser()
    if place.is_dir():
        return f"did you mean imagefolder:{text}?"
    if place.is_file() and (of_file := KIND_OF_ENDING.get(place.suffix.lower())):
        return f"did you mean {of_file}:{text}?"
    if colon and path:
        return did_you_mean(text, [f"{known}:{path}" for known in kinds if did_you_mean(kind, [known])])
    return did_you_mean(text, [*DIGITS, *SOLAR, *SCENES])
