"""How the weights of a model are replaced while the service runs: messages, and the coordinator that decides.

Every process that serves is a member. With several workers the coordinator is in the supervisor, else in the only
process. A swap has two phases, as a two-phase commit: all members load the new weights beside the old ones, then all of
them replace one reference. If one of them fails or ends before that, nobody swaps.

    loading -> (comparing ->) committing -> done
       |            |
       +------------+-> refused | interrupted
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

# Seconds for all members to load, and to acknowledge that they have swapped.
_LOAD_TIMEOUT = 600.0
_COMMIT_TIMEOUT = 10.0

Action = Literal["swap", "rollback", "confirm", "end"]
State = Literal["none", "loading", "comparing", "committing", "done", "refused", "interrupted", "conflict"]


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


class Order(_Frozen):
    """A member to the coordinator: what a client or a signal has requested.

    Attributes:
        id: unique.
        model: its name.
        folder: of the new bundle; None for the one that is served.
        shadow: None to swap without a comparison.
        refusal: why the member refuses the bundle; empty unless it does.
    """

    kind: Literal["order"] = "order"
    id: str
    action: Action
    model: str
    folder: Path | None = None
    shadow: ShadowPlan | None = None
    refusal: str = ""


class Prepare(_Frozen):
    """To the members: load a bundle beside the one that is served.

    Attributes:
        folder: of the bundle; None if the previous weights were not loaded from one.
        version: that it must have, for a rollback; None for any.
        shadow: whether it is going to be compared.
    """

    kind: Literal["prepare"] = "prepare"
    id: str
    model: str
    folder: Path | None
    version: str | None
    shadow: bool


class Prepared(_Frozen):
    """A member to the coordinator: the new weights are loaded.

    Attributes:
        version: of the new weights.
        serving: version of those that are served.
    """

    kind: Literal["prepared"] = "prepared"
    id: str
    version: str
    serving: str


class Failed(_Frozen):
    """A member to the coordinator: the new weights cannot be served."""

    kind: Literal["failed"] = "failed"
    id: str
    reason: str


class Compare(_Frozen):
    """To the members: classify a share of the live images with the new weights too."""

    kind: Literal["compare"] = "compare"
    id: str
    share: float


class Compared(_Frozen):
    """A member to the coordinator: its sums so far."""

    kind: Literal["compared"] = "compared"
    id: str
    comparison: Comparison


class Commit(_Frozen):
    """To the members: serve the new weights. `keep` says whether the old ones stay loaded."""

    kind: Literal["commit"] = "commit"
    id: str
    keep: bool


class Committed(_Frozen):
    """A member to the coordinator: it serves the new weights."""

    kind: Literal["committed"] = "committed"
    id: str


class Abort(_Frozen):
    """To the members: release the new weights."""

    kind: Literal["abort"] = "abort"
    id: str


class Confirm(_Frozen):
    """To the members: release the previous weights of a model."""

    kind: Literal["confirm"] = "confirm"
    model: str


class Status(_Frozen):
    """To the members: the state of the latest swap of a model.

    Attributes:
        id: of the order.
        version: of the new weights; None until they are loaded.
        previous: version that a rollback returns to; None if there is none.
        reason: why the new weights are not served; empty unless they were refused.
        comparison: sums over all members; None without a comparison.
    """

    kind: Literal["status"] = "status"
    id: str
    action: Action
    model: str
    state: State
    version: str | None = None
    previous: str | None = None
    reason: str = ""
    comparison: Comparison | None = None

    @property
    def final(self) -> bool:
        """Whether it does not change any more."""
        return self.state in ("done", "refused", "interrupted", "conflict")


class Answer(_Frozen):
    """To the member with an order: what has become of it, where that is not the status of the model."""

    kind: Literal["answer"] = "answer"
    status: Status


class Reload(_Frozen):
    """To one member: order a swap of every model to the contents of its folder."""

    kind: Literal["reload"] = "reload"


class Listen(_Frozen):
    """To a member: accept connections, even before the models are loaded."""

    kind: Literal["listen"] = "listen"


class Drain(_Frozen):
    """To a member: report "not ready", and continue to answer requests."""

    kind: Literal["drain"] = "drain"


Message = (
    Order
    | Prepare
    | Prepared
    | Failed
    | Compare
    | Compared
    | Commit
    | Committed
    | Abort
    | Confirm
    | Status
    | Answer
    | Reload
    | Listen
    | Drain
)
_message = TypeAdapter[Message](Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """A message as one line of JSON."""
    return message.model_dump_json().encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line that `encode` made."""
    return _message.validate_json(line)


@dataclass(slots=True)
class _Swap:
    """The swap in progress.

    Attributes:
        waiting: members whose answer is due.
        ends: when the state ends, by the coordinator's clock.
        versions: of the new weights, and of those that are served, by member.
        comparisons: the latest sums of each member.
    """

    order: Order
    folder: Path | None
    waiting: set[int]
    ends: float
    state: State = "loading"
    versions: dict[int, tuple[str, str]] = field(default_factory=dict)
    comparisons: dict[int, Comparison] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        """Of the new weights, once a member has loaded them."""
        return next(iter(self.versions.values()))[0] if self.versions else None

    @property
    def comparison(self) -> Comparison | None:
        """The sums of all members."""
        return sum(self.comparisons.values(), Comparison()) if self.order.shadow and self.comparisons else None


class Coordinator:
    """Decides about swaps. It does no input or output of its own, and one swap is in progress at most.

    Args:
        folders: name of each model -> folder of its bundle. A model without a folder cannot be reloaded from it.
        members: number of processes that are to serve.
        send: delivers a message to a member. It must not call the coordinator.
        on_commit: called with the model and its new folder once the swap is decided, before any member knows.
        clock: gives the time in seconds, from any origin.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        members: int,
        send: Callable[[int, Message], None],
        on_commit: Callable[[str, Path], None] = lambda _model, _folder: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders: dict[str, Path | None] = dict(folders)
        self._expected = members
        self._send = send
        self._on_commit = on_commit
        self._clock = clock
        self._members: set[int] = set()
        self._serving: dict[str, str] = {}  # versions, of the models that were swapped
        self._previous: dict[str, tuple[Path | None, str]] = {}
        self._statuses: dict[str, Status] = {}
        self._swap: _Swap | None = None

    def join(self, member: int) -> None:
        """Add a process that has been started. It loads the folders of the swaps that were decided before."""
        self._members.add(member)
        for status in self._statuses.values():
            self._send(member, status)

    def leave(self, member: int) -> None:
        """Remove a process that has ended. A swap that is not decided yet is interrupted."""
        if member not in self._members:
            return
        self._members.remove(member)
        if self._swap and self._swap.state == "committing":
            self._acknowledged(self._swap, member)
        elif self._swap:
            self._end(self._swap, "interrupted", "a process of the service ended during the swap: try again")

    def stop(self) -> None:
        """Interrupt the swap in progress unless it is decided, because the service shuts down."""
        if self._swap and self._swap.state != "committing":
            self._end(self._swap, "interrupted", "the service is shutting down")

    def receive(self, member: int, message: Message) -> None:
        """Handle a message from a member. One about a swap that has ended is ignored."""
        swap = self._swap
        if isinstance(message, Order):
            self._begin(member, message)
        elif swap is None or getattr(message, "id", None) != swap.order.id:
            return
        elif isinstance(message, Failed):
            self._end(swap, "refused", message.reason)
        elif isinstance(message, Prepared) and swap.state == "loading":
            swap.versions[member] = (message.version, message.serving)
            swap.waiting.discard(member)
            if not swap.waiting:
                self._loaded(swap)
        elif isinstance(message, Compared) and swap.state == "comparing":
            if message.comparison == swap.comparisons.get(member):
                return  # each report is sent to all members, so there is none without news
            swap.comparisons[member] = message.comparison
            self._compared(swap, late=False)
        elif isinstance(message, Committed) and swap.state == "committing":
            self._acknowledged(swap, member)

    def tick(self) -> None:
        """End a state that has lasted too long. Call this regularly."""
        swap = self._swap
        if swap is None or self._clock() < swap.ends:
            return
        if swap.state == "loading":
            self._end(swap, "refused", f"the new weights were not loaded within {_LOAD_TIMEOUT:g} s")
        elif swap.state == "comparing":
            self._compared(swap, late=True)
        else:  # a member that does not respond swaps when it reads the message
            self._end(swap, "done")

    def _begin(self, member: int, order: Order) -> None:
        if order.action == "end":
            self._end_early(member, order)
        elif self._swap:
            name = self._swap.order.model
            reason = f"a swap of {name} is in progress: try again when it has ended, or end it"
            self._answer(member, order, "conflict", reason)
        elif len(self._members) < self._expected:
            self._answer(member, order, "interrupted", "a process of the service is being started: try again")
        elif order.action == "confirm":
            self._confirm(member, order)
        elif order.action == "rollback" and order.model not in self._previous:
            self._answer(member, order, "conflict", f"{order.model} has no previous version that is still kept")
        elif order.action == "rollback":
            self._prepare(order, *self._previous[order.model])
        elif order.refusal:
            self._refuse(order, order.refusal)
        elif folder := order.folder or self._folders.get(order.model):
            self._prepare(order, folder, None)
        else:
            self._refuse(order, f"{order.model} was not loaded from a folder: name one in weights")

    def _end_early(self, member: int, order: Order) -> None:
        swap = self._swap
        if swap is None or swap.order.model != order.model or swap.state == "committing":
            self._answer(member, order, "conflict", f"no swap of {order.model} is in progress")
        else:
            # Not "interrupted", after which a client may try again.
            self._end(swap, "refused", "a client has ended the swap")
            self._answer(member, order, "done", "")

    def _refuse(self, order: Order, reason: str) -> None:
        """Refuse an order before anything is loaded."""
        self._report(_Swap(order, None, set(), self._clock(), "refused"), reason)

    def _confirm(self, member: int, order: Order) -> None:
        if order.model not in self._previous:
            self._answer(member, order, "conflict", f"{order.model} has no previous version that is still kept")
            return
        del self._previous[order.model]
        self._broadcast(Confirm(model=order.model))
        version = self._serving[order.model]
        self._publish(Status(id=order.id, action="confirm", model=order.model, state="done", version=version))

    def _prepare(self, order: Order, folder: Path | None, version: str | None) -> None:
        self._swap = _Swap(order, folder, set(self._members), self._clock() + _LOAD_TIMEOUT)
        self._report(self._swap)
        self._broadcast(
            Prepare(id=order.id, model=order.model, folder=folder, version=version, shadow=order.shadow is not None)
        )

    def _loaded(self, swap: _Swap) -> None:
        if len({new for new, _ in swap.versions.values()}) > 1:
            self._end(swap, "refused", "the bundle changed while it was loaded: try again when it is complete")
        elif swap.order.shadow:
            swap.state, swap.ends = "comparing", self._clock() + swap.order.shadow.seconds
            self._report(swap)
            self._broadcast(Compare(id=swap.order.id, share=swap.order.shadow.share))
        else:
            self._commit(swap)

    def _compared(self, swap: _Swap, *, late: bool) -> None:
        plan, found = swap.order.shadow, swap.comparison or Comparison()
        assert plan  # noqa: S101
        if found.images < plan.images:
            if late:
                self._end(
                    swap,
                    "refused",
                    f"only {found.images} of {plan.images} images were compared within {plan.seconds:g} s: "
                    "raise seconds or shadow, or lower images",
                )
            else:
                self._report(swap)
        elif found.agreement < plan.agreement:
            self._end(
                swap,
                "refused",
                f"old and new weights agree on {found.agreement:.2%} of {found.images} images, "
                f"which is below {plan.agreement:.2%}",
            )
        else:
            self._commit(swap)

    def _commit(self, swap: _Swap) -> None:
        name = swap.order.model
        (version,) = {new for new, _ in swap.versions.values()}
        serving = {served for _, served in swap.versions.values()}
        self._previous.pop(name, None)
        # They differ if a folder was overwritten in place before a member started. Then none could be served by all.
        if swap.order.action == "swap" and len(serving) == 1:
            self._previous[name] = (self._folders.get(name), serving.pop())
        self._folders[name], self._serving[name] = swap.folder, version
        swap.state, swap.ends = "committing", self._clock() + _COMMIT_TIMEOUT
        swap.waiting = set(self._members)
        if swap.folder:
            self._on_commit(name, swap.folder)
        self._report(swap)
        self._broadcast(Commit(id=swap.order.id, keep=name in self._previous))

    def _acknowledged(self, swap: _Swap, member: int) -> None:
        swap.waiting.discard(member)
        if not swap.waiting:
            self._end(swap, "done")

    def _end(self, swap: _Swap, state: State, reason: str = "") -> None:
        self._swap = None
        swap.state = state
        if state != "done":
            self._broadcast(Abort(id=swap.order.id))
        self._report(swap, reason)

    def _report(self, swap: _Swap, reason: str = "") -> None:
        order = swap.order
        previous = self._previous.get(order.model)
        self._publish(
            Status(
                id=order.id,
                action=order.action,
                model=order.model,
                state=swap.state,
                version=swap.version,
                previous=previous[1] if previous else None,
                reason=reason,
                comparison=swap.comparison,
            )
        )

    def _publish(self, status: Status) -> None:
        self._statuses[status.model] = status
        self._broadcast(status)

    def _answer(self, member: int, order: Order, state: State, reason: str) -> None:
        """Send one member what has become of its order. The status of the model does not change."""
        status = Status(id=order.id, action=order.action, model=order.model, state=state, reason=reason)
        self._send(member, Answer(status=status))

    def _broadcast(self, message: Message) -> None:
        for member in sorted(self._members):
            self._send(member, message)
