"""What a run says about itself: its record, figures and model card."""

from .detections import draw_before_after, draw_objects
from .figures import FIGURE_FILES, write_figures
from .model_card import card_is_generated, model_card
from .record import RunRecord, hub_dataset, read_record, record_folder, without_local_paths

__all__ = [
    "FIGURE_FILES",
    "RunRecord",
    "card_is_generated",
    "draw_before_after",
    "draw_objects",
    "hub_dataset",
    "model_card",
    "read_record",
    "record_folder",
    "without_local_paths",
    "write_figures",
]
