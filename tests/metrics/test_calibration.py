import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from medseg.metrics import calibration_bins, case_metrics, fit_temperature, log_probabilities, pooled


@pytest.fixture
def random():
    return np.random.default_rng(8)


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=0))
    return weights / weights.sum(axis=0)


def drawn(probabilities, random):
    """A class for each column, drawn with its probabilities."""
    return (random.random(probabilities.shape[1]) > np.cumsum(probabilities, axis=0)).sum(axis=0)


@pytest.mark.parametrize("n_bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_bin_after_bin(random, n_bins):
    probability = np.concatenate([random.random(500), [0.0, 1.0, 1.0]])
    happened = random.random(503) < probability**2
    error = 0.0
    for bin_ in range(n_bins):
        low, high = bin_ / n_bins, (bin_ + 1) / n_bins
        inside = (probability > low) & (probability <= high) | ((probability == 0) & (bin_ == 0))
        if inside.any():
            error += inside.mean() * abs(probability[inside].mean() - happened[inside].mean())
    assert calibration_bins(probability, happened, n_bins=n_bins).ece == pytest.approx(error)


def test_the_brier_score_is_scikit_learns(random):
    probability, happened = random.random(400), random.integers(0, 2, 400)
    assert calibration_bins(probability, happened).brier == pytest.approx(brier_score_loss(happened, probability))


def test_bins_of_two_parts_add_up_to_those_of_the_whole(random):
    probability, happened = random.random(300), random.integers(0, 2, 300)
    whole = calibration_bins(probability, happened)
    parts = calibration_bins(probability[:90], happened[:90]) + calibration_bins(probability[90:], happened[90:])
    assert (parts.ece, parts.brier) == pytest.approx((whole.ece, whole.brier))


def test_the_curve_has_the_bins_that_have_voxels():
    curve = calibration_bins([0.1, 0.1, 0.95], [0, 1, 1], n_bins=10).curve()
    assert curve == [
        {"probability": pytest.approx(0.1), "frequency": 0.5, "count": 2},
        {"probability": pytest.approx(0.95), "frequency": 1.0, "count": 1},
    ]


def test_no_voxel_gives_none_and_not_nan():
    nothing = calibration_bins([], [])
    assert (nothing.ece, nothing.brier, nothing.curve()) == (None, None, [])


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_drew_the_labels_is_found(random, temperature):
    logits = random.normal(0, 3, (3, 20000))
    labels = drawn(softmax(logits / temperature), random)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(log_probabilities(softmax(logits)), labels) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_has_less_cross_entropy(random):
    logits, labels = random.normal(0, 2, (4, 5, 6, 7)), random.integers(0, 4, (5, 6, 7))

    def cross_entropy(temperature):
        chosen = np.take_along_axis(softmax(logits / temperature), labels[None], axis=0)
        return -np.log(chosen).mean()

    best = fit_temperature(logits, labels)
    assert all(cross_entropy(best) <= cross_entropy(other) + 1e-9 for other in np.geomspace(0.06, 19, 400))


def test_sigmoid_regions_have_one_temperature_for_all(random):
    logits = random.normal(0, 3, (2, 30000))
    labels = random.random(logits.shape) < 1 / (1 + np.exp(-logits / 2))
    assert fit_temperature(logits, labels, sigmoid=True) == pytest.approx(2, rel=0.05)


def test_ignored_voxels_do_not_move_the_temperature(random):
    logits, labels = random.normal(0, 2, (3, 900)), random.integers(0, 3, 900)
    kept = fit_temperature(logits[:, :500], labels[:500])
    labels[500:] = 255
    assert fit_temperature(logits, labels, ignore_label=255) == kept


def test_a_large_logit_does_not_overflow():
    assert 0.05 <= fit_temperature(np.array([[4000.0, -4000.0], [0.0, 0.0]]), np.array([0, 1])) <= 20


@pytest.fixture
def judged(random):
    """A case whose tumor is in the middle, with probabilities of three classes."""
    reference = np.zeros((40, 41, 20), np.uint8)
    reference[15:25, 15:25, 8:12] = 1
    reference[18:22, 18:22, 9:11] = 2
    probabilities = softmax(
        4 * np.stack([reference == value for value in range(3)]) + random.normal(0, 1, (3, *reference.shape))
    )
    return probabilities.argmax(axis=0).astype(np.uint8), reference, probabilities.astype(np.float32)


REGIONS = {"liver": [1, 2], "tumor": [2]}


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_region_is_judged_within_ten_millimeters_of_its_box(judged, order):
    pred, reference, probabilities = judged
    pred = np.where(reference > 0, pred, 0)
    maps = (np.asarray(label, order=order) for label in (pred, reference))
    case = case_metrics(*maps, (2, 2, 5), REGIONS, probabilities=probabilities, lesion_region="tumor")
    window = np.s_[10:30, 10:30, 6:14]  # 5 voxels of 2 mm, 2 of 5 mm
    expected = calibration_bins(probabilities[1:].sum(axis=0)[window], reference[window] > 0)
    assert case.regions["liver"]["ece"] == pytest.approx(expected.ece, rel=1e-4)
    assert case.regions["liver"]["brier"] == pytest.approx(expected.brier, rel=1e-4)
    for row in (row for row in case.lesion_rows if row["of"] == "pred" and row["lesion"] == 1):
        assert row["score"] == pytest.approx(probabilities[2][pred == 2].mean(), rel=1e-4)
    assert pooled([case, case])["liver_ece_global"] == pytest.approx(case.regions["liver"]["ece"])


def test_maps_by_region_do_as_well_as_channels(judged):
    pred, reference, probabilities = judged
    named = {"liver": probabilities[1:].sum(axis=0), "tumor": probabilities[2]}
    both = [case_metrics(pred, reference, (1, 1, 1), REGIONS, probabilities=given) for given in (probabilities, named)]
    assert both[0].regions["tumor"]["ece"] == both[1].regions["tumor"]["ece"]


def test_ignored_voxels_are_not_calibrated(judged):
    pred, reference, probabilities = judged
    reference[:, :20] = 255
    probabilities[:, :, :20] = 1 / 3
    case = case_metrics(pred, reference, (2, 2, 5), {"liver": [1, 2]}, probabilities=probabilities, ignore_label=255)
    # the noisy prediction is everywhere: of 40 x 41 x 20 voxels the ignored rows are left out
    assert sum(case.calibration["liver"]["count"]) == 40 * 21 * 20


def test_a_region_that_is_nowhere_has_no_calibration(judged):
    nothing = np.zeros_like(judged[1])
    case = case_metrics(nothing, nothing, (1, 1, 1), REGIONS, probabilities=judged[2])
    assert (case.regions["tumor"]["ece"], case.regions["tumor"]["brier"]) == (None, None)


def test_numbers_that_are_no_probabilities_are_refused(judged):
    pred, reference, probabilities = judged
    with pytest.raises(ValueError, match=r"probabilities are -1 to 2; give them after the softmax"):
        calibration_bins([-1.0, 2.0], [0, 1])
    with pytest.raises(ValueError, match="2 probabilities and 1 labels; give one of each a voxel"):
        calibration_bins([0.1, 0.2], [0])
    with pytest.raises(ValueError, match="probabilities have 2 channels and region 'liver' is of"):
        case_metrics(pred, reference, (1, 1, 1), REGIONS, probabilities=probabilities[:2])
    with pytest.raises(ValueError, match="probabilities lack region 'tumor'; they have liver"):
        case_metrics(pred, reference, (1, 1, 1), REGIONS, probabilities={"liver": probabilities[1]})
    with pytest.raises(ValueError, match=r"probabilities are on a grid \(40, 41, 19\) and the maps on \(40, 41, 20\)"):
        case_metrics(pred, reference, (1, 1, 1), REGIONS, probabilities=probabilities[..., 1:])


def test_labels_that_do_not_fit_the_logits_are_refused():
    logits = np.zeros((2, 4))
    with pytest.raises(ValueError, match="logits have 4 voxels and labels 3; give one label a voxel"):
        fit_temperature(logits, np.zeros(3, int))
    with pytest.raises(ValueError, match="labels are 0 to 2 and logits have 2 channels"):
        fit_temperature(logits, np.array([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="no labeled voxel to fit a temperature to"):
        fit_temperature(logits, np.full(4, 9), ignore_label=9)
