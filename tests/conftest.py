"""For all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine that is busy makes no test fail.
settings.register_profile(
    "lanmirror", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("lanmirror")
