"""How the weights of a model are replaced while the service runs.

A swap loads the new weights beside the old ones, checks them, compares them on live images if that is wanted, and then
replaces one reference. One swap is in progress at most.

    loading -> (comparing ->) done
       |            |
       +------------+-> refused | interrupted
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from app.engine.errors import NotAlive, NotReady, ServingError, SwapConflict, SwapInterrupted, SwapRefused
from app.engine.models import Load, LoadedModel, Models
from app.engine.shadow import Shadow
from app.engine.status import Action, ShadowPlan, State, Status
from app.telemetry.metrics import Telemetry
from model import CARD_FILE, ModelCard, ModelError, read_card

logger = logging.getLogger("tenfold")

# Seconds for the new weights to load, and between two looks at a comparison.
_LOAD_TIMEOUT = 600.0
_INTERVAL = 0.05
_ERRORS: Mapping[State, type[ServingError]] = {
    "refused": SwapRefused,
    "interrupted": SwapInterrupted,
    "conflict": SwapConflict,
}
_DONE: Mapping[Action, str] = {"swap": "swapped", "rollback": "rolled-back", "confirm": "confirmed"}

LoadFolder = Callable[[Path], Sequence[Load]]
"""The load functions of the bundle in a folder, one for each lane."""


class _Order:
    """A swap or a rollback in progress.

    Attributes:
        version: of the new weights; None until they are loaded.
        shadow: None while nothing is compared.
        comparison: of the shadow, also after its end.
        end: why the task was cancelled.
        task: carries it out.
    """

    def __init__(self, action: Action, model: str) -> None:
        self.action = action
        self.model = model
        self.state: State = "loading"
        self.version: str | None = None
        self.shadow: Shadow | None = None
        self.end: tuple[State, str] = ("interrupted", "the service is shutting down")
        self.task: asyncio.Task[Status] | None = None


class Swaps:
    """Replaces the weights of models. It belongs to the event loop's thread.

    Args:
        models: whose weights are replaced.
        load: of a bundle.
        folders: name of each model -> folder of its bundle, for those that were loaded from one.
        root: folder below which new bundles are.
        min_confidence: lowest probability of an accepted result, in comparisons.
        telemetry: counts the swaps.
        on_commit: called with the model and its new folder just before its weights are served. A process that is
            started later loads this folder. None if there is no such process.
    """

    def __init__(
        self,
        models: Models,
        load: LoadFolder,
        folders: Mapping[str, Path],
        root: Path,
        *,
        min_confidence: float,
        telemetry: Telemetry,
        on_commit: Callable[[str, Path], None] | None = None,
    ) -> None:
        self._models = models
        self._load = load
        self._folders: dict[str, Path | None] = dict(folders)
        self._root = root
        self._min_confidence = min_confidence
        self._telemetry = telemetry
        self._on_commit = on_commit
        self._previous: dict[str, tuple[LoadedModel, Path | None]] = {}
        self._statuses: dict[str, Status] = {}
        self._order: _Order | None = None
        self._draining = False

    def interrupt(self) -> None:
        """Give up a swap that is in progress, and begin no other one, because the service shuts down."""
        self._draining = True
        if self._order and self._order.task:
            self._order.task.cancel()

    def status(self, name: str) -> Status | None:
        """The latest swap of a model; None if there was none."""
        if self._order and self._order.model == name:
            return self._status(self._order, self._order.state)
        return self._statuses.get(name)

    async def swap(self, name: str, weights: str | None, shadow: ShadowPlan | None = None) -> Status:
        """Serve other weights under the name of a model.

        A call that is cancelled does not end the swap.

        Args:
            name: of the model.
            weights: path of the bundle below the root; None loads the folder of the model again.
            shadow: compares the weights on live images first.

        Raises:
            NotReady, NotAlive: the service is loading or does not work.
            SwapRefused: the weights cannot be served, or differ too much.
            SwapConflict: another swap is in progress.
            SwapInterrupted: the service shuts down.
        """
        return await self._carry_out(_Order("swap", name), lambda order: self._swap(order, weights, shadow))

    async def roll_back(self, name: str) -> Status:
        """Serve the previous version again. The errors are those of `swap`."""
        return await self._carry_out(_Order("rollback", name), self._roll_back)

    async def confirm(self, name: str) -> Status:
        """Release the previous version. The errors are those of `swap`."""
        return await self._carry_out(_Order("confirm", name), self._confirm)

    async def end(self, name: str) -> Status:
        """End the swap of a model that is in progress, and return its status. The old weights stay.

        Raises:
            NotReady, NotAlive: as of `swap`.
            SwapConflict: none is in progress.
        """
        self._check()
        order = self._order
        if order is None or order.task is None or order.model != name:
            raise SwapConflict(f"no swap of {name} is in progress")
        order.end = ("refused", "a client has ended the swap")  # not "interrupted", after which it may be tried again
        order.task.cancel()
        await asyncio.wait([order.task])
        return self._statuses[name]

    async def reload(self) -> None:
        """Load the folder of every model again, one after the other. Failures are logged."""
        await self._models.wait_loaded()
        for name in self._models.catalog.names:
            try:
                await self.swap(name, None)
            except (NotReady, NotAlive) as error:
                logger.error("the model %s is not reloaded: %s", name, error)
            except ServingError:
                pass  # `swap` has logged it

    async def _carry_out(self, order: _Order, work: Callable[[_Order], Awaitable[None]]) -> Status:
        self._check()
        if self._order:
            reason = f"a swap of {self._order.model} is in progress: try again when it has ended, or end it"
            status = self._conflict(order, reason)
        elif order.action != "swap" and order.model not in self._previous:
            status = self._conflict(order, f"{order.model} has no previous version that is still kept")
        else:
            self._order = order
            order.task = asyncio.create_task(self._finish(order, work), name="swap")
            status = await asyncio.shield(order.task)
        if error := _ERRORS.get(status.state):
            raise error(status.reason)
        return status

    def _check(self) -> None:
        """Raises:
        NotReady, NotAlive: no swap may begin now.
        """
        self._models.check_running()
        if self._draining:
            raise NotReady("the service is draining: send the request to another one")

    async def _finish(self, order: _Order, work: Callable[[_Order], Awaitable[None]]) -> Status:
        """Carry out an order, and turn whatever happens into a status."""
        state: State = "refused"
        reason = ""
        try:
            await work(order)
            state = "done"
        except (ModelError, ServingError) as error:
            reason = str(error)
        except OSError as error:
            reason = f"a file of the bundle cannot be read ({error.strerror}): copy it again"
        except asyncio.CancelledError:
            state, reason = order.end
        except Exception as error:
            logger.exception("new weights of %s cannot be loaded", order.model)
            reason = f"the bundle cannot be loaded ({type(error).__name__}): see the log of the service"
        finally:
            self._order = None
            if order.shadow:
                order.shadow.stop()
        status = self._statuses[order.model] = self._status(order, state, reason)
        self._record(status)
        return status

    async def _swap(self, order: _Order, weights: str | None, shadow: ShadowPlan | None) -> None:
        name = order.model
        folder = self._folders.get(name)
        if weights is not None:
            folder = await asyncio.to_thread(bundle_below, self._root, weights)
        if folder is None:
            raise SwapRefused(f"{name} was not loaded from a folder: name one in weights")
        candidate = await self._load_beside(name, folder)
        try:
            order.version = candidate.card.version
            serving = self._models.get(name)
            if candidate.card.labels != serving.card.labels:
                raise SwapRefused(
                    f"the labels of {folder} are not those of the model that is served: serve it under another name"
                )
            if shadow:
                await self._compare(order, serving, candidate, shadow)
        except BaseException:
            self._models.retire(candidate)
            raise
        self._release_previous(name)
        self._previous[name] = (serving, self._folders.get(name))
        self._commit(candidate, folder)

    async def _roll_back(self, order: _Order) -> None:
        name = order.model
        candidate, folder = self._previous[name]
        order.version = candidate.card.version
        candidate.batcher.check()
        if folder and self._on_commit:  # a process that is started later must load the same version
            card = await asyncio.to_thread(read_card, folder / CARD_FILE)
            if card.version != order.version:
                raise SwapRefused(
                    f"{folder} holds version {card.version} now, not {order.version}: swap to another folder"
                )
        serving = self._models.get(name)
        del self._previous[name]
        self._commit(candidate, folder)
        self._models.retire(serving)

    async def _confirm(self, order: _Order) -> None:
        self._release_previous(order.model)
        order.version = self._models.get(order.model).card.version

    async def _load_beside(self, name: str, folder: Path) -> LoadedModel:
        loading = asyncio.create_task(self._models.load(name, self._load(folder)), name="load")
        try:
            async with asyncio.timeout(_LOAD_TIMEOUT):
                return await asyncio.shield(loading)
        except BaseException as error:
            loading.add_done_callback(self._retire_loaded)
            loading.cancel()
            if isinstance(error, TimeoutError) and not loading.done():
                raise SwapRefused(f"the new weights were not loaded within {_LOAD_TIMEOUT:g} s") from None
            raise

    def _retire_loaded(self, loading: asyncio.Task[LoadedModel]) -> None:
        if not loading.cancelled() and not loading.exception():
            self._models.retire(loading.result())

    async def _compare(self, order: _Order, serving: LoadedModel, candidate: LoadedModel, plan: ShadowPlan) -> None:
        """Compare weights on live images.

        Raises:
            SwapRefused: they cannot be compared, or differ too much, or there were too few images.
        """
        transforms = [_transform(model.card) for model in (serving, candidate)]
        if transforms[0] != transforms[1]:
            raise SwapRefused("the new weights have another test transform: swap without shadow")
        logger.info("%s: comparing version %s with %s on live images", order.model, order.version, serving.card.version)
        order.state = "comparing"
        shadow = order.shadow = Shadow(
            serving, candidate, share=plan.share, min_confidence=self._min_confidence, telemetry=self._telemetry
        )
        ends = time.monotonic() + plan.seconds
        while shadow.comparison.images < plan.images and time.monotonic() < ends:
            await asyncio.sleep(_INTERVAL)
        found = shadow.comparison
        if found.images < plan.images:
            raise SwapRefused(
                f"only {found.images} of {plan.images} images were compared within {plan.seconds:g} s: "
                "raise seconds or shadow, or lower images"
            )
        if found.agreement < plan.agreement:
            raise SwapRefused(
                f"old and new weights agree on {found.agreement:.2%} of {found.images} images, "
                f"which is below {plan.agreement:.2%}"
            )

    def _commit(self, model: LoadedModel, folder: Path | None) -> None:
        if folder and self._on_commit:
            self._on_commit(model.name, folder)
        self._folders[model.name] = folder
        self._models.serve(model)

    def _release_previous(self, name: str) -> None:
        if kept := self._previous.pop(name, None):
            self._models.retire(kept[0])

    def _status(self, order: _Order, state: State, reason: str = "") -> Status:
        previous = self._previous.get(order.model)
        return Status(
            action=order.action,
            model=order.model,
            state=state,
            version=order.version,
            previous=previous[0].card.version if previous else None,
            reason=reason,
            comparison=order.shadow.comparison if order.shadow else None,
        )

    def _conflict(self, order: _Order, reason: str) -> Status:
        """Refuse an order. The status of the model does not change."""
        status = Status(action=order.action, model=order.model, state="conflict", reason=reason)
        self._record(status)
        return status

    def _record(self, status: Status) -> None:
        """Count and log the end of an order."""
        outcome = _DONE[status.action] if status.state == "done" else status.state
        self._telemetry.swap(status.model, outcome)
        found = status.comparison
        compared = f"; {found.images} images compared, agreement {found.agreement:.2%}" if found else ""
        if status.state == "done":
            logger.info("%s: %s, version %s%s", status.model, outcome.replace("-", " "), status.version, compared)
        else:
            logger.error("%s: no %s (%s): %s%s", status.model, status.action, status.state, status.reason, compared)


def _transform(card: ModelCard) -> tuple[int, int, str]:
    return card.input.resize, card.input.crop, card.input.interpolation


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
