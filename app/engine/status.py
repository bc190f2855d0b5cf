"""The state of a swap: what is reported of new weights."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Action = Literal["swap", "rollback", "confirm"]
State = Literal["none", "loading", "comparing", "done", "refused", "interrupted", "conflict"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShadowPlan(_Frozen):
    """How new weights are compared with the old ones on live images before they are served.

    Attributes:
        share: of the live images that the new weights classify too, 0..1.
        images: number of images that must be compared.
        seconds: after which the new weights are refused if there were fewer.
        agreement: smallest share of the images with the same most probable class, 0..1.
    """

    share: float
    images: int
    seconds: float
    agreement: float


class Comparison(_Frozen):
    """Sums over the images that old and new weights both classified. In a pair, the old weights come first.

    Attributes:
        images: number of images.
        agreed: images with the same most probable class.
        confidence: sums of the probability of the most probable class.
        accepted: images with the verdict "accepted".
        failed: images on which the new weights raised an error. They count in `images`.
        dropped: copies that were not classified because others waited. They do not count in `images`.
    """

    images: int = 0
    agreed: int = 0
    confidence: tuple[float, float] = (0.0, 0.0)
    accepted: tuple[int, int] = (0, 0)
    failed: int = 0
    dropped: int = 0

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(
            images=self.images + other.images,
            agreed=self.agreed + other.agreed,
            confidence=(self.confidence[0] + other.confidence[0], self.confidence[1] + other.confidence[1]),
            accepted=(self.accepted[0] + other.accepted[0], self.accepted[1] + other.accepted[1]),
            failed=self.failed + other.failed,
            dropped=self.dropped + other.dropped,
        )

    @property
    def agreement(self) -> float:
        """Share of the images with the same most probable class; 0 without images."""
        return self.agreed / self.images if self.images else 0.0


class Status(_Frozen):
    """The state of the latest swap of a model.

    Attributes:
        version: of the new weights; None until they are loaded.
        previous: version that a rollback returns to; None if there is none.
        reason: why the new weights are not served; empty unless they were refused.
        comparison: None without one.
    """

    action: Action
    model: str
    state: State
    version: str | None = None
    previous: str | None = None
    reason: str = ""
    comparison: Comparison | None = None
