"""Identify individual whales and dolphins from photographs: a reproducible notebook study and its library.

The names that most programs need can be imported from here; each is imported from its module when it is first used, so
that `import happywhale_nb` loads nothing and what needs no network never loads TensorFlow.

    from happywhale_nb import KNNHead, map_at_5, read_dataset
"""

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

# public name: its module
_HOMES = {
    "read_dataset": "data.dataset",
    "check_folder": "data.check",
    "make_folds": "data.splits",
    "open_set_truth": "data.splits",
    "GallerySplit": "data.splitters",
    "draw_demo": "demo.dataset",
    "load_crop": "imaging.crops",
    "augment": "imaging.augmentation",
    "RECIPES": "imaging.augmentation_recipes",
    "read_embeddings": "retrieval.embeddings",
    "KNNHead": "retrieval.knn",
    "EmbeddingAdapter": "retrieval.adapters",
    "Gallery": "retrieval.gallery",
    "fit_threshold": "retrieval.open_set",
    "rank_new": "retrieval.open_set",
    "CandidateSets": "retrieval.conformal",
    "calibrate": "retrieval.identifier",
    "identify_individual": "retrieval.identifier",
    "map_at_5": "retrieval.metrics",
    "map_at_5_scorer": "retrieval.metrics",
    "summary": "retrieval.metrics",
    "read_predictions": "retrieval.predictions",
    "write_predictions": "retrieval.predictions",
    "blend_files": "ensemble.blending",
    "blend_rankings": "ensemble.blending",
    "fit_ranking_weights": "ensemble.blending",
    "score_file": "ensemble.blending",
    "tabulate_outcomes": "evaluation.per_query",
    "configure": "networks.presets",
    "create_model": "networks.model",
    "load_model": "networks.loading",
    "ArcFaceLoss": "networks.heads",
    "export_model": "networks.export",
    "EncoderCard": "networks.encoder_card",
    "card_fingerprint": "networks.card_encoder",
    "card_record": "networks.card_encoder",
    "unit_rows": "retrieval.vectors",
    "embed_folder": "networks.embedder",
    "Embedder": "networks.embedder",
    "Catalogue": "catalogue.store",
    "identify": "catalogue.identify",
    "build_catalogue": "catalogue.build",
    "UserError": "core.errors",
}
# what needs an extra, and is not listed without it; asking for it by name says which
_NEEDS = dict.fromkeys(("create_model", "ArcFaceLoss", "export_model"), "keras")
_NEEDS |= dict.fromkeys(("Catalogue", "identify", "build_catalogue"), "sqlalchemy")


def _is_there(name: str) -> bool:
    """Whether what a public name needs is installed."""
    try:
        return name not in _NEEDS or find_spec(_NEEDS[name]) is not None
    except ValueError:  # loaded by hand, or blocked
        return False


__all__ = [*filter(_is_there, _HOMES), "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name from its module, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All names: those that are loaded, and those that can be."""
    return sorted({*globals(), *__all__})
