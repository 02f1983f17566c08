"""The forms of the cost model, and the least squares that find their constants."""

from __future__ import annotations

import numpy as np
import pytest

from proxy.meter.attribution.forms import (
    FORMS,
    PLAIN,
    PRIOR,
    Form,
)
from proxy.meter.attribution.policies import FEATURES


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_usual_constants_are_those_of_phase_for_steps_of_one_token_each(
    form: Form,
) -> None:
    # one step of three decodes and one of a prompt beside them, by hand
    work = dict.fromkeys(FEATURES, 0.0)
    work |= {"step": 2.0, "prefill_token": 500.0}
    work |= {"prefill_context": 500.0 * 250.0, "decode_token": 6.0, "kv_token": 600.0}
    work |= {"mixed_kv_tokens": 300.0}
    work |= {"decode_rows": 6.0, "kv_rows": 600.0, "reach_4": 1.5}
    scaled = np.array([work[name] for name in FEATURES]) * PRIOR
    plain = FORMS[PLAIN]
    expected = scaled @ plain.matrix @ plain.usual
    assert scaled @ form.matrix @ form.usual == pytest.approx(expected)
    assert len(form.constants) == len(form.units) == len(form.usual)


def test_the_plain_form_comes_first_and_has_the_constants_of_phase() -> None:
    assert next(iter(FORMS)) == PLAIN
    assert FORMS[PLAIN].scale.tolist() == PRIOR[:5].tolist()
