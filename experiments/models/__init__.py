"""Small networks as pure functions over plain dicts of arrays.

Each module holds one network: `init(key, image_shape, classes, ...) -> params` and
`apply(params, images) -> logits`. Layers are `{"kernel": ..., "bias": ...}`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.models import cnn as cnn
from experiments.models import mlp as mlp
from experiments.models import resnet as resnet


class Model(NamedTuple):
    """A network as a pair of pure functions.

    Attributes:
      init: `(key, image_shape, classes) -> params`.
      apply: `(params, images (n, h, w, c)) -> logits (n, classes)`.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]


CNN = Model(cnn.init, cnn.apply)
MLP = Model(mlp.init, mlp.apply)
