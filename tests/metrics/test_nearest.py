import numpy as np
import pytest
from scipy.spatial.distance import cdist

from medseg.metrics import nearest

AXES = {
    "spacing": np.diag([0.7, 1.9, 5.0]),
    "sheared": np.array([[0.7, 0.3, 0.0], [0.0, 1.9, 0.4], [0.1, 0.0, 5.0]]),
}


@pytest.fixture
def sets():
    """Two sets of points that lie partly together, partly far apart."""
    random = np.random.default_rng(6)
    points, targets = np.zeros((2, 30, 21, 12), bool)
    points[:8], targets[4:9] = random.random((8, 21, 12)) < 0.1, random.random((5, 21, 12)) < 0.1
    points[25:28, 3:6, 4:7] = True  # with a voxel that is inside
    targets[20, 18, 10] = True
    return points, targets


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("way", ["neighborhood", "tree", "transform"])
def test_every_way_finds_the_nearest_of_all(sets, axes, way, monkeypatch):
    settings = {
        "neighborhood": {"OFFSETS": 100_000, "FEW": 0.0},
        "tree": {"OFFSETS": 7, "MANY": 10**9},
        "transform": {"OFFSETS": 7, "MANY": 0, "TRANSFORM": 10**9},
    }
    for name, value in settings[way].items():
        monkeypatch.setattr(nearest, name, value)
    nearest._shells.cache_clear()
    used = []
    for name in ("_transform", "cKDTree"):
        real = getattr(nearest, name)
        monkeypatch.setattr(
            nearest, name, lambda *args, real=real, name=name, **kw: used.append(name) or real(*args, **kw)
        )
    found = nearest.nearest_distances(*sets, AXES[axes])
    nearest._shells.cache_clear()
    table = cdist(*(np.argwhere(of) @ AXES[axes].T for of in sets))
    np.testing.assert_allclose(found[0], table.min(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found[1], table.min(axis=0), rtol=1e-6)
    expected = {
        "neighborhood": set(),
        "tree": {"cKDTree"},
        "transform": {"_transform" if axes == "spacing" else "cKDTree"},
    }
    assert set(used) == expected[way]


def test_no_target_is_infinitely_far(sets):
    there, back = nearest.nearest_distances(sets[0], np.zeros_like(sets[0]), AXES["spacing"])
    assert np.isinf(there).all()
    assert len(there) == sets[0].sum()
    assert len(back) == 0
