"""What every test stands on: JAX's settings, and how many examples Hypothesis draws.

The package itself sets no global flag of JAX; these are the tests' own.
"""

import gc
import os

import jax
import pytest
import signatures
from hypothesis import HealthCheck, settings

signatures.install()

# Nearly all of the tests' time is compiling: they do without optimisations of the code and of
# loops, and, where XLA still lets one choose, without its newer way to write loops, and with the
# whole program in one module of LLVM, not one for each core. It takes a third of the time.
_QUICK_TO_COMPILE = [
    "--xla_backend_optimization_level=0",
    "--xla_disable_hlo_passes=while-loop-invariant-code-motion,simplify-while-loops",
]
if jax.__version_info__ < (0, 11):
    _QUICK_TO_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
    _QUICK_TO_COMPILE.append("--xla_cpu_parallel_codegen_split_count=1")
os.environ["XLA_FLAGS"] = " ".join([*_QUICK_TO_COMPILE, os.environ.get("XLA_FLAGS", "")])

# Strict promotion turns a silent change of dtype inside the package into an error. Without the
# cache on disk a test that counts compilations sees the same number in every run.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)

# A first example compiles and the next ones do not, so no deadline and no judgement of slowness
# fits both. The fixture x64_off is the same for every example, so Hypothesis may hold it open.
_COMPILING = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("few", max_examples=15, **_COMPILING)
settings.register_profile("few-repeatable", settings.get_profile("few"), derandomize=True)
settings.register_profile("many", max_examples=300, **_COMPILING)
settings.load_profile("few-repeatable" if os.environ.get("CI") else "few")


def pytest_collection_finish():
    """Tracing makes many objects, few of them garbage: a tenth of the time went into looking.

    What stands when the tests begin, the modules, is not looked at again.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture
def x64_off():
    """JAX as it comes, with float32 the widest: for tests of what a user sees by default."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(autouse=True, scope="module")
def let_go_of_programs():
    """Every compiled program holds memory maps, of which Linux grants a process 65530."""
    yield
    jax.clear_caches()
