"""The memory of tensors as rows."""

from __future__ import annotations

import torch

from engines.tensor_rows import TensorRows


def test_a_tensor_is_found_in_the_row_of_its_storage() -> None:
    rows, whole = TensorRows(), torch.arange(24, dtype=torch.int16).view(4, 6)
    row, first = rows.place(whole[2:])
    assert (row.nbytes, first) == (48, 24)
    row[first] = 99
    assert whole[2, 0] == 99


def test_a_kept_tensor_has_one_row_until_it_is_let_go() -> None:
    rows, kept, other = TensorRows(), torch.zeros(8), torch.zeros(8)
    rows.keep([kept, kept[2:]])
    row, _ = rows.place(kept[4:])
    assert rows.place(kept)[0] is row
    assert rows.place(other)[0] is not rows.place(other)[0]
    rows.let_go([kept])
    assert rows.place(kept)[0] is not row
