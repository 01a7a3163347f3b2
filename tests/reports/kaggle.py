"""A competition as its page's address gives it."""

import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.workflow.kaggle import competition_slug, kernel_metadata
from reports.harness import Case

SLUG = "happy-whale-and-dolphin"
ADDRESSES = [SLUG, f"c/{SLUG}", f"competitions/{SLUG}", f"https://www.kaggle.com/competitions/{SLUG}/overview"]
ADDRESSES += [f"kaggle.com/c/{SLUG}/data?select=train.csv", f" https://www.kaggle.com/c/{SLUG}/ "]


def slug_is_written(reports, out):
    """What is written into the metadata is the slug alone."""
    for text in ADDRESSES:
        card = kernel_metadata("jo", "train", "train.ipynb", "none", competition_slug(text))
        assert card["competition_sources"] == [SLUG]
    for text in ("Happy Whale", "jo/whales", "datasets/jo/whales", "https://example.org/c/whales", "c/"):
        with pytest.raises(UserError, match=r"--competition .*: use its slug"):
            competition_slug(text)


CASES = {
    "happywhale kaggle build --user jo --fold": [
        Case(
            "kaggle build --user jo --fold 0 --competition datasets/jo/whales --to OUT/k",
            exit_code=2,
            words=["--competition datasets/jo/whales: use its slug"],
        ),
        slug_is_written,
    ],
}
