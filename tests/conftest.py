"""Strict numerics for jprune's own code, and eight devices on one CPU."""

import os
import pathlib

# Before any backend starts: meshes in the tests are real ones.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"

import jax
import pytest

# Most of the time goes to compiling: what one test or an earlier run compiled
# is read again. (Delete .pytest_cache to start anew.) JAX writes an entry in place,
# so processes that shared one directory would read each other's halves.
_CACHE = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "xla" / jax.__version__
_PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "main")
jax.config.update("jax_compilation_cache_dir", str(_CACHE / _PROCESS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# What a test computes is small: to optimize it takes longer than to run it as it is.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def optimized(request):
    """Tests of what is compiled, or of much work, are compiled as users have it."""
    whole = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not whole)


@pytest.fixture(autouse=True)
def strict_promotion(request):
    """No type and no rank is promoted silently.

    Optax, Flax and Equinox do not hold to that: tests that run their code are
    marked `others_code`.
    """
    if request.node.get_closest_marker("others_code"):
        yield
        return
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
