"""What does not fit a dtype is counted by comparing values, whatever torch's cast does with it. (FAULTS B2)"""

from __future__ import annotations

import math

import pytest
import torch

from sftm_app.engine.fitting import Unfit, fit, unfit
from sftm_app.errors import NumericalError

LARGEST = {
    torch.float8_e4m3fn: 448.0,
    torch.float8_e5m2: 57344.0,
    torch.float16: 65504.0,
    torch.bfloat16: 3.3895313892515355e38,
    torch.float32: 3.4028234663852886e38,
}


@pytest.mark.parametrize("dtype", LARGEST)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_edge_of_the_range_is_exact(dtype: torch.dtype, sign: float) -> None:
    largest = sign * LARGEST[dtype]
    values = torch.tensor([0.0, 1e-3, largest], dtype=torch.float64)
    assert unfit(values, dtype) == Unfit()
    assert fit("w", values, dtype).double()[2] == largest
    past = torch.tensor([1.0, math.nextafter(largest, sign * math.inf), largest * 1.5], dtype=torch.float64)
    assert unfit(past, dtype).count == 2


@pytest.mark.parametrize("dtype", LARGEST)
def test_nan_and_infinity_never_fit(dtype: torch.dtype) -> None:
    assert unfit(torch.tensor([1.0, math.inf, -math.inf]), dtype) == Unfit(2, math.inf)
    assert unfit(torch.tensor([1.0, math.nan, math.inf]), dtype).count == 2
    with pytest.raises(NumericalError, match="'w': 1 merged values are NaN"):
        fit("w", torch.tensor([math.nan]), dtype)
    assert unfit(torch.empty(0, 3), dtype) == Unfit()


def test_the_sentence_names_the_tensor_the_count_and_the_largest_value() -> None:
    with pytest.raises(NumericalError, match=r"'w': 2 merged values do not fit float8_e4m3fn \(largest 6e\+04\)"):
        fit("w", torch.tensor([60000.0, 500.0, 448.0]), torch.float8_e4m3fn)
