"""How many examples are tried of what anybody may send: a few, always the same, or `FUZZ_EXAMPLES` at random."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def examples(usual: int = 200) -> settings:
    """`usual`: where the variable is not set."""
    return settings(
        max_examples=EXAMPLES or usual,
        derandomize=not EXAMPLES,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
