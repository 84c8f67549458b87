"""Architectures at toy size, for studies of structure.

`ARCHITECTURES[name](key)` builds one: a pure function, its parameters and inputs
for it. Everything follows from the key, no bias is 0 and no scale 1, and nothing
drops out. Sizes that could be pruned are even, and differ where they may.
"""

from experiments.models.zoo import (
    convolutional,
    decoding,
    encoders,
    equinox_modules,
    experts,
    feedforward,
    generative,
    graphs,
    language,
    recurrent,
    residual,
    residual_nnx,
    swin,
    towers,
    vision,
)
from experiments.models.zoo.base import Architecture as Architecture
from experiments.models.zoo.base import Builder as Builder

ARCHITECTURES: dict[str, Builder] = {
    **feedforward.ARCHITECTURES,
    **experts.ARCHITECTURES,
    **convolutional.ARCHITECTURES,
    **residual.ARCHITECTURES,
    **residual_nnx.ARCHITECTURES,
    **equinox_modules.ARCHITECTURES,
    **vision.ARCHITECTURES,
    **swin.ARCHITECTURES,
    **encoders.ARCHITECTURES,
    **language.ARCHITECTURES,
    **decoding.ARCHITECTURES,
    **recurrent.ARCHITECTURES,
    **generative.ARCHITECTURES,
    **graphs.ARCHITECTURES,
    **towers.ARCHITECTURES,
}
