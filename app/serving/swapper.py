"""A process's part in a swap: it loads new weights beside the old ones, serves them, and keeps the old ones."""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from app.serving.errors import NotAlive, NotReady, ServingError, SwapConflict, SwapInterrupted, SwapRefused
from app.serving.models import LoadedModel
from app.serving.service import Service
from app.serving.shadow import Shadow
from app.serving.swap import (
    Abort,
    Action,
    Answer,
    Commit,
    Committed,
    Compare,
    Compared,
    Confirm,
    Coordinator,
    Failed,
    Message,
    Order,
    Prepare,
    Prepared,
    Reload,
    ShadowPlan,
    Status,
)
from model import CARD_FILE, Classifier, ModelCard, ModelError, read_card

logger = logging.getLogger("tenfold")

# Seconds between two reports of a comparison.
_INTERVAL = 0.25
_ERRORS: Mapping[str, type[ServingError]] = {
    "refused": SwapRefused,
    "interrupted": SwapInterrupted,
    "conflict": SwapConflict,
}
_DONE: Mapping[Action, str] = {"swap": "swapped", "rollback": "rolled-back", "confirm": "confirmed"}

LoadFolder = Callable[[Path], Classifier]
"""Returns the classifier of the bundle in a folder, loaded and self-tested. Called in the thread of its engine."""


class Swapper:
    """Carries out what the coordinator decides, and passes on the orders of clients.

    Without a supervisor it has a coordinator of its own. It belongs to the event loop's thread.

    Args:
        service: whose models are swapped.
        load: of a bundle.
        folders: name of each model -> folder of its bundle, for those that were loaded from one.
        root: folder below which new bundles are.
    """

    def __init__(self, service: Service, load: LoadFolder, folders: Mapping[str, Path], root: Path) -> None:
        self._service = service
        self._load = load
        self._root = root
        self._pending: dict[str, asyncio.Future[Status]] = {}
        self._statuses: dict[str, Status] = {}
        self._previous: dict[str, LoadedModel] = {}
        self._candidate: LoadedModel | None = None
        self._shadow: tuple[str, Shadow] | None = None  # with the ID of the order
        self._preparing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._coordinator: Coordinator | None = Coordinator(folders, members=1, send=self._deliver)
        self._coordinator.join(0)
        self._send: Callable[[Message], None] = self._to_own_coordinator

    def connect(self, send: Callable[[Message], None]) -> None:
        """Take part in the swaps of a supervisor, which passes its messages to `receive`."""
        self._coordinator = None
        self._send = send

    async def start(self) -> None:
        """Begin to report comparisons."""
        self._ticking = asyncio.create_task(self._tick(), name="swaps")

    async def stop(self) -> None:
        """End what is in progress. The server has finished every request before."""
        self.interrupt()
        for task in (self._ticking, *self._tasks):
            task.cancel()
        await asyncio.wait([self._ticking, *self._tasks])

    def interrupt(self) -> None:
        """Give up a swap that is in progress, because the service shuts down."""
        if self._coordinator:
            self._coordinator.stop()
        for future in self._pending.values():
            if not future.done():
                future.set_exception(SwapInterrupted("the service is shutting down"))
        self._abort()

    def status(self, name: str) -> Status | None:
        """The latest swap of a model; None if there was none."""
        return self._statuses.get(name)

    async def swap(self, name: str, weights: str | None, shadow: ShadowPlan | None = None) -> Status:
        """Serve other weights under the name of a model.

        Args:
            name: of the model.
            weights: path of the bundle below the root; None loads the folder of the model again.
            shadow: compares the weights on live images first.

        Raises:
            NotReady, NotAlive: the service is loading, shutting down or does not work.
            SwapRefused: the weights cannot be served, or differ too much.
            SwapConflict: another swap is in progress.
            SwapInterrupted: the service shuts down, or one of its processes ended.
        """
        folder, refusal = None, ""
        if weights is not None:
            try:
                folder = await asyncio.to_thread(bundle_below, self._root, weights)
            except SwapRefused as error:
                refusal = str(error)  # the coordinator refuses the order, so that all processes have the status
        return await self._submit("swap", name, folder, shadow, refusal)

    async def roll_back(self, name: str) -> Status:
        """Serve the previous version again. The errors are those of `swap`."""
        return await self._submit("rollback", name)

    async def confirm(self, name: str) -> Status:
        """Release the previous version. The errors are those of `swap`."""
        return await self._submit("confirm", name)

    async def end(self, name: str) -> Status:
        """End the swap of a model that is in progress, and return its status. The old weights stay.

        Raises:
            NotReady, NotAlive, SwapInterrupted: as of `swap`.
            SwapConflict: none is in progress, or all processes have the new weights and the swap is decided.
        """
        await self._submit("end", name)
        return self._statuses[name]

    async def reload(self) -> None:
        """Load the folder of every model again, one after the other. Failures are logged."""
        await self._service.wait_loaded()
        for name in self._service.models.names:
            try:
                await self.swap(name, None)
            except (NotReady, NotAlive) as error:
                logger.error("the model %s is not reloaded: %s", name, error)
            except ServingError:
                pass  # `swap` has logged it

    def receive(self, message: Message) -> None:
        """Handle a message from the coordinator."""
        if isinstance(message, Status):
            self._log_comparison(message)
            self._statuses[message.model] = message
            self._resolve(message)
        elif isinstance(message, Answer):
            self._resolve(message.status)
        elif isinstance(message, Prepare):
            self._preparing = self._run(self._prepare(message))
        elif isinstance(message, Compare):
            self._compare(message)
        elif isinstance(message, Commit):
            self._commit(message)
        elif isinstance(message, Abort):
            self._abort()
        elif isinstance(message, Confirm):
            self._previous.pop(message.model, None)
        elif isinstance(message, Reload):
            self._run(self.reload())

    async def _submit(
        self,
        action: Action,
        name: str,
        folder: Path | None = None,
        shadow: ShadowPlan | None = None,
        refusal: str = "",
    ) -> Status:
        self._check()
        order = Order(id=secrets.token_hex(8), action=action, model=name, folder=folder, shadow=shadow, refusal=refusal)
        future: asyncio.Future[Status] = asyncio.get_running_loop().create_future()
        self._pending[order.id] = future
        try:
            self._send(order)
            status = await future
        except SwapInterrupted as interrupted:
            self._record(Status(id=order.id, action=action, model=name, state="interrupted", reason=str(interrupted)))
            raise
        finally:
            del self._pending[order.id]
        self._record(status)
        if error := _ERRORS.get(status.state):
            raise error(status.reason)
        return status

    def _record(self, status: Status) -> None:
        """Count and log the end of an order, in the process that it came to."""
        if status.action == "end":
            return  # the swap that it ends is recorded
        outcome = _DONE[status.action] if status.state == "done" else status.state
        self._service.telemetry.swap(status.model, outcome)
        found = status.comparison
        compared = f"; {found.images} images compared, agreement {found.agreement:.2%}" if found else ""
        if status.state == "done":
            logger.info("%s: %s, version %s%s", status.model, outcome.replace("-", " "), status.version, compared)
        else:
            logger.error("%s: no %s (%s): %s%s", status.model, status.action, status.state, status.reason, compared)

    def _log_comparison(self, status: Status) -> None:
        """Log the start of a comparison, in the process that its order came to. `_record` logs the end."""
        before = self._statuses.get(status.model)
        if status.state == "comparing" and status.id in self._pending and not (before and before.state == "comparing"):
            serving = self._service.models.get(status.model).card.version
            logger.info("%s: comparing version %s with %s on live images", status.model, status.version, serving)

    def _check(self) -> None:
        """Raises:
        NotReady, NotAlive: the service must not swap now.
        """
        if self._service.state == "failed":
            raise NotAlive("the service does not work any more: restart it")
        if self._service.state != "ready":
            raise NotReady(f"the service is {self._service.state}: send the request again when /readyz returns 200")

    def _resolve(self, status: Status) -> None:
        future = self._pending.get(status.id)
        if future and status.final and not future.done():
            future.set_result(status)

    async def _prepare(self, order: Prepare) -> None:
        try:
            await self._service.wait_loaded()
            candidate = await self._find(order)
        except (ModelError, ServingError) as error:
            self._send(Failed(id=order.id, reason=str(error)))
        except OSError as error:
            reason = f"a file of {order.folder} cannot be read ({error.strerror}): copy the bundle again"
            self._send(Failed(id=order.id, reason=reason))
        except Exception as error:
            logger.exception("the bundle %s cannot be loaded", order.folder)
            reason = f"{order.folder} cannot be loaded ({type(error).__name__}): see the log of the service"
            self._send(Failed(id=order.id, reason=reason))
        else:
            self._candidate = candidate
            serving = self._service.models.get(order.model).card.version
            self._send(Prepared(id=order.id, version=candidate.card.version, serving=serving))

    async def _find(self, order: Prepare) -> LoadedModel:
        """The model to swap to: the previous one for a rollback, unless this process has never had it."""
        previous = self._previous.get(order.model)
        if order.version and previous and previous.card.version == order.version:
            previous.check_alive()
            if order.folder and not self._coordinator:  # a worker that starts later must load the same version
                card = await asyncio.to_thread(read_card, order.folder / CARD_FILE)
                _check_version(order, card)
            return previous
        if order.folder is None:
            raise SwapRefused("the previous weights are not kept in every process: swap to a folder")
        serving = self._service.models.get(order.model)
        found = await self._service.load_model(order.model, partial(self._load, order.folder))
        if found.card.labels != serving.card.labels:
            raise SwapRefused(
                f"the labels of {order.folder} are not those of the model that is served: serve it under another name"
            )
        _check_version(order, found.card)
        transforms = [
            (card.input.resize, card.input.crop, card.input.interpolation) for card in (serving.card, found.card)
        ]
        if order.shadow and transforms[0] != transforms[1]:
            raise SwapRefused("the new weights have another test transform: swap without shadow")
        return found

    def _compare(self, message: Compare) -> None:
        if candidate := self._candidate:
            shadow = Shadow(
                self._service.models.get(candidate.name),
                candidate,
                share=message.share,
                min_confidence=self._service.settings.min_confidence,
                telemetry=self._service.telemetry,
            )
            self._shadow = (message.id, shadow)

    def _commit(self, message: Commit) -> None:
        candidate, self._candidate = self._candidate, None
        self._end_shadow()
        if candidate:
            name = candidate.name
            old = self._service.models.get(name)
            self._service.serve(candidate)
            self._previous.pop(name, None)
            if message.keep:
                self._previous[name] = old
        self._send(Committed(id=message.id))

    def _abort(self) -> None:
        self._candidate = None
        if self._preparing:
            self._preparing.cancel()
            self._preparing = None  # its error refers to the weights
        self._end_shadow()

    def _end_shadow(self) -> None:
        if self._shadow:
            self._shadow[1].stop()
            self._shadow = None

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL)
            if self._shadow:  # no variable, which would hold the weights after the comparison
                self._send(Compared(id=self._shadow[0], comparison=self._shadow[1].comparison))
            if self._coordinator:
                self._coordinator.tick()

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _deliver(self, _: int, message: Message) -> None:
        asyncio.get_running_loop().call_soon(self.receive, message)

    def _to_own_coordinator(self, message: Message) -> None:
        if self._coordinator:
            asyncio.get_running_loop().call_soon(self._coordinator.receive, 0, message)


def _check_version(order: Prepare, card: ModelCard) -> None:
    if order.version and card.version != order.version:
        raise SwapRefused(
            f"{order.folder} holds version {card.version} now, not {order.version}: swap to another folder"
        )


def bundle_below(root: Path, weights: str) -> Path:
    """The folder of a bundle, with no symbolic links in its path.

    Args:
        root: that it must be below.
        weights: its path, absolute, relative to the root, or relative to the parent of the root, as a shell completes
            it.

    Raises:
        SwapRefused: there is no such folder below the root, or a link in it leads out of the root.
    """
    top = root.resolve()
    try:
        named = [(base / weights).resolve() for base in (top, root.absolute().parent)]
        folder = next((path for path in named if path != top and path.is_relative_to(top) and path.is_dir()), None)
        links = [path for path in folder.rglob("*") if path.is_symlink()] if folder else []
        outside = [path for path in links if not path.resolve().is_relative_to(top)]
    except (OSError, ValueError, RuntimeError):  # too long, with a null character, or a loop of links
        folder, outside = None, []
    if folder is None:
        raise SwapRefused(f"{weights!r} is not a folder below {top}: copy the bundle there, and name it by its path")
    if outside:
        raise SwapRefused(f"{outside[0]} is a link out of {top}: copy the file")
    if "," in str(folder):
        raise SwapRefused(f"{folder} has a comma, which separates folders in the settings: rename it")
    return folder
