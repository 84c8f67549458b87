"""What XLA cannot do on this host."""

import os

FLOAT16 = "--xla_cpu_max_isa=SSE4_2" not in os.environ.get("XLA_FLAGS", "")
"""Whether XLA compiles float16, and float8, which it converts by way of it.

Below AVX there is no instruction for the conversion (F16C), and XLA for CPUs does not
bring the function `__extendhfsf2` that would stand in for it: `x + x` fails.
"""


def is_missing_float16(error: BaseException) -> bool:
    """Whether a program failed because it has float16 on such a host."""
    return not FLOAT16 and "Failed to materialize symbols" in str(error)
