"""Asking a running service: several files to a request, several requests under way, patience with one that is busy."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from app.cli.classify.paths import Lost, UnfitFile, read_file, reason_of
from app.cli.classify.pipeline import gathered, in_order
from app.cli.classify.results import Result, Unusable
from app.cli.classify.wire import File, cause_of, detail_of, request_of, results_in, retry_after, slug_of

# Requests under way. With 32 files in each they keep an engine busy, and leave others half of the service's queue.
_REQUESTS = 4
# Files and bytes of a request: the service's defaults take so many files, and more bytes, but not in any time.
_FILES = 32
_BYTES = 8_000_000
# Seconds to the first retry; each further one waits twice as long, up to the last.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0

Entry = tuple[str, bytes | str]
"""A file's path, and its bytes or why there are none."""


class _Again(Exception):
    """The request may be sent again, after so many seconds if the service says."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _TooMuch(Exception):
    """The request may be sent again in two halves."""


class Remote:
    """A service.

    Args:
        url: where it is, without a path of the API's.
        api_key: for it, if it wants one.
        parameters: of /predict; None leaves one to the service.
        patience: seconds that a service which is busy or away is waited for, since it last answered.
        max_bytes: largest file that is sent.
        say: is told what the user should know meanwhile.

    Raises:
        Unusable: it is not there, not ready, or wants another key.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        parameters: Mapping[str, float | None],
        patience: float,
        max_bytes: int,
        say: Callable[[str], None],
    ) -> None:
        self._url = url
        self._patience = patience
        self._max_bytes = max_bytes
        self._say = say
        self._most_files, self._most_bytes = _FILES, _BYTES
        self._answered = time.monotonic()
        self._waiting = False
        self._given_up: str | None = None
        self._turn = threading.Lock()
        try:
            self._client = httpx.Client(
                base_url=httpx.URL(url),
                params={name: value for name, value in parameters.items() if value is not None},
                headers={"X-API-Key": api_key} if api_key else {},
                timeout=httpx.Timeout(max(5.0, patience / 2), connect=5.0, pool=None),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            what = "key" if isinstance(error, UnicodeEncodeError) else "address"
            raise Unusable(f"this is no {what} of a service ({error}): give another one") from error
        try:
            self._check()
        except BaseException:
            self._client.close()
            raise

    def _check(self) -> None:
        try:
            ready = self._client.get("/readyz")
            card = self._client.get("/model") if ready.status_code == 200 else ready
        except httpx.UnsupportedProtocol as error:
            raise Unusable(f"{self._url!r} is no address of a service: give --url as http://HOST:PORT") from error
        except httpx.HTTPError as error:
            raise Unusable(
                f"no service answers at {self._url} ({cause_of(error)}): start one with tenfold serve"
            ) from error
        if ready.status_code == 503:
            raise Unusable(f"the service at {self._url} is not ready: {detail_of(ready)}")
        if card.status_code != 200:
            raise self._refusal(card)

    def _refusal(self, response: httpx.Response) -> Unusable:
        if response.status_code == 401:
            return Unusable(f"the service at {self._url} wants another API key: give it by --api-key")
        return Unusable(f"the service at {self._url} answered {response.status_code}: {detail_of(response)}")

    def results(self, paths: Iterable[str | Lost]) -> Iterator[list[Result]]:
        """The results, in the order of the paths; if the service goes away for good, the rest has an error each.

        Raises:
            Unusable: the service refuses all of them.
        """
        senders = ThreadPoolExecutor(_REQUESTS, "send")
        try:
            yield from in_order(senders, self._send, self._packs(paths), ahead=_REQUESTS)
        finally:
            senders.shutdown(wait=False, cancel_futures=True)
            # After the last answer: a connection that comes about once the client is closed would stay open.
            threading.Thread(target=self._close_after, args=(senders,), name="close", daemon=True).start()

    def _close_after(self, senders: ThreadPoolExecutor) -> None:
        senders.shutdown()
        self._client.close()

    def _packs(self, paths: Iterable[str | Lost]) -> Iterator[list[Entry]]:
        """As many files as a request takes, or as there are."""
        for group in gathered(paths, most=_FILES, room=4 * _FILES):
            pack: list[Entry] = []
            size = 0
            for path in group:
                entry = self._read(path)
                more = len(entry[1]) if isinstance(entry[1], bytes) else 0
                if pack and (len(pack) >= self._most_files or size + more > self._most_bytes):
                    yield pack
                    pack, size = [], 0
                pack.append(entry)
                size += more
            yield pack

    def _read(self, path: str | Lost) -> Entry:
        if isinstance(path, Lost):
            return path.path, path.reason
        if self._given_up:
            return path, self._given_up
        try:
            return path, read_file(path, self._max_bytes)
        except (OSError, ValueError, UnfitFile) as error:
            return path, reason_of(error)

    def _send(self, pack: Sequence[Entry]) -> list[Result]:
        files = [(path, data) for path, data in pack if isinstance(data, bytes)]
        answers = iter(self._answers(files) if files else ())
        return [Result(path, {}, error=data) if isinstance(data, str) else next(answers) for path, data in pack]

    def _answers(self, files: Sequence[File]) -> list[Result]:
        if len(files) <= self._most_files:  # else it was read before that was learned
            try:
                return self._patiently(files)
            except _TooMuch as error:
                if len(files) == 1:
                    return _failed(files, str(error))
        half = len(files) // 2
        return [*self._answers(files[:half]), *self._answers(files[half:])]

    def _patiently(self, files: Sequence[File]) -> list[Result]:
        began = time.monotonic()
        try:
            return self._ask(files)
        except _Again as error:
            refusal = error
        with self._turn:  # or all would come back at the same time, and all but one be turned away again
            pause = _FIRST_PAUSE
            while self._given_up is None:
                left = max(began, self._answered) + self._patience - time.monotonic()
                if left <= 0:
                    self._given_up = f"no answer within {self._patience:g} s: {refusal}"
                    break
                if not self._waiting:
                    self._waiting = True
                    self._say(f"{refusal}: trying again for {left:.0f} s")
                time.sleep(min(left, pause if refusal.after is None else refusal.after))
                pause = min(2 * pause, _LONGEST_PAUSE)
                try:
                    return self._ask(files)
                except _Again as error:
                    refusal = error
        return _failed(files, self._given_up)

    def _ask(self, files: Sequence[File]) -> list[Result]:
        body, content_type = request_of(files)
        try:
            response = self._client.post("/predict", content=body, headers={"Content-Type": content_type})
        except httpx.HTTPError as error:
            raise _Again(f"{self._url} does not answer ({cause_of(error)})") from error
        if response.status_code == 200:
            self._answered = time.monotonic()
            self._waiting = False
            return results_in(response, files)
        status, detail = response.status_code, detail_of(response)
        if status in (429, 502, 503):
            raise _Again(f"{self._url} is busy ({detail})", retry_after(response))
        if status in (408, 413, 500, 504):  # of several at fault perhaps one alone
            if status == 413:
                self._learn(response, files)
            raise _TooMuch(detail)
        if len(files) == 1 and slug_of(response) in ("unsupported-picture", "unreadable-picture"):
            return _failed(files, detail)
        raise self._refusal(response)

    def _learn(self, response: httpx.Response, files: Sequence[File]) -> None:
        """Send less at a time from now on."""
        if slug_of(response) == "too-many-files":
            self._most_files = min(self._most_files, max(1, len(files) // 2))
        elif len(files) > 1:
            self._most_bytes = min(self._most_bytes, sum(len(data) for _, data in files) // 2)


def _failed(files: Sequence[File], reason: str) -> list[Result]:
    return [Result(path, {}, error=reason) for path, _ in files]
