"""Strict numerics for jprune's own code, and eight devices on one CPU."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import resource

# Before any backend starts: meshes in the tests are real ones. (Some tests run again
# with one device, where a trace selects by another program.)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = os.environ.get("JPRUNE_TEST_DEVICES", "8")

# XLA's fusion emitters for CPUs take twice as long to compile a small program as the
# emitters before them, which jaxlib had until 0.10; and both cores run a test process.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, os.environ.get("XLA_FLAGS", "")])

import jax
import pytest
from support import host

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
def compiled_programs():
    """Compiled programs are dropped where they fill the memory: 7 GB a process else."""
    yield
    if _STATM.exists() and _resident() > 1.5e9:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


_STATM = pathlib.Path("/proc/self/statm")  # of Linux


def _resident():
    """Bytes of this process in memory."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Programs that XLA cannot compile for this host's instructions are skipped."""
    try:
        return (yield)
    except jax.errors.JaxRuntimeError as error:
        if host.is_missing_float16(error):
            pytest.skip("XLA compiles no float16 without F16C")
        raise


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
