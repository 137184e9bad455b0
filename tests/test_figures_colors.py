from itertools import combinations

import color_vision as vision
import numpy as np
import pytest

from checkpoints.errors import RecordError
from figures import style
from landscape.family import FAMILY

OURS = ("sgd", "sam", "imbsam", "ssesam")


def test_lab_of_known_colors():
    """Reference values of sRGB white, red and mid gray under D65 (CIE 15)."""
    for color, expected in (("white", (100, 0, 0)), ("black", (0, 0, 0)), ("#FF0000", (53.24, 80.09, 67.20)),
                            ("#777777", (50.03, 0, 0))):
        np.testing.assert_allclose(vision.lab(vision.seen(color, "normal")), expected, atol=0.02)


@pytest.mark.parametrize("deficiency", vision.DEFICIENCIES)
def test_gray_is_gray_to_every_reader(deficiency):
    np.testing.assert_allclose(vision.DEFICIENCIES[deficiency].sum(axis=1), 1.0, atol=2e-6)
    assert np.ptp(vision.seen("#999999", deficiency)) < 1e-5


def test_red_and_green_draw_together_without_the_cones_that_part_them():
    """Severity 1 of protanomaly and deuteranomaly leaves no difference along the red-green axis."""
    for deficiency in ("protanomaly", "deuteranomaly"):
        assert vision.difference("#B85C00", "#5C8A00", deficiency) < 0.6 * vision.difference("#B85C00", "#5C8A00")
    assert vision.difference("#0072B2", "#0072B2", "tritanomaly") == 0.0


def test_any_two_optimizers_are_told_apart_by_every_reader():
    """2.3 is just noticeable; lines need several times that."""
    smallest, *where = vision.smallest_difference([style.look(opt).color for opt in OURS])
    assert smallest >= 15, where
    smallest, *where = vision.smallest_difference([style.look(opt).color for opt in OURS] + list(style.SPARE_COLORS))
    assert smallest >= 15, where


def test_members_of_the_family_that_share_a_color_differ_in_marker():
    looks = [style.look(opt) for opt in FAMILY]
    for one, other in combinations(looks, 2):
        apart = min(vision.difference(one.color, other.color, deficiency) for deficiency in vision.DEFICIENCIES)
        assert apart >= 10 or one.marker != other.marker, (one, other, apart)


def test_an_unknown_deficiency_is_refused():
    with pytest.raises(RecordError, match="deficiency=daltonism is unknown: expected one of normal, protanomaly"):
        vision.seen("red", "daltonism")
