"""The coordinator of swaps, without processes."""

from pathlib import Path
from typing import Any

import pytest

from app.serving.swap import (
    Abort,
    Answer,
    Commit,
    Committed,
    Compare,
    Compared,
    Comparison,
    Confirm,
    Coordinator,
    Failed,
    Message,
    Order,
    Prepare,
    Prepared,
    ShadowPlan,
    Status,
    decode,
    encode,
)

OLD, NEW = Path("/weights/old"), Path("/weights/new")
PLAN = ShadowPlan(share=0.5, images=10, seconds=600, agreement=0.9)


class Group:
    """A coordinator with members that only record what they are sent."""

    def __init__(self, members: int = 2) -> None:
        self.now = 1000.0
        self.sent: list[tuple[int, Message]] = []
        self.committed: list[tuple[str, Path]] = []
        self.coordinator = Coordinator(
            {"net": OLD},
            members=members,
            send=lambda member, message: self.sent.append((member, decode(encode(message)))),
            on_commit=lambda model, folder: self.committed.append((model, folder)),
            clock=lambda: self.now,
        )
        for member in range(members):
            self.coordinator.join(member)

    def order(self, action: Any = "swap", **more: Any) -> None:
        more = {"folder": NEW, **more} if action == "swap" else more
        self.coordinator.receive(0, Order(id="1", action=action, model="net", **more))

    def prepared(self, *members: int, version: str = "new", serving: str = "old") -> None:
        for member in members:
            self.coordinator.receive(member, Prepared(id="1", version=version, serving=serving))

    def compared(self, member: int, **sums: Any) -> None:
        self.coordinator.receive(member, Compared(id="1", comparison=Comparison(**sums)))

    def committed_by(self, *members: int) -> None:
        for member in members:
            self.coordinator.receive(member, Committed(id="1"))

    def wait(self, seconds: float) -> None:
        """Let the time pass."""
        self.now += seconds
        self.coordinator.tick()

    def swap(self) -> None:
        self.order()
        self.prepared(0, 1)
        self.committed_by(0, 1)

    def received(self, kind: type[Message]) -> list[int]:
        """The members that were sent a message of this kind."""
        return [member for member, message in self.sent if isinstance(message, kind)]

    def status(self) -> Status:
        """The latest status that the members were sent."""
        (*_, status) = [message for _, message in self.sent if isinstance(message, Status)]
        return status

    @property
    def rejected(self) -> Status:
        ((member, message),) = [sent for sent in self.sent if isinstance(sent[1], Answer)]
        assert member == 0
        assert isinstance(message, Answer)
        return message.status


def test_nobody_swaps_before_all_have_loaded_the_new_weights() -> None:
    group = Group()
    group.order()
    assert group.received(Prepare) == [0, 1]
    group.prepared(0)
    assert group.received(Commit) == []
    assert group.committed == []
    assert (group.status().state, group.status().version) == ("loading", None)
    group.prepared(1)
    assert group.received(Commit) == [0, 1]
    assert group.committed == [("net", NEW)]
    group.committed_by(0)
    assert group.status().state == "committing"
    group.committed_by(1)
    assert (group.status().state, group.status().version, group.status().previous) == ("done", "new", "old")


def test_the_failure_of_one_ends_the_swap_of_all() -> None:
    group = Group()
    group.order()
    group.prepared(0)
    group.coordinator.receive(1, Failed(id="1", reason="a hash is wrong"))
    assert group.received(Abort) == [0, 1]
    assert group.received(Commit) == []
    assert (group.status().state, group.status().reason) == ("refused", "a hash is wrong")


@pytest.mark.parametrize("prepared", [(), (0,), (1,)])
def test_a_member_that_ends_before_the_decision_interrupts_the_swap(prepared: tuple[int, ...]) -> None:
    group = Group()
    group.order()
    group.prepared(*prepared)
    group.coordinator.leave(1)
    assert group.received(Abort) == [0]
    assert group.status().state == "interrupted"
    group.prepared(0)
    assert group.received(Commit) == [], "its answer comes too late"


def test_a_member_that_ends_after_the_decision_changes_nothing() -> None:
    group = Group()
    group.order()
    group.prepared(0, 1)
    group.coordinator.leave(1)
    assert group.status().state == "committing"
    group.committed_by(0)
    assert group.status().state == "done"


def test_weights_that_differ_between_members_are_refused() -> None:
    group = Group()
    group.order()
    group.prepared(0, version="new")
    group.prepared(1, version="newer")
    assert group.received(Commit) == []
    assert group.status().state == "refused"


def test_weights_replace_versions_that_differ_between_members_and_no_rollback_returns_to_one_of_them() -> None:
    group = Group()
    group.swap()
    group.order()
    group.prepared(0, version="newest", serving="new")
    group.prepared(1, version="newest", serving="old")
    assert [message.keep for _, message in group.sent if isinstance(message, Commit)] == [True, True, False, False]
    group.committed_by(0, 1)
    assert (group.status().state, group.status().version, group.status().previous) == ("done", "newest", None)
    group.order("rollback")
    assert group.rejected.state == "conflict"


def test_a_second_swap_is_a_conflict_and_leaves_the_first() -> None:
    group = Group()
    group.order()
    group.coordinator.receive(0, Order(id="2", action="swap", model="other", folder=NEW))
    assert (group.rejected.id, group.rejected.state) == ("2", "conflict")
    group.prepared(0, 1)
    assert group.received(Commit) == [0, 1]


def test_no_swap_begins_while_a_process_is_missing() -> None:
    group = Group()
    group.coordinator.leave(1)
    group.order()
    assert group.rejected.state == "interrupted"
    group.coordinator.join(1)
    group.order()
    assert group.received(Prepare) == [0, 1]


def test_a_process_that_joins_gets_the_latest_status() -> None:
    group = Group()
    group.swap()
    group.sent.clear()
    group.coordinator.join(2)
    assert group.received(Status) == [2]
    assert group.status().state == "done"


def test_weights_without_a_folder_cannot_be_loaded_again() -> None:
    group = Group()
    group.coordinator.receive(0, Order(id="1", action="swap", model="injected"))
    assert group.received(Status) == [0, 1]
    assert (group.status().model, group.status().state) == ("injected", "refused")
    group.order(folder=None)
    (order,) = {message for _, message in group.sent if isinstance(message, Prepare)}
    assert order.folder == OLD


def test_all_members_get_the_refusal_of_one() -> None:
    group = Group()
    group.swap()
    group.sent.clear()
    group.order(folder=None, refusal="no such folder")
    assert group.received(Status) == [0, 1]
    status = group.status()
    assert (status.id, status.state, status.reason, status.previous) == ("1", "refused", "no such folder", "old")
    assert group.received(Prepare) == []
    group.swap()
    assert group.status().state == "done"


def test_a_refusal_during_a_swap_leaves_the_swap() -> None:
    group = Group()
    group.order()
    group.coordinator.receive(1, Order(id="2", action="swap", model="net", refusal="no such folder"))
    assert group.status().id == "1"
    assert [message.status.state for _, message in group.sent if isinstance(message, Answer)] == ["conflict"]
    group.prepared(0, 1)
    assert group.received(Commit) == [0, 1]


@pytest.mark.parametrize("loaded", [(), (0, 1)])
def test_a_swap_that_a_client_ends_leaves_the_old_weights(loaded: tuple[int, ...]) -> None:
    group = Group()
    group.order(shadow=ShadowPlan(share=1, images=10, seconds=100, agreement=1))
    group.prepared(*loaded)
    group.coordinator.receive(0, Order(id="2", action="end", model="another"))
    assert group.rejected.state == "conflict"
    group.sent.clear()
    group.coordinator.receive(0, Order(id="3", action="end", model="net"))
    assert group.received(Abort) == [0, 1]
    assert (group.status().id, group.status().state) == ("1", "refused")
    assert (group.rejected.id, group.rejected.state) == ("3", "done")
    group.sent.clear()
    group.swap()
    assert group.status().state == "done"


def test_a_swap_that_is_decided_cannot_be_ended() -> None:
    group = Group()
    group.order()
    group.prepared(0, 1)
    group.coordinator.receive(0, Order(id="2", action="end", model="net"))
    assert group.rejected.state == "conflict"
    group.committed_by(0, 1)
    assert group.status().state == "done"


def test_a_rollback_loads_the_previous_version_from_its_folder_and_forgets_the_other() -> None:
    group = Group()
    group.order("rollback")
    assert group.rejected.state == "conflict"
    group.swap()
    group.sent.clear()
    group.order("rollback")
    (order,) = {message for _, message in group.sent if isinstance(message, Prepare)}
    assert (order.folder, order.version) == (OLD, "old")
    group.prepared(0, 1, version="old", serving="new")
    group.committed_by(0, 1)
    assert (group.status().action, group.status().version, group.status().previous) == ("rollback", "old", None)
    assert group.committed == [("net", NEW), ("net", OLD)]
    assert [message.keep for _, message in group.sent if isinstance(message, Commit)] == [False, False]


def test_a_confirmed_swap_cannot_be_rolled_back() -> None:
    group = Group()
    group.swap()
    group.order("confirm")
    assert group.received(Confirm) == [0, 1]
    assert (group.status().state, group.status().version, group.status().previous) == ("done", "new", None)
    group.order("rollback")
    assert group.rejected.state == "conflict"


def test_the_comparisons_of_all_members_are_added() -> None:
    group = Group()
    group.order(shadow=PLAN)
    group.prepared(0, 1)
    assert group.received(Compare) == [0, 1]
    assert group.received(Commit) == []
    group.compared(0, images=4, agreed=4, confidence=(3.5, 3.0), accepted=(4, 3))
    group.compared(0, images=5, agreed=5, confidence=(4.5, 4.0), accepted=(5, 4))
    assert group.received(Commit) == [], "5 of 10 images"
    group.compared(1, images=5, agreed=4, confidence=(4.0, 4.5), accepted=(4, 5), dropped=2)
    assert group.received(Commit) == [0, 1]
    assert group.status().comparison == Comparison(
        images=10, agreed=9, confidence=(8.5, 8.5), accepted=(9, 9), dropped=2
    )


def test_weights_that_disagree_are_refused() -> None:
    group = Group()
    group.order(shadow=PLAN)
    group.prepared(0, 1)
    group.compared(1, images=10, agreed=8, failed=1)
    assert group.received(Abort) == [0, 1]
    assert group.status().state == "refused"
    assert "80.00% of 10 images" in group.status().reason


def test_too_few_images_in_time_are_a_refusal() -> None:
    group = Group()
    group.order(shadow=PLAN)
    group.wait(500)
    group.prepared(0, 1)
    group.wait(599)
    group.compared(1, images=9, agreed=9)
    assert group.status().state == "comparing", "the seconds of the plan begin when the weights are loaded"
    group.wait(1)
    assert group.status().state == "refused"
    assert "only 9 of 10 images" in group.status().reason


def test_weights_that_a_member_does_not_load_in_time_are_refused_and_the_next_swap_can_begin() -> None:
    group = Group()
    group.order()
    group.prepared(0)
    group.wait(599)
    assert group.status().state == "loading"
    group.wait(1)
    assert (group.status().state, group.status().reason) == ("refused", "the new weights were not loaded within 600 s")
    assert group.received(Abort) == [0, 1]
    group.prepared(1)
    assert group.received(Commit) == [], "its answer comes too late"
    group.swap()
    assert group.status().state == "done"


def test_a_member_that_does_not_acknowledge_the_decision_does_not_block_the_next_swap() -> None:
    group = Group()
    group.order()
    group.prepared(0, 1)
    group.committed_by(0)
    group.wait(9)
    assert group.status().state == "committing"
    group.wait(1)
    assert group.status().state == "done", "it swaps when it reads the message"
    assert group.received(Abort) == []
    group.swap()
    assert group.status().state == "done"


def test_a_shutdown_interrupts_a_swap_unless_it_is_decided() -> None:
    group = Group()
    group.order()
    group.coordinator.stop()
    assert group.status().state == "interrupted"
    group.order()
    group.prepared(0, 1)
    group.coordinator.stop()
    assert group.status().state == "committing"
