import itertools
import json
import math

import nibabel
import numpy as np
import pytest
from scipy.ndimage import label as connected
from scipy.ndimage import map_coordinates

import medseg.data.phantom as phantom_module
from medseg.data.phantom import make_phantom, phantom_case
from medseg.data.phantom_shapes import Ellipsoid, Points
from medseg.errors import DataError
from medseg.notices import SYNTHETIC

SMALL = (48, 40, 24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set of 8 cases, and the progress that was told while it was made."""
    told = []
    path = make_phantom(
        tmp_path_factory.mktemp("data") / "phantom", cases=8, shape=SMALL, progress=lambda *done: told.append(done)
    )
    return path, told


@pytest.fixture(scope="module")
def case():
    """One case on a fine grid, with as many tumors as there can be."""
    return phantom_case(4, shape=(112, 96, 56), tumors=6)


def volumes(path):
    """Stem -> (image, affine, label) of all cases in the folder."""
    found = {}
    for image_path in sorted(path.glob("images*/*.nii.gz")):
        image = nibabel.load(image_path)
        label_path = path / image_path.parent.name.replace("images", "labels") / image_path.name
        label = nibabel.load(label_path)
        np.testing.assert_array_equal(image.affine, label.affine)
        found[image_path.name] = np.asarray(image.dataobj), image.affine, np.asarray(label.dataobj)
    return found


def spacing(affine):
    return np.sqrt((affine[:3, :3] ** 2).sum(axis=0))


def voxel_of(point_mm, affine):
    return np.linalg.solve(affine, [*point_mm, 1.0])[:3]


def world_of(shape, affine):
    """Each voxel center in world mm, `(*shape, 3)`."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def test_the_msd_layout_is_complete(folder):
    path, _ = folder
    described = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    assert described["labels"] == {"0": "background", "1": "liver", "2": "tumor"}
    assert described["modality"] == {"0": "CT"}
    assert described["synthetic"] is True
    assert SYNTHETIC in described["description"]
    assert {"name", "reference", "licence", "tensorImageSize"} <= described.keys()
    assert (described["numTraining"], described["numTest"]) == (6, 2)
    listed = [entry[key] for entry in described["training"] for key in ("image", "label")]
    listed += described["test"] + [name.replace("imagesTs", "labelsTs") for name in described["test"]]
    stored = {f"./{file.relative_to(path).as_posix()}" for file in path.rglob("*.nii.gz")}
    assert len(listed) == 16
    assert set(listed) == stored
    assert {file.name for file in path.iterdir()} == {"imagesTr", "labelsTr", "imagesTs", "labelsTs", "dataset.json"}


def test_images_are_ct_values_and_labels_are_the_three_classes(folder):
    for image, _, label in volumes(folder[0]).values():
        assert image.dtype == np.int16
        assert label.dtype == np.uint8
        assert image.shape == label.shape
        assert sorted(image.shape) == sorted(SMALL)
        assert -1024 <= image.min() < -990
        assert 200 < image.max() < 1500
        assert 40 < np.median(image[label == 1]) < 160  # liver in the portal-venous phase, fatty ones too
        assert (np.abs(image) < 250).mean() > 0.3  # soft tissue and fat
        assert set(np.unique(label)) <= {0, 1, 2}


def test_grids_are_anisotropic_and_stored_in_several_orders(folder):
    affines = [affine for _, affine, _ in volumes(folder[0]).values()]
    for affine in affines:
        edges = spacing(affine)
        assert edges.max() > 1.1 * edges.min()
        np.testing.assert_allclose(np.sort(edges)[1], np.delete(np.sort(edges), 1)[0], rtol=1e-5)  # square in-plane
        axes = affine[:3, :3] / edges
        np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    assert len({tuple(np.round(spacing(affine), 3)) for affine in affines}) == len(affines)
    assert len({nibabel.aff2axcodes(affine) for affine in affines}) > len(affines) / 2
    oblique = [np.abs(affine[:3, :3] / spacing(affine)).max(axis=0).min() < 0.9999 for affine in affines]
    assert any(oblique)
    assert not all(oblique)


def test_the_liver_lies_on_the_patients_right_whatever_the_storage(folder):
    for image, affine, label in volumes(folder[0]).values():
        world = world_of(image.shape, affine)
        body, liver = world[image > -300].mean(axis=0), world[label > 0].mean(axis=0)
        assert liver[0] > body[0] + 20  # x grows to the right


def test_the_default_grid_has_a_field_of_view_of_an_abdomen(case):
    extent = np.sort(spacing(case.affines[0]) * case.images[0].shape)
    assert (extent > [200, 230, 270]).all()
    assert (extent < [300, 330, 380]).all()
    liver_ml = np.count_nonzero(case.label) * abs(np.linalg.det(case.affines[0])) / 1000
    assert 500 < liver_ml < 2500


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others(tmp_path, folder):
    again = volumes(make_phantom(tmp_path / "again", cases=8, shape=SMALL))
    for name, (image, affine, label) in volumes(folder[0]).items():
        np.testing.assert_array_equal(image, again[name][0])
        np.testing.assert_array_equal(affine, again[name][1])
        np.testing.assert_array_equal(label, again[name][2])
    other = phantom_case(1, shape=SMALL)
    one = phantom_case(2, shape=SMALL)
    assert one.images[0].shape != other.images[0].shape or (one.images[0] != other.images[0]).mean() > 0.5


def test_no_two_cases_are_alike_across_training_and_test(folder):
    masks = []
    for _, affine, label in volumes(folder[0]).values():
        canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(label, affine))
        masks.append(np.asarray(canonical.dataobj) > 0)
    for one, other in itertools.combinations(masks, 2):
        assert 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other)) < 0.97


def test_one_case_in_five_has_no_tumor(folder):
    counts = {name: np.count_nonzero(label == 2) for name, (_, _, label) in volumes(folder[0]).items()}
    assert 1 <= sum(count == 0 for count in counts.values()) <= 2
    assert not (phantom_case(0, shape=SMALL, tumors=0).label == 2).any()


@pytest.mark.parametrize(("cases", "without"), [(5, 1), (6, 1), (18, 4), (24, 5)])
def test_tumor_counts_are_planned(cases, without):
    counts = phantom_module._tumor_counts(np.random.default_rng(0), cases)
    assert len(counts) == cases
    assert counts.count(0) == without
    assert max(counts) <= 6


def test_tumors_have_the_stated_size_and_lie_where_stated(case):
    tumors = [lesion for lesion in case.lesions if lesion.kind != "cyst"]
    assert len(tumors) == 6
    assert all(5 <= tumor.diameter_mm <= 50 for tumor in tumors)
    world = world_of(case.label.shape, case.affines[0])
    marked = case.label == 2
    far = np.ones(np.count_nonzero(marked), bool)
    for tumor in tumors:
        distance = np.linalg.norm(world - tumor.center_mm, axis=-1)
        inside = marked & (distance <= tumor.diameter_mm / 2 + 1e-3)
        far &= distance[marked] > tumor.diameter_mm / 2 + 1e-3
        volume_mm3 = np.count_nonzero(inside) * abs(np.linalg.det(case.affines[0]))
        assert 0.1 < volume_mm3 / (math.pi / 6 * tumor.diameter_mm**3) < 1.6  # small ones fill voxels by chance
    assert not far.any()  # no tumor voxel that no lesion explains


def test_tumors_lie_inside_of_the_liver():
    for seed in range(3):
        regions = []
        for tumors in (0, 6):  # the same patient without and with tumors
            found = phantom_case(seed, shape=SMALL, tumors=tumors)
            canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image(found.label, found.affines[0]))
            regions.append(np.asarray(canonical.dataobj))
        assert not (regions[0] == 2).any()
        assert (regions[1] == 2).any()
        np.testing.assert_array_equal(regions[0] > 0, regions[1] > 0)


@pytest.mark.slow
def test_dark_tumors_are_darker_and_cysts_are_liver_in_the_label():
    checked = set()
    for seed in (2, 3, 6, 10, 12, 27):
        found = phantom_case(seed, shape=(96, 80, 48), tumors=2)
        image, affine = found.images[0], found.affines[0]
        liver = np.median(image[found.label == 1])
        world = world_of(image.shape, affine)
        for lesion in found.lesions:
            near = np.linalg.norm(world - lesion.center_mm, axis=-1) < 0.25 * lesion.diameter_mm
            if near.sum() < 8:
                continue
            mean = image[near].mean()
            if lesion.kind == "cyst":
                assert mean < 40
                assert set(found.label[near]) == {1}
            else:
                assert (mean < liver - 8) if lesion.kind == "dark" else (mean > liver + 8)
                assert (found.label[near] == 2).mean() > 0.8
            checked.add(lesion.kind)
    assert checked == {"dark", "bright", "cyst"}


def test_the_liver_touches_organs_of_its_own_hu(folder):
    """A window around each liver's HU marks a piece that leaks out of it to more than its own volume."""
    leaking = 0
    for image, _, label in volumes(folder[0]).values():
        liver = np.median(image[label == 1])
        pieces, _ = connected(np.abs(image - liver) < 35)
        largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        leaking += np.count_nonzero(largest & (label == 0)) > np.count_nonzero(label)
    assert leaking >= 6


def test_the_second_phase_shows_the_same_patient_on_another_grid():
    found = phantom_case(3, shape=(64, 56, 32), phases=2)
    (portal, arterial), (affine, other) = found.images, found.affines
    assert found.label.shape == portal.shape
    assert not np.allclose(np.sort(spacing(affine)), np.sort(spacing(other)), rtol=0.05)
    index = np.stack(np.meshgrid(*map(np.arange, portal.shape), indexing="ij"))
    index = np.concatenate([index.reshape(3, -1), np.ones((1, portal.size))])
    target = (np.linalg.inv(other) @ affine @ index)[:3]
    inside = ((target >= 0) & (target <= np.array(arterial.shape)[:, None] - 1)).all(axis=0)
    body = portal.ravel()[inside] > -300
    moved = map_coordinates(arterial.astype(np.float32), target[:, inside], order=1) > -300
    assert inside.mean() > 0.8
    assert 2 * np.count_nonzero(body & moved) / (np.count_nonzero(body) + np.count_nonzero(moved)) > 0.97
    liver = found.label.ravel()[inside] == 1
    brightness = map_coordinates(arterial.astype(np.float32), target[:, inside], order=1)[liver]
    assert 35 < np.median(brightness) < 100  # less contrast than in the portal phase of most patients, and not air


def test_two_phases_are_written_in_nnunet_raw_layout(tmp_path):
    path = make_phantom(tmp_path / "two", cases=3, shape=(32, 28, 18), phases=2)
    described = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    assert described["channel_names"] == {"0": "portal", "1": "arterial"}
    assert described["labels"] == {"background": 0, "liver": 1, "tumor": 2}
    assert described["file_ending"] == ".nii.gz"
    assert described["numTraining"] == 2
    assert described["synthetic"] is True
    names = {folder: sorted(file.name for file in (path / folder).iterdir()) for folder in ("imagesTr", "labelsTr")}
    assert names["imagesTr"] == [f"phantom_00{case}_000{phase}.nii.gz" for case in (0, 1) for phase in (0, 1)]
    assert names["labelsTr"] == ["phantom_000.nii.gz", "phantom_001.nii.gz"]
    assert [file.name for file in (path / "labelsTs").iterdir()] == ["phantom_002.nii.gz"]


def test_progress_is_told_after_each_case(folder):
    assert folder[1] == [(done, 8) for done in range(1, 9)]


def test_an_interrupted_phantom_leaves_nothing(tmp_path):
    def interrupt(done, cases):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_phantom(tmp_path / "runs" / "phantom", cases=4, shape=(32, 28, 18), progress=interrupt)
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path):
    path = make_phantom(tmp_path, cases=2, shape=(32, 28, 18))
    assert path == tmp_path
    before = sorted(path.rglob("*"))
    with pytest.raises(DataError, match=r"already has content; name a new folder"):
        make_phantom(path, cases=2, shape=(32, 28, 18))
    assert sorted(path.rglob("*")) == before


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"cannot be written \(.+\); choose another folder"):
        make_phantom(tmp_path / "file" / "phantom", cases=2, shape=(32, 28, 18))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cases": 1}, "at least 2 cases .* got 1"),
        ({"phases": 3}, r"1 phase \(portal\) or 2 .* got 3"),
        ({"shape": (48, 40, 8)}, r"at least 16 voxels along each axis .* got \(48, 40, 8\)"),
    ],
)
def test_numbers_that_make_no_phantom_are_refused(tmp_path, settings, message):
    with pytest.raises(DataError, match=message):
        make_phantom(tmp_path / "phantom", **{"cases": 2, "shape": SMALL} | settings)
    assert list(tmp_path.iterdir()) == []


def test_an_ellipsoid_has_no_hole_at_its_center():
    at = Points(*(np.array([value], dtype=np.float32) for value in (1.0, 2.0, 3.0, 0.0, 0.0)))
    ellipsoid = Ellipsoid((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert ellipsoid.distance(at) == pytest.approx(-4.0)
