"""Load models as TransformerLens has them, and say where a model's weights come from."""

from tl_l2norm.models.load import BackendName, load_model
from tl_l2norm.models.sources import BUNDLED, OURS, Source, bundled_file, bundled_folder, find_source, preset_for, source_of
from tl_l2norm.models.twin import random_twin

__all__ = [
    "BUNDLED",
    "OURS",
    "BackendName",
    "Source",
    "bundled_file",
    "bundled_folder",
    "find_source",
    "load_model",
    "preset_for",
    "random_twin",
    "source_of",
]
