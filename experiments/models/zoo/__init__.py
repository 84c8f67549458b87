"""Architectures at toy size, for studies of structure.

`ARCHITECTURES[name](key)` builds one: a pure function with its parameters and inputs.
Everything is a function of the key, no bias is 0, no scale is 1, and there is no
dropout. Sizes that could be pruned are even, and different where possible.
"""

from experiments.models.zoo import (
    attention,
    conditioned,
    convolutional,
    decoding,
    encoders,
    equinox_modules,
    experts,
    feedforward,
    gated_convolutions,
    generative,
    graphs,
    language,
    recurrent,
    residual,
    residual_nnx,
    sequences,
    stateful,
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
    **gated_convolutions.ARCHITECTURES,
    **sequences.ARCHITECTURES,
    **attention.ARCHITECTURES,
    **conditioned.ARCHITECTURES,
    **stateful.ARCHITECTURES,
}
