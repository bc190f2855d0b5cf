"""Classification by a running service: several files per request, concurrent requests, and retries."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx

from app.cli.classify.paths import BadPath, FileSizeError, describe_read_error, read_file
from app.cli.classify.pipeline import ordered_map, prefetch
from app.cli.classify.results import CommandError, Result
from app.cli.classify.wire import (
    File,
    describe_transport_error,
    encode_request,
    open_client,
    parse_results,
    problem_detail,
    problem_slug,
    retry_after,
)

# Concurrent requests. With 32 files each they keep an engine busy and leave half of the service's queue to others.
_REQUESTS = 4
# Most files and bytes per request. The service accepts this many files by default, and more bytes, but a smaller body
# is less likely to exceed its timeout.
_MAX_FILES = 32
_MAX_BYTES = 8_000_000
# Seconds to the first retry. Each further pause is twice as long, up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 4.0

Entry = tuple[str, bytes | str]
"""Path of a file, and its content or an error."""


class _RetryableError(Exception):
    """The request may be sent again, after `after` seconds if the service says so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _SplitError(Exception):
    """The request may be sent again in two halves."""


class RemoteClassifier:
    """Classifies files with POST /predict of a service.

    Args:
        url: its root, such as http://127.0.0.1:8000.
        api_key: sent with each request, if given.
        model: name of a model of the service; None for its default.
        parameters: further query parameters of /predict. None leaves a parameter to the service.
        retry_timeout: seconds since its last response after which an unavailable service is given up.
        max_bytes: size of the largest file that is sent.
        notify: called with messages for the user.

    Raises:
        CommandError: the service cannot be reached, is not ready, has no such model, or rejects the API key.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        model: str | None,
        parameters: Mapping[str, float | None],
        retry_timeout: float,
        max_bytes: int,
        notify: Callable[[str], None],
    ) -> None:
        self._url = url
        self._retry_timeout = retry_timeout
        self._max_file_bytes = max_bytes
        self._notify = notify
        self._max_files, self._max_bytes = _MAX_FILES, _MAX_BYTES
        self._last_success = time.monotonic()
        self._notified = False
        self._given_up: str | None = None
        self._retry_lock = threading.Lock()
        self._client = open_client(
            url,
            api_key,
            option="--api-key",
            timeout=httpx.Timeout(max(5.0, retry_timeout / 2), connect=5.0, pool=None),
            params={name: value for name, value in {"model": model, **parameters}.items() if value is not None},
        )
        try:
            self._check("/model" if model is None else f"/models/{quote(model, safe='')}")
        except BaseException:
            self._client.close()
            raise

    def _check(self, card_path: str) -> None:
        try:
            ready = self._client.get("/readyz")
            card = self._client.get(card_path) if ready.status_code == 200 else ready
        except httpx.UnsupportedProtocol as error:
            raise CommandError(f"{self._url!r} is not a valid URL: give --url as http://HOST:PORT") from error
        except httpx.HTTPError as error:
            reason = describe_transport_error(error)
            raise CommandError(
                f"the service at {self._url} cannot be reached ({reason}): start one with tenfold serve"
            ) from error
        if ready.status_code == 503:
            raise CommandError(f"the service at {self._url} is not ready: {problem_detail(ready)}")
        if ready.status_code in (404, 405):
            raise CommandError(f"there is no Tenfold service at {self._url}: give the root of one, as http://HOST:PORT")
        if card.status_code != 200:
            raise self._command_error(card)

    def _command_error(self, response: httpx.Response) -> CommandError:
        if response.status_code == 401:
            if "X-API-Key" in self._client.headers:
                return CommandError(f"the service at {self._url} does not accept this key: give another --api-key")
            return CommandError(f"the service at {self._url} requires an API key: give one with --api-key")
        detail = problem_detail(response)
        return CommandError(f"the service at {self._url} responded with status {response.status_code}: {detail}")

    def classify(self, paths: Iterable[str | BadPath]) -> Iterator[list[Result]]:
        """The results in the order of the paths. If the service is given up, the remaining files have an error each.

        Raises:
            CommandError: the service rejects every request, for its parameters or the API key for example.
        """
        senders = ThreadPoolExecutor(_REQUESTS, "send")
        try:
            yield from ordered_map(senders, self._classify_group, self._read_groups(paths), ahead=_REQUESTS)
        finally:
            senders.shutdown(wait=False, cancel_futures=True)
            # After the last response: a connection that is made after the client was closed would stay open.
            threading.Thread(target=self._close_after, args=(senders,), name="close", daemon=True).start()

    def _close_after(self, senders: ThreadPoolExecutor) -> None:
        senders.shutdown()
        self._client.close()

    def _read_groups(self, paths: Iterable[str | BadPath]) -> Iterator[list[Entry]]:
        """Read files, and group as many as fit into a request or as are there."""
        for available in prefetch(paths, batch_size=_MAX_FILES, buffer_size=4 * _MAX_FILES):
            group: list[Entry] = []
            group_bytes = 0
            for path in available:
                entry = self._read(path)
                entry_bytes = len(entry[1]) if isinstance(entry[1], bytes) else 0
                if group and (len(group) >= self._max_files or group_bytes + entry_bytes > self._max_bytes):
                    yield group
                    group, group_bytes = [], 0
                group.append(entry)
                group_bytes += entry_bytes
            yield group

    def _read(self, path: str | BadPath) -> Entry:
        if isinstance(path, BadPath):
            return path.path, path.reason
        if self._given_up:
            return path, self._given_up
        try:
            return path, read_file(path, self._max_file_bytes)
        except (OSError, ValueError, FileSizeError) as error:
            return path, describe_read_error(error)

    def _classify_group(self, group: Sequence[Entry]) -> list[Result]:
        files = [(path, data) for path, data in group if isinstance(data, bytes)]
        results = iter(self._classify_files(files) if files else ())
        return [Result(path, {}, error=data) if isinstance(data, str) else next(results) for path, data in group]

    def _classify_files(self, files: Sequence[File]) -> list[Result]:
        if len(files) <= self._max_files:  # the limit may have decreased since the files were grouped
            try:
                return self._post_with_retries(files)
            except _SplitError as error:
                if len(files) == 1:
                    return _failed(files, str(error))
        half = len(files) // 2
        return [*self._classify_files(files[:half]), *self._classify_files(files[half:])]

    def _post_with_retries(self, files: Sequence[File]) -> list[Result]:
        started = time.monotonic()
        try:
            return self._post(files)
        except _RetryableError as error:
            last_error = error
        with self._retry_lock:  # otherwise all would retry at once, and all but one be rejected again
            pause = _FIRST_PAUSE
            while self._given_up is None:
                left = max(started, self._last_success) + self._retry_timeout - time.monotonic()
                if left <= 0:
                    self._given_up = f"no response within {self._retry_timeout:g} s: {last_error}"
                    break
                if not self._notified:
                    self._notified = True
                    self._notify(f"{last_error}: retrying for {left:.0f} s")
                time.sleep(min(left, pause if last_error.after is None else last_error.after))
                pause = min(2 * pause, _LONGEST_PAUSE)
                try:
                    return self._post(files)
                except _RetryableError as error:
                    last_error = error
        return _failed(files, self._given_up)

    def _post(self, files: Sequence[File]) -> list[Result]:
        body, content_type = encode_request(files)
        try:
            response = self._client.post("/predict", content=body, headers={"Content-Type": content_type})
        except httpx.HTTPError as error:
            raise _RetryableError(f"{self._url} does not respond ({describe_transport_error(error)})") from error
        if response.status_code == 200:
            self._last_success = time.monotonic()
            self._notified = False
            return parse_results(response, files)
        status, detail = response.status_code, problem_detail(response)
        if status in (429, 502, 503):
            raise _RetryableError(f"{self._url} is busy ({detail})", retry_after(response))
        if status in (408, 413, 500, 504):  # one of the files alone may be the cause
            if status == 413:
                self._reduce_requests(response, files)
            raise _SplitError(detail)
        if len(files) == 1 and problem_slug(response) in ("unsupported-picture", "unreadable-picture"):
            return _failed(files, detail)
        raise self._command_error(response)

    def _reduce_requests(self, response: httpx.Response, files: Sequence[File]) -> None:
        """Lower the limit that a rejected request exceeded."""
        if problem_slug(response) == "too-many-files":
            self._max_files = min(self._max_files, max(1, len(files) // 2))
        elif len(files) > 1:
            self._max_bytes = min(self._max_bytes, sum(len(data) for _, data in files) // 2)


def _failed(files: Sequence[File], reason: str) -> list[Result]:
    return [Result(path, {}, error=reason) for path, _ in files]
