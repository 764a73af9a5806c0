import numpy as np
import pandas as pd
import pytest

from tl_l2norm.analysis.pressure_correlation import pressure_table


def pulls(pull: list[float], p: list[float], norm: list[float]) -> pd.DataFrame:
    columns = {"pressure": pull, "pull": pull, "p_true": p, "l2_norm": norm, "position": range(len(pull)), "is_sink": False}
    return pd.concat([pd.DataFrame(columns).assign(mode="think", prompt=str(i), sequence=i) for i in range(8)])


def test_the_pull_goes_against_the_probability_and_with_the_norm_by_hand() -> None:
    up, zigzag = [float(i) for i in range(8)], [0.0, 1, 0.5, 2, 1.5, 3, 2.5, 4]
    table = pressure_table(pulls(zigzag, [-x for x in zigzag], up), resamples=50).set_index(["quantity", "against", "scope"])
    assert table.loc[("pressure", "p_true", "tokens"), "rho"] == pytest.approx(-1)
    # ranks 0 2 1 4 3 6 5 7 against 0 to 7: 1 - 6 * 6 / (8 * 63)
    assert table.loc[("pressure", "l2_norm", "tokens"), "rho"] == pytest.approx(1 - 36 / 504)
    assert np.isnan(table.loc[("pressure", "l2_norm", "prompts"), "rho"]), "all prompts are the same"
    assert (table.loc[("pressure", "p_true", "partial"), "rho"]) == pytest.approx(-1)
    with pytest.raises(ValueError, match="lacks the columns \\['mode'.*labels="):
        pressure_table(pulls(up, up, up).drop(columns="mode"))
