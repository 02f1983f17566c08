"""How many examples a property test runs: few while one works, all in `.ci/run`.

`pytest` runs the profile `quick`, `pytest --hypothesis-profile thorough` the other.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

QUICK, THOROUGH = 10, 100
"""Examples of a property test that asks for none; 100 is hypothesis's own default."""


def register_profiles() -> None:
    """Both profiles known to hypothesis, `quick` loaded; no deadline in either.

    No test may depend on how fast the machine is. The quick examples are the same
    on each run, so that whoever sees a failure can see it again; the thorough ones
    are new each time.
    """
    common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile(
        "quick", common, max_examples=QUICK, derandomize=True, database=None
    )
    settings.register_profile("thorough", common, max_examples=THOROUGH)
    settings.load_profile("quick")


def examples(thorough: int) -> settings:
    """Settings of a test that needs `thorough` examples; quick, a tenth, 5 at least."""
    share = settings().max_examples / THOROUGH
    return settings(max_examples=max(5, round(thorough * share)))
