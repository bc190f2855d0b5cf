"""Trains the cases of `test_ranks.py`: in this process, or in all processes that torchrun starts.

torchrun ... -m tests.model.training.follower BUNDLE FOLDER saves the results to FOLDER/RANK.pt.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn

from model.bundle import open_bundle
from model.card import OutlierImages
from model.engines.torch import TorchEngine, load_network
from model.nets.zoo import BUILDERS
from model.training.batch_norm import synchronise_batch_norm
from model.training.data import CIFAR10_LABELS, load
from model.training.distill import Teacher
from model.training.loop import Run, train
from model.training.outliers import Outliers
from model.training.ranks import Ranks, joined_ranks
from model.training.recipes import Recipe, recipe_named
from tests.model.nets.plain import MixedNetwork

CPU = torch.device("cpu")
IMAGES = 100

# A batch of 25 cannot be halved. At a higher rate, rounding errors grow tenfold in a few steps.
SHORT = replace(
    recipe_named("smoke"),
    epochs=5,
    batch_size=25,
    sizes=((0, 16),),
    lr=0.0002,
    sharpness=0.2,
    colour=0.2,
)
RECIPES: dict[str, Recipe] = {
    "SGD with a teacher": SHORT,  # 20 steps
    "Muon and outliers": replace(
        SHORT,
        epochs=2,
        muon_lr=0.0001,
        flip="alternating",
        zoom=1.2,
        shift=0.5,
        rotation=10.0,
        outlier_ratio=0.4,
        outlier_folder_weight=0.3,
    ),
    # The last batches of later epochs may have two images, whose statistics depend on rounding most.
    "a selection": replace(SHORT, epochs=3, batch_size=33, prune=0.5, lr=0.00005),
}
STOPPED = replace(SHORT, epochs=2, prune=0.5)
DROPOUT = replace(STOPPED, network="mixed", arguments={"width": 16})


@dataclass
class Trace:
    """The losses of a run, step by step. It can stop the run after so many steps."""

    stop: int = 10**9
    losses: list[float | None] = field(default_factory=list)

    def begin(self, done: float) -> None: ...

    def step(self, *, epoch: int, loss: float | None, lr: float, images: int, done: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self.stop:
            raise KeyboardInterrupt

    def epoch(self, record: dict[str, float]) -> None: ...


def run(recipe: Recipe, folder: Path, trace: Trace, ranks: Ranks, **options: Any) -> Run:
    data = load("synthetic", Path(), holdout=20, limit=IMAGES)
    return train(recipe, data, device=CPU, seed=3, folder=folder, observer=trace, ranks=ranks, **options)


def trained(case: str, bundle: Path, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """The losses of a case, its history and its weights."""
    options: dict[str, Any] = {}
    recipe = RECIPES[case]
    if "outliers" in case:
        about = OutlierImages(images=9, generated=0, without=[], unreadable=0, sha256="0" * 64)
        pixels = torch.randint(0, 256, (9, 32, 32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
        options["outliers"] = Outliers(pixels, torch.arange(9) % 4 - 1, about)
    elif "teacher" in case:
        teacher = Teacher.from_bundle(bundle, recipe=recipe, labels=CIFAR10_LABELS, device="cpu")
        # By itself, the engine of a process chooses the precision that is the faster one in a short trial.
        opened = open_bundle(bundle)
        engine = TorchEngine(load_network(opened), opened.card.input, device="cpu", precision="float32")
        options["teacher"] = replace(teacher, engine=engine)
    trace = Trace()
    result = run(recipe, folder, trace, ranks, **options)
    return {"losses": trace.losses, "history": result.history, "weights": result.net.state_dict()}


def stopped(recipe: Recipe, folder: Path, ranks: Ranks) -> None:
    """A run that is saved and stopped within its second epoch."""
    try:
        run(recipe, folder, Trace(6), ranks, save_every=0)
    except KeyboardInterrupt:
        return
    raise AssertionError("the run was not stopped")


def resumed(recipe: Recipe, folder: Path, ranks: Ranks) -> list[float | None]:
    """Continue such a run to its end, and return its losses."""
    trace = Trace()
    run(recipe, folder, trace, ranks, resume=True)
    return trace.losses


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(6),
    "BatchNormAct2d": lambda: BatchNormAct2d(6, act_layer=nn.SiLU),
    "cumulative": lambda: nn.BatchNorm2d(6, momentum=None),
    "without parameters": lambda: nn.BatchNorm2d(6, affine=False, track_running_stats=False),
}


def normalised(layer: str, ranks: Ranks) -> dict[str, Any]:
    """Outputs, gradients and state of a layer that sees two batches of 7 images, split between the ranks."""
    generator = torch.Generator().manual_seed(2)
    batches, factors = (3 + torch.randn(2, 2, 7, 6, 4, 4, generator=generator)).unbind()
    net = nn.Sequential(LAYERS[layer]())
    for parameter in net.parameters():
        nn.init.uniform_(parameter, generator=generator)
    if ranks.joined:
        synchronise_batch_norm(net, CPU)
    part = ranks.part(7)
    outputs: list[Tensor] = []
    gradients: list[Tensor] = []
    for batch, factor in zip(batches, factors, strict=True):
        mine = batch[part].requires_grad_()
        out = net(mine)
        (out * factor[part]).sum().backward()
        outputs.append(ranks.gather(out.detach(), 7))
        assert mine.grad is not None
        gradients.append(ranks.gather(mine.grad, 7))
    with torch.no_grad():
        outputs.append(net.eval()(batches[0]))
    return {"outputs": outputs, "gradients": gradients, "state": net.state_dict()}


def main(bundle: Path, folder: Path) -> None:
    BUILDERS["mixed"] = MixedNetwork
    with joined_ranks("cpu") as ranks:
        results: dict[str, Any] = {case: trained(case, bundle, folder / case, ranks) for case in RECIPES}
        stopped(STOPPED, folder / "stopped by two", ranks)
        results["resumed"] = resumed(STOPPED, folder / "stopped by one", ranks)
        trace = Trace()
        run(DROPOUT, folder / "whole", trace, ranks)
        stopped(DROPOUT, folder / "again", ranks)
        results["dropout"] = trace.losses, resumed(DROPOUT, folder / "again", ranks)
        results |= {layer: normalised(layer, ranks) for layer in LAYERS}
        torch.save(results, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
