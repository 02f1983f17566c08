"""How many examples a property test runs: few while one works, all in `.ci/run`.

`pytest` runs the profile `quick`, `.ci/run` the same tests with `thorough`, and who
looks for faults that nobody knows runs
`pytest -m hypothesis --hypothesis-profile explore`.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

QUICK, THOROUGH = 10, 100
"""Examples of a property test that asks for none; 100 is hypothesis's own default."""


def register_profiles() -> None:
    """The profiles known to hypothesis, `quick` loaded; no deadline in any.

    No test may depend on how fast the machine is. Quick and thorough examples are the
    same on each run: whoever sees a failure can see it again, and a change is refused
    for what it did, not for what was found by luck meanwhile. Those of `explore` are
    new each time.
    """
    common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    same = settings(common, derandomize=True, database=None)
    settings.register_profile("quick", same, max_examples=QUICK)
    settings.register_profile("thorough", same, max_examples=THOROUGH)
    settings.register_profile("explore", common, max_examples=THOROUGH)
    settings.load_profile("quick")


def examples(thorough: int) -> settings:
    """Settings of a test that needs `thorough` examples; quick, a tenth, 5 at least."""
    share = settings().max_examples / THOROUGH
    return settings(max_examples=max(5, round(thorough * share)))
