"""Times Torch-Pruning; `bench graph` runs it in an interpreter with that package.

    python experiments/benchmarks/graph/_torch_pruning.py ResNet-50 64 3

prints one JSON object. It imports neither jprune nor JAX. It uses one thread and
measures CPU time; each repetition has a new network, whose construction is not timed.

The networks are those of Torch-Pruning's examples: torchvision's ResNet-50, and timm's
ViT with a replacement of its attention whose number of channels may change.
torchvision's ViT has fused attention, which is only pruned together with the stream.
"""

import importlib
import json
import sys
import time
import warnings
from typing import Any

CLASSES = 10
RATIO = 0.5


def resnet50(side: int) -> tuple[Any, Any, dict[Any, int]]:
    """Returns the network, the layers to ignore, and the heads of layers."""
    torchvision = importlib.import_module("torchvision")

    del side
    network = torchvision.models.resnet50(num_classes=CLASSES)
    return network, [network.fc], {}


def vit(side: int) -> tuple[Any, Any, dict[Any, int]]:
    """Returns timm's ViT-B."""
    timm = importlib.import_module("timm")

    attention = timm.models.vision_transformer.Attention
    attention.forward = _attend
    network = timm.create_model(
        "vit_base_patch16_224", pretrained=False, num_classes=CLASSES, img_size=side
    )
    layers = [m for m in network.modules() if isinstance(m, attention)]
    return network, [network.head], {m.qkv: m.num_heads for m in layers}


def _attend(self: Any, x: Any, *rest: Any, **options: Any) -> Any:
    torch = importlib.import_module("torch")

    del rest, options
    batch, length, _ = x.shape
    qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return self.proj(x.transpose(1, 2).reshape(batch, length, -1))


def fused_vit(side: int) -> tuple[Any, Any, dict[Any, int]]:
    """Returns torchvision's ViT-B."""
    torch = importlib.import_module("torch")
    torchvision = importlib.import_module("torchvision")

    network = torchvision.models.VisionTransformer(
        image_size=side,
        patch_size=16,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        mlp_dim=3072,
        num_classes=CLASSES,
    )
    fused = torch.nn.MultiheadAttention
    layers = [m for m in network.modules() if isinstance(m, fused)]
    return network, [network.heads], {m: m.num_heads for m in layers}


NETWORKS = {"ResNet-50": resnet50, "ViT-B": vit, "ViT-B, fused attention": fused_vit}


def measure(name: str, side: int, repetitions: int) -> dict[str, Any]:
    """Returns the seconds of the graph, all groups, the pruner, and its step."""
    torch = importlib.import_module("torch")
    tp = importlib.import_module("torch_pruning")
    garbage = importlib.import_module("_garbage")  # beside this script

    torch.set_num_threads(1)
    make = NETWORKS[name]
    images = torch.zeros(1, 3, side, side)
    found: dict[str, Any] = {"build": [], "groups": [], "init": [], "step": []}
    found["collection"] = []
    for _ in range(repetitions):
        network, whole, heads = make(side)
        clock = [time.process_time()]
        graph = tp.DependencyGraph().build_dependency(network, example_inputs=images)
        clock.append(time.process_time())
        count = len(list(graph.get_all_groups(ignored_layers=whole)))
        clock.append(time.process_time())
        found["build"].append(clock[1] - clock[0])
        found["groups"].append(clock[2] - clock[1])
        network, whole, heads = make(side)
        before = sum(p.numel() for p in network.parameters())
        with garbage.full_collections() as collections:
            clock = [time.process_time()]
            pruner = tp.pruner.BasePruner(
                network,
                images,
                importance=tp.importance.MagnitudeImportance(p=2),
                global_pruning=True,
                pruning_ratio=RATIO,
                ignored_layers=whole,
                num_heads=heads,
            )
            clock.append(time.process_time())
            pruner.step()
            clock.append(time.process_time())
        found["init"].append(clock[1] - clock[0])
        found["step"].append(clock[2] - clock[1])
        found["collection"].append(sum(collections))
        after = sum(p.numel() for p in network.parameters())
        found |= {"count": count, "params": [before, after]}
    found["versions"] = {"torch": torch.__version__, "torch_pruning": tp.__version__}
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
