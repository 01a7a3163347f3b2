"""Local features of drawn and real heads, matches of them, and their fusion with cosines."""

import cv2
import numpy as np
import pytest

from happywhale_nb.core.errors import UserError
from happywhale_nb.data.dataset import read_dataset
from happywhale_nb.retrieval.local_features import (
    Evidence,
    Fusion,
    cross_probabilities,
    extract_features,
    match_candidates,
    match_features,
    rerank,
)
from happywhale_nb.retrieval.metrics import map_at_5, paired_gain


def pattern(seed, side=128):
    """Patches of random place, size and grey."""
    rng = np.random.default_rng(seed)
    picture = np.full((side, side, 3), 70, np.uint8)
    for _ in range(40):
        x, y, r, value = (int(v) for v in (*rng.integers(10, side - 10, 2), rng.integers(2, 8), rng.integers(30, 220)))
        cv2.circle(picture, (x, y), r, (value,) * 3, -1, cv2.LINE_AA)
    return picture


def changed(picture, turn, grow, alpha=1.0, beta=0.0):
    """The picture turned, scaled and brightened."""
    side = len(picture)
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), turn, grow)
    moved = cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)
    return cv2.convertScaleAbs(moved, alpha=alpha, beta=beta)


@pytest.mark.parametrize("change", [(0, 1, 1.3, 20), (8, 1, 1, 0), (-8, 1, 0.6, 0), (0, 1.1, 1, 0), (5, 0.93, 1.2, 10)])
def test_match_of_a_changed_copy_has_many_inliers_and_of_another_pattern_few(change):
    one, two = extract_features(pattern(0)), changed(pattern(0), *change)
    same, other = match_features(one, extract_features(two)), match_features(one, extract_features(pattern(1)))
    assert same.inliers >= 15
    assert other.inliers <= 5
    assert same.score > 5 * other.score
    again = match_features(extract_features(pattern(0)), extract_features(two))
    assert again.score == same.score and (again.one == same.one).all() and (again.two == same.two).all()


def test_match_of_a_shifted_copy_joins_the_same_spots():
    picture = pattern(2)
    moved = np.roll(picture, (6, -4), axis=(0, 1))  # down 6, left 4
    found = match_features(extract_features(picture), extract_features(moved))
    step = (found.two - found.one) * 128
    assert found.inliers >= 20
    assert np.abs(np.median(step, axis=0) - [-4, 6]).max() < 0.5
    assert np.abs(step - [-4, 6]).max() < 2 * 2 * 0.02 * 128


def test_match_of_marks_elsewhere_or_turned_has_few_inliers():
    picture = pattern(3)
    far = np.roll(picture, 50, axis=1)
    one, two = extract_features(picture), extract_features(far)
    assert match_features(one, two).inliers <= 8 < 20 <= match_features(one, two, max_shift=0.6).inliers
    turned = extract_features(np.ascontiguousarray(np.rot90(picture)))
    assert match_features(one, turned).inliers <= 8


def test_match_of_pictures_of_two_sizes_has_many_inliers():
    small = pattern(4)
    large = cv2.resize(small, (300, 260), interpolation=cv2.INTER_CUBIC)
    assert match_features(extract_features(small), extract_features(large)).inliers >= 25


@pytest.mark.parametrize("empty", [np.zeros((64, 64, 3), np.uint8), np.full((1, 1, 3), 200, np.uint8)])
def test_match_of_a_picture_without_marks_has_no_inliers(empty):
    none, some = extract_features(empty), extract_features(pattern(0))
    assert len(none) == 0 and none.positions.shape == (0, 2) and none.descriptors.shape == (0, 128)
    for found in (match_features(none, some), match_features(some, none), match_features(none, none)):
        assert (found.score, found.inliers) == (0.0, 0)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)],
)
def test_features_of_no_rgb_picture_is_refused(wrong):
    with pytest.raises(UserError, match="RGB, uint8"):
        extract_features(wrong)


def test_match_of_a_single_keypoint_has_one_inlier():
    one = extract_features(pattern(0), max_keypoints=1)
    found = match_features(one, one)
    assert found.inliers == 1 and found.score > 0


def test_features_with_most_keeps_the_strongest():
    many, few = extract_features(pattern(0)), extract_features(pattern(0), max_keypoints=7)
    assert len(few) == 7 < len(many) <= 200
    np.testing.assert_array_equal(few.positions, many.positions[:7])


@pytest.fixture(scope="module")
def case():
    """Twelve animals with two known photographs each, two queries an animal, and cosines that mislead."""
    animals = np.repeat([f"w{k:02}" for k in range(12)], 2)
    known = [extract_features(changed(pattern(10 + i // 2), 4 * (-1) ** i, 1)) for i in range(24)]
    queries = [extract_features(changed(pattern(10 + i // 2), 2 * (-1) ** i, 0.97, 1.2)) for i in range(24)]
    rng = np.random.default_rng(0)
    cosines = rng.normal(0.4, 0.15, (24, 24)) + 0.1 * (animals[:, None] == animals)
    return cosines, animals, queries, known


def test_gather_matches_photographs_of_the_candidates_only(case):
    cosines, animals, queries, known = case
    asked = set()

    class Watched(list):
        def __getitem__(self, place):
            asked.add(int(place))
            return super().__getitem__(place)

    evidence = match_candidates(cosines[:1], animals, queries[:1], Watched(known), top=3)
    best = [cosines[0, animals == name].max() for name in np.unique(animals)]
    names = np.unique(animals)[np.argsort(best)[::-1][:3]]
    assert evidence.ids.tolist() == [names.tolist()]
    assert asked == set(np.flatnonzero(np.isin(animals, names)).tolist())
    np.testing.assert_allclose(evidence.cosine[0], np.sort(best)[::-1][:3])
    scores = [
        max(match_features(queries[0], known[p]).score for p in np.flatnonzero(animals == name)) for name in names
    ]
    np.testing.assert_allclose(evidence.local[0], np.log1p(scores), rtol=1e-5)  # float32 products, in any order


def test_gather_of_lengths_that_do_not_fit_is_refused(case):
    cosines, animals, queries, known = case
    with pytest.raises(UserError, match="do not fit"):
        match_candidates(cosines[:3], animals, queries, known)
    with pytest.raises(UserError, match="do not fit"):
        match_candidates(cosines, animals[:5], queries, known)


def evidence_of(rng, helpful, n=300, m=8):
    """Simulated: 30 animals, the truth among the first `m`, its cosine a little higher, its local score if helpful."""
    truth = np.array([f"w{k:02}" for k in rng.integers(0, 30, n)])
    ids = np.array([[t, *[f"w{k:02}" for k in rng.permutation(30) if f"w{k:02}" != t][: m - 1]] for t in truth])
    cosine, local = rng.normal(0.3, 0.1, (n, m)), rng.normal(1, 0.5, (n, m))
    cosine[:, 0] += 0.15
    local[:, 0] += 1 * helpful
    order = np.argsort(-cosine, axis=1)
    return Evidence(*(np.take_along_axis(part, order, axis=1) for part in (ids, cosine, local))), truth


def test_fusion_across_animals_gains_only_where_local_scores_help():
    def gain(seed, helpful):
        evidence, truth = evidence_of(np.random.default_rng(seed), helpful)
        fused = rerank(evidence, cross_probabilities(evidence, truth))[0]
        return paired_gain(truth, evidence.ids[:, :5], fused, truth), map_at_5(truth, fused)

    helped, fused = gain(0, True)
    assert 0 < helped["low"] < helped["gain"] < helped["high"] and helped["gain"] > 0.05
    evidence, truth = evidence_of(np.random.default_rng(0), True)
    assert fused > map_at_5(truth, rerank(evidence, evidence.local)[0])
    assert not any(gain(seed, False)[0]["low"] > 0 for seed in range(1, 5))


def test_cross_probabilities_are_learnt_from_other_animals():
    evidence, truth = evidence_of(np.random.default_rng(0), True)
    before = cross_probabilities(evidence, truth)
    assert before.min() >= 0 and before.max() <= 1
    own = truth == truth[0]
    spoilt = evidence.local.copy()
    spoilt[own] = spoilt[own][:, ::-1] * 5
    after = cross_probabilities(Evidence(evidence.ids, evidence.cosine, spoilt), truth)
    kept = [name for name in np.unique(truth) if np.array_equal(before[truth == name], after[truth == name])]
    assert 14 <= len(kept) <= 15 and truth[0] not in kept  # its own part: same weights for the others in it


def test_fusion_probabilities_are_calibrated():
    evidence, truth = evidence_of(np.random.default_rng(0), True, n=1500)
    chance = Fusion().fit(evidence, truth).probabilities(evidence)
    same = evidence.ids == truth[:, None]
    for low, high in ((0, 0.1), (0.2, 0.5), (0.5, 0.8), (0.9, 1)):
        chosen = (chance >= low) & (chance < high)
        assert abs(chance[chosen].mean() - same[chosen].mean()) < 0.06


def test_fusion_without_right_and_wrong_candidates_is_refused():
    evidence, _ = evidence_of(np.random.default_rng(0), True, n=20)
    with pytest.raises(UserError, match="right and with wrong"):
        Fusion().fit(evidence, np.full(20, "nobody"))
    with pytest.raises(UserError, match="cannot be cut"):
        cross_probabilities(evidence, np.full(20, "w01"))


def test_rerank_of_few_candidates_leaves_places_empty():
    evidence = Evidence(np.array([["a", "b"]]), np.array([[0.5, 0.4]]), np.array([[0.0, 3.0]]))
    ids, scores = rerank(evidence, evidence.local)
    assert ids.tolist() == [["b", "a", "", "", ""]] and scores[0, :2].tolist() == [3, 0]
    assert np.isneginf(scores[0, 2:]).all()


def test_rerank_of_ties_keeps_the_order_of_the_cosines():
    local = np.array([[1, 2, 1, 2, 1, 2, 3.0]])
    evidence = Evidence(np.array([list("abcdefg")]), np.linspace(0.9, 0.3, 7)[None], local)
    ids, scores = rerank(evidence, evidence.local)
    assert ids.tolist() == [list("gbdfa")] and scores.tolist() == [[3, 2, 2, 2, 1]]


@pytest.mark.real
def test_rerank_of_right_whales_by_their_heads_names_half_of_six(shared):
    """Six animals with ten photographs each, one half asked about: chance would name one in six."""
    dataset = read_dataset(shared / "rightwhale80")
    names = dataset.train["individual_id"].value_counts(sort=False).loc[lambda n: n >= 10].index.sort_values()[:6]
    rows = dataset.train[dataset.train["individual_id"].isin(names)].sort_values("image")
    rows = rows.groupby("individual_id").head(10)
    described = [
        extract_features(cv2.imread(str(dataset.train_images / image), cv2.IMREAD_COLOR_RGB), side=128)
        for image in rows["image"]
    ]
    animals = rows["individual_id"].to_numpy(dtype=str)
    asked = rows.groupby("individual_id").cumcount().to_numpy() % 2 == 0
    evidence = match_candidates(
        np.zeros((asked.sum(), (~asked).sum())),
        animals[~asked],
        [f for f, a in zip(described, asked, strict=True) if a],
        [f for f, a in zip(described, asked, strict=True) if not a],
        top=6,
    )
    first = rerank(evidence, evidence.local)[0][:, 0]
    assert (first == animals[asked]).mean() >= 0.5
