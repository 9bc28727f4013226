import math

import pytest
import torch

from turbowan.turbo_core import rope
from turbowan.turbo_core.rope import RopeOptions

CPU = torch.device("cpu")


def test_axes_share_a_head_of_128():
    assert rope.axis_dims(128) == (44, 42, 42)


def test_angles_of_each_axis_by_hand():
    table = rope.rotation((2, 3, 4), 128, CPU)
    assert table.cos.shape == table.sin.shape == (24, 64)
    t, h, w = 1, 2, 3
    row = (t * 3 + h) * 4 + w
    for column, (position, i, dim) in {0: (t, 0, 44), 21: (t, 21, 44), 22: (h, 0, 42), 62: (w, 19, 42)}.items():
        angle = position * 10000 ** (-2 * i / dim)
        assert table.cos[row, column].item() == pytest.approx(math.cos(angle), abs=1e-6)
        assert table.sin[row, column].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_first_token_does_not_turn():
    table = rope.rotation((2, 2, 2), 128, CPU)
    assert torch.equal(table.cos[0], torch.ones(64))
    assert torch.equal(table.sin[0], torch.zeros(64))


def test_shift_moves_positions_and_scale_stretches_them():
    plain = rope.rotation((5, 2, 2), 128, CPU)
    shifted = rope.rotation((4, 2, 2), 128, CPU, RopeOptions(shift_t=1.0))
    stretched = rope.rotation((3, 2, 2), 128, CPU, RopeOptions(scale_t=2.0))
    assert torch.equal(shifted.cos, plain.cos[4:])
    assert torch.equal(stretched.cos.reshape(3, 4, 64), plain.cos.reshape(5, 4, 64)[::2])
