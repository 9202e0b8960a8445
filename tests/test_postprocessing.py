import numpy as np

from medseg.postprocessing import KeepLargest, RemoveSmall


def test_only_the_largest_piece_of_a_region_stays() -> None:
    label = np.zeros((9, 8, 7), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[2, 2, 2] = 2  # a tumor inside the large piece stays
    label[7:9, 6:8, 5:7] = 1
    label[8, 7, 6] = 2
    before = label.copy()
    kept = KeepLargest([1, 2])(label, np.eye(4))
    assert np.array_equal(kept[:6], label[:6])
    assert not kept[6:].any()
    assert np.array_equal(label, before)


def test_an_empty_label_has_no_largest_piece() -> None:
    assert not KeepLargest([1])(np.zeros((3, 4, 5), np.uint8), np.eye(4)).any()


def test_a_small_lesion_becomes_what_surrounds_it() -> None:
    label = np.ones((9, 8, 7), np.uint8)
    label[1:3, 1:3, 1:3] = 2  # 8 voxels of 0.012 mL = 0.096 mL
    label[6, 6, 5] = 2  # 0.012 mL
    cleaned = RemoveSmall(2, 0.05, becomes=1)(label, np.diag([2.0, 2.0, 3.0, 1.0]))
    assert np.count_nonzero(cleaned == 2) == 8
    assert cleaned[6, 6, 5] == 1
