"""The training recipes. To add one, add an entry to `RECIPES`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Annotated, Literal

from pydantic import Field

from model.card import InputSpec, ModelCard
from model.errors import RecipeError

# A value that JSON can hold, as card.json has them.
Argument = bool | int | float | str | None

# The bounds of the fields hold for `--set` (model/training/overrides.py).
Count = Annotated[int, Field(ge=1)]
AtLeastZero = Annotated[int, Field(ge=0)]
Factor = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All options of a training run except the seed and the data."""

    name: str
    summary: str
    changed: tuple[str, ...] = ()
    """Names of the fields that --set has changed, for the card."""

    data: Literal["cifar10", "synthetic", "folder"] = "cifar10"
    """The data set; "folder" with --data folder:PATH only."""
    holdout: AtLeastZero = 5000
    """Number of images held out of CIFAR-10's training set, for decisions. They are the same in every run."""
    holdout_share: BelowOne = 0.1
    """Share of the images of a folder that is held out, unless the folder has a part val."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the images of a folder that is for the test, unless the folder has the parts train and test."""
    needs_init: bool = False
    """Whether the run must start from trained weights (--init)."""
    watch: Literal["holdout", "test"] = "holdout"
    """The part that is evaluated after each epoch. Only the article's recipe uses the test set before the end."""

    keep: Literal["last", "loss", "accuracy"] = "last"
    """The epoch whose weights are kept: the last one, or the one with the lowest loss or the highest accuracy on the
    held-out images."""
    patience: AtLeastZero = 0
    """The run ends after this number of epochs without a better one, as `keep` compares them; 0 runs all epochs."""

    network: str = "resnet18"
    arguments: Mapping[str, Argument] = field(default_factory=dict, hash=False)
    """Keyword arguments of the network's builder, without `num_classes`."""

    resize: Count = 32
    """Length that the shorter side of an image is resized to, in training and test, pixels."""
    crop: Count = 32
    """Side of the square that is the input of the network, pixels."""
    pad: AtLeastZero = 4
    """Width of the reflected border that a random crop can include, pixels."""
    zoom: Factor = 1.0
    """The side of a random crop is multiplied or divided by up to this factor, uniformly in the logarithm."""
    flip: Literal["random", "alternating", "none"] = "random"
    """Horizontal flips: at random for each image and epoch, or at random for each image in the first epoch and then
    in every second epoch (Jordan 2024, arXiv:2404.00498). "none" is for classes that a flip changes, such as digits."""
    cutout: AtLeastZero = 0
    """Side of the square that is set to the mean (DeVries & Taylor 2017, arXiv:1708.04552), pixels; 0 for none."""
    aspect: Factor = 1.0
    """A random crop is stretched by up to this factor in width relative to its height, or in height relative to its
    width, evenly in the logarithm."""
    shift: Share = 0.0
    """A crop that `zoom` or `aspect` has changed is moved from the centre by up to this share of the distance to the
    border of the image."""
    rotation: NotNegative = 0.0
    """Each image is rotated by up to this angle, degrees."""
    sharpness: Share = 0.0
    """Largest change of sharpness, 0..1: each image is moved away from or towards its 3 x 3 blur by up to this share
    of the difference."""
    colour: Share = 0.0
    """Largest change of brightness, contrast, saturation and colour balance, as a share 0..1."""
    sizes: tuple[tuple[AtLeastZero, Count], ...] = ()
    """Progressive resizing: (first epoch, side in pixels) pairs; empty trains at `crop` throughout."""
    mean: tuple[Finite, Finite, Finite] = CIFAR10_MEAN
    std: tuple[Positive, Positive, Positive] = CIFAR10_STD

    epochs: Count
    epoch_images: AtLeastZero = 0
    """Number of images of an epoch, drawn at random; 0 for all."""
    batch_size: Count
    lr: Positive
    """The highest learning rate of the run."""
    schedule: Literal["triangular", "cosine", "piecewise", "multistep"] = "triangular"
    """triangular and cosine: linear from `warmup_start` x lr to lr at the fraction `warmup` of the run, then linear or
    along a half cosine to 0. piecewise: linear between the `points`. These change the rate at every step.
    multistep: the rate is multiplied by `gamma` at each of the `milestones`, in epochs."""
    points: tuple[tuple[Share, NotNegative], ...] = ()
    """(fraction of the run, fraction of lr) pairs, from (0, ...) to (1, ...)."""
    warmup: Share = 0.2
    warmup_start: Share = 0.2
    milestones: tuple[Count, ...] = ()
    gamma: Positive = 0.1
    momentum: BelowOne = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    muon_lr: NotNegative = 0.0
    """The highest learning rate of Muon, which then trains the network's `muon_parameters`; 0 for SGD only."""
    muon_momentum: BelowOne = 0.9
    linear_probe: bool = False
    """Whether a new classifier on the features of --init starts as their logistic regression, instead of at random."""
    backbone_lr: Share = 1.0
    """Factor of the learning rate for all parameters but those of the classifier; 0 freezes them."""
    freeze: tuple[str, ...] = ()
    """Names of layers that are not trained, such as ["conv1", "bn1", "layer1"] of a ResNet. Their BatchNorm statistics
    do not change."""
    balance: Share = 0.5
    """The loss of an image is weighted by (number of images of its class) ** -balance, so that rare classes count more:
    0 for equal weights, 1 for an equal total of each class. Weights are equal if all classes have as many images."""
    prune: BelowOne = 0.0
    """Fraction of the images with a loss below the mean that an epoch leaves out. The others of them get a larger
    weight (InfoBatch, Qin et al. 2024, arXiv:2303.04947). The first epoch and the last eighth of the run use all."""
    label_smoothing: BelowOne = 0.0
    ema_decay: BelowOne = 0.0
    """Decay per step of the exponential moving average of the weights, which is then exported; 0 for none. The decay of
    the first steps is lower (`loop.moving_average`)."""

    outlier_weight: NotNegative = 0.5
    """Weight of the loss of the outliers, if there are any: the cross-entropy between the uniform distribution and the
    predicted one (Hendrycks et al. 2019, arXiv:1812.04606)."""
    outlier_ratio: NotNegative = 0.5
    """Number of outliers in a batch, as a share of the number of images of the classes."""
    outlier_generated: BelowOne = 0.0
    """Share 0..1 of generated images among the outliers: one colour, gradients, noise, text and windows."""
    outlier_folder_weight: NotNegative = 0.0
    """Weight of the cross-entropy of the outliers' folders, which a second classifier on the same features predicts. It
    is for folders that are classes, as those of CIFAR-100 are, and is not part of the trained network. 0 for none."""

    teacher_weight: Share = 0.9
    """Weight 0..1 of the distillation loss, if there is a teacher (Hinton et al. 2015, arXiv:1503.02531). The loss of
    the labels has the rest."""
    teacher_temperature: Positive = 3.0
    """Divides the logits of both networks before the softmax of the distillation loss."""

    amp: bool = True
    """bfloat16 autocast, on devices with instructions for it; see `model.engines.torch.has_bfloat16`."""
    compile: bool = False
    """torch.compile. It is worthwhile on a GPU and in long runs. Each image size takes about a minute on two cores."""
    matmul_side: AtLeastZero = 0
    """On a CPU, 3x3 convolutions whose output is at most this many pixels wide run as one matrix product."""

    def network_arguments(self, num_classes: int) -> dict[str, Argument]:
        """All keyword arguments of the network's builder."""
        return {"num_classes": num_classes, **self.arguments}

    def with_network(self, network: str, **arguments: Argument) -> "Recipe":
        """The same recipe for another network, or for other arguments of its builder.

        The recipe's own arguments remain if the builder of `network` takes them.

        Raises:
            RecipeError: there is no such network.
        """
        from model.nets.zoo import accepts  # it imports torch, which the list of recipes does without

        kept = {name: value for name, value in self.arguments.items() if accepts(network, name)}
        return replace(self, network=network, arguments={**kept, **arguments})

    def for_bundle(self, card: ModelCard) -> "Recipe":
        """The same recipe for the network and the input of a bundle: its image size, mean and standard deviation.

        The images that were held out of CIFAR-10 for the bundle are held out again, because its network has seen the
        others. If it was trained on folders, so are their held-out and test images: the shares are those of the bundle.
        """
        arguments = {name: value for name, value in card.architecture.arguments.items() if name != "num_classes"}
        spec, before = card.input, card.training.recipe
        same_data = bool(self.holdout) and before.get("data") == self.data == "cifar10"
        folders = before.get("data") == "folder" or (card.training.data and card.training.data.added)
        shares = {name: before[name] for name in ("holdout_share", "test_share") if folders and name in before}
        return replace(
            self,
            **shares,
            network=card.architecture.name,
            arguments=arguments,
            resize=spec.resize,
            crop=spec.crop,
            mean=spec.mean,
            std=spec.std,
            holdout=before.get("holdout", self.holdout) if same_data else self.holdout,
        )

    def sides(self) -> set[int]:
        """All sides that training images have during the run, pixels."""
        return {self.side_at(epoch) for epoch in range(self.epochs)}

    def side_at(self, epoch: int) -> int:
        """Side of the training images in an epoch, counted from 0, pixels."""
        return next((side for first, side in reversed(self.sizes) if epoch >= first), self.crop)

    def lasting(self, epochs: int) -> "Recipe":
        """The same recipe with another number of epochs. Its milestones and sizes move in proportion."""
        scale = epochs / self.epochs
        return replace(
            self,
            epochs=epochs,
            sizes=tuple((round(first * scale), side) for first, side in self.sizes),
            milestones=tuple(max(1, round(milestone * scale)) for milestone in self.milestones),
        )

    def input_spec(self) -> InputSpec:
        """The test transform of this recipe."""
        return InputSpec(resize=self.resize, crop=self.crop, interpolation="bilinear", mean=self.mean, std=self.std)


FIELD_DEFAULTS: Mapping[str, object] = {
    option.name: option.default for option in fields(Recipe) if option.default is not MISSING
}
"""Values that an earlier recipe has of the fields that it lacks."""

QUICK = Recipe(
    name="quick",
    summary="16 epochs, small images first, easy ones left out: under two hours on two cores",
    arguments={"stem": "cifar", "width": 64, "zero_init_residual": True},
    zoom=1.2,
    flip="alternating",
    sizes=((0, 20), (5, 24), (10, 28), (12, 32)),
    epochs=16,
    batch_size=250,
    lr=0.25,
    schedule="piecewise",
    points=((0.0, 0.2), (0.1, 1.0), (0.5, 0.55556), (0.501, 0.36), (1.0, 0.0)),
    muon_lr=0.07,
    prune=0.5,
    label_smoothing=0.05,
    ema_decay=0.99,
    matmul_side=5,
)

SMALL = replace(
    QUICK,
    name="small",
    summary="18 epochs of a ResNet-9, small images first, each checkpoint of which `distill` can finish",
    network="resnet9",
    arguments={},
    sizes=((0, 20), (6, 24), (12, 28), (16, 32)),
    epochs=18,
    points=((0.0, 0.2), (0.1, 1.0), (0.6, 0.6), (1.0, 0.25)),
    matmul_side=0,
)

RESTART = replace(
    QUICK,
    name="restart",
    summary="22 epochs at a lower rate for --init, the weights of an earlier run: two hours on two cores",
    needs_init=True,
    sizes=((0, 24), (6, 28), (12, 32)),
    epochs=22,
    lr=0.2,
    schedule="triangular",
    points=(),
    warmup=0.1,
    muon_lr=0.02,
    label_smoothing=0.0,
    cutout=8,
)

STANDARD = Recipe(
    name="standard",
    summary="80 epochs at 32 x 32 with cutout, for a GPU",
    arguments={"stem": "cifar", "width": 64},
    epochs=80,
    batch_size=500,
    lr=1.0,
    cutout=12,
    ema_decay=0.995,
    compile=True,
)

BEST = replace(
    STANDARD,
    name="best",
    summary="255 epochs with strong augmentation and --outliers, for a GPU: 8.5 minutes on an H200",
    holdout=2500,
    arguments={"stem": "cifar", "width": 64, "zero_init_residual": True},
    zoom=1.4,
    aspect=1.3,
    shift=0.5,
    rotation=10.0,
    sharpness=0.6,
    colour=0.2,
    flip="alternating",
    epochs=255,
    lr=0.4,
    schedule="cosine",
    warmup=0.03,
    ema_decay=0.998,
    outlier_ratio=0.4,
    outlier_generated=0.06,
    outlier_folder_weight=0.3,
)

# A constant rate and a short cooldown afterwards, instead of a schedule that fixes the length of the run (Hägele et al.
# 2024, arXiv:2405.18392). The run can continue as long as there is time, and each of its checkpoints can be finished.
STEADY = replace(
    RESTART,
    name="steady",
    summary="40 epochs at a constant rate for --init and --outliers, at any point of which `cooldown` finishes",
    zoom=1.4,
    aspect=1.25,
    sharpness=0.6,
    colour=0.15,
    sizes=(),
    epochs=40,
    lr=0.07,
    schedule="piecewise",
    points=((0.0, 0.2), (0.005, 1.0), (1.0, 1.0)),
    muon_lr=0.008,
    cutout=10,
    ema_decay=0.995,
    outlier_generated=0.06,
)

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="smoke",
            summary="seconds on a CPU, a narrow network on synthetic images: shows that the parts fit",
            data="synthetic",
            holdout=50,
            # At width 8, oneDNN 3.13 corrupts memory in the backward pass of odd batches on two threads.
            arguments={"stem": "cifar", "width": 16},
            epochs=8,
            batch_size=25,
            lr=0.1,
            cutout=8,
            ema_decay=0.9,
            sizes=((0, 16), (5, 32)),
            amp=False,
        ),
        QUICK,
        RESTART,
        replace(
            RESTART,
            name="polish",
            summary="14 epochs at a low rate and 32 x 32 for --init, after `restart`: an hour and a half on two cores",
            sizes=(),
            epochs=14,
            lr=0.1,
            warmup=0.05,
            muon_lr=0.012,
            cutout=12,
        ),
        STEADY,
        replace(
            STEADY,
            name="cooldown",
            summary="5 epochs of 9,000 images at a falling rate for --init, the checkpoint of `steady`, and --outliers",
            epochs=5,
            epoch_images=9000,
            points=((0.0, 1.0), (1.0, 0.0)),
            prune=0.0,
            ema_decay=0.98,
        ),
        SMALL,
        replace(
            SMALL,
            name="distill",
            summary="12 epochs of a ResNet-9 at a falling rate for --init, a checkpoint of `small`, and --teacher",
            needs_init=True,
            sizes=((0, 24), (3, 28), (6, 32)),
            epochs=12,
            lr=0.15,
            schedule="triangular",
            points=(),
            warmup=0.05,
            muon_lr=0.04,
            label_smoothing=0.0,
            cutout=8,
            outlier_ratio=0.25,
            outlier_generated=0.06,
        ),
        STANDARD,
        Recipe(
            name="transfer",
            summary="10 epochs at 128 x 128 for --init, the weights of another task: a few thousand images of your own",
            needs_init=True,
            arguments={"stem": "imagenet", "width": 64},
            resize=144,
            crop=128,
            zoom=1.25,
            colour=0.1,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            epochs=10,
            batch_size=32,
            lr=0.02,
            schedule="cosine",
            warmup=0.1,
            warmup_start=0.1,
            weight_decay=1e-4,
            linear_probe=True,
            label_smoothing=0.05,
            ema_decay=0.98,
        ),
        BEST,
        replace(
            BEST,
            name="refine",
            summary="59 epochs at a lower rate for --init, the weights of `best`, and --outliers: 2 minutes on an H200",
            needs_init=True,
            epochs=59,
            lr=0.12,
            warmup=0.1,
            warmup_start=0.1,
        ),
        Recipe(
            name="article",
            summary="exactly as in the article: 300 epochs at 224 x 224, months on a CPU",
            holdout=0,
            holdout_share=0.0,
            watch="test",
            arguments={"stem": "cifar", "width": 64, "conv_bias": True},
            resize=256,
            crop=224,
            pad=0,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            epochs=300,
            batch_size=32,
            lr=0.1,
            schedule="multistep",
            milestones=(150, 225),
            nesterov=False,
            weight_decay=1e-4,
            amp=False,
        ),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        RecipeError: there is none. The message lists the names.
    """
    if name not in RECIPES:
        raise RecipeError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
