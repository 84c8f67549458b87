"""Times the selection on meshes of 1 to 8 CPU devices; prints one line of JSON.

`selection` runs it in a separate process, since the number of devices must be set
before JAX starts. The devices share the machine's cores, so this measures the overhead
of sharding, not its gain.
"""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.harness import timing
from jprune import selection

LEAVES, SIDE = 4, 2048


def moved_bytes(program: str) -> int:
    """Returns the total bytes of the results of collectives in a compiled program."""
    found = re.findall(
        r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|"
        r"reduce-scatter)(?:-start)?\(",
        program,
    )
    shapes = [
        s for result in found for s in re.findall(r"[a-z]+(\d+)\[([\d,]*)\]", result)
    ]
    return sum(
        int(bits) // 8 * int(np.prod([int(d) for d in dims.split(",") if d]))
        for bits, dims in shapes
    )


def main() -> None:
    """Times a global selection on each number of devices."""
    rng = np.random.default_rng(0)
    host = [
        np.abs(rng.standard_normal((SIDE, SIDE), np.float32)) for _ in range(LEAVES)
    ]
    k = LEAVES * SIDE * SIDE // 10
    forms, moved = {}, {}
    for count in (1, 2, 4, 8):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("x",))
        sharding = NamedSharding(mesh, PartitionSpec("x", None))
        scores = [jax.device_put(jnp.asarray(x), sharding) for x in host]
        program = jax.jit(lambda s: selection.top_k(s, k)).lower(scores).compile()
        moved[str(count)] = moved_bytes(program.as_text() or "")
        forms[str(count)] = lambda program=program, scores=scores: program(scores)
    seconds = timing.in_turns(forms, 5)
    print(json.dumps({"cpu_seconds": seconds, "bytes_in_program": moved}))


if __name__ == "__main__":
    main()
