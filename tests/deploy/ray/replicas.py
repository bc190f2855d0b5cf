"""Runs the application of deploy/ray/serve.py on a cluster of its own, for test_serve.py.

python -m tests.deploy.ray.replicas BUNDLE IMAGE PORT REQUESTS prints one line of JSON: the statuses of requests while a
replica is killed and while replicas are added and removed.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

_CONNECTIONS = 8


def processes() -> list[int]:
    """Those of the replicas of this cluster, which belong to the session of this process."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if command.read_bytes().startswith(b"ray::ServeReplica"):
                environment = (command.parent / "environ").read_bytes().split(b"\0")
                if f"TENFOLD_WEIGHTS={sys.argv[1]}".encode() in environment:
                    found.append(int(command.parent.name))
        except OSError:  # it has ended
            continue
    return found


def load(url: str, image: bytes, requests: int, action: Callable[[], None]) -> dict[str, int]:
    """Send requests, each a second time if it fails, and act after a third of them. Returns the last statuses."""

    def send(client: httpx.Client) -> str:
        for retry in (True, False):
            try:
                status = str(client.post(url, content=image, headers={"Content-Type": "image/png"}).status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            if status != "200" and retry:
                time.sleep(1)
                continue
            break
        return status

    with httpx.Client(timeout=120) as client, ThreadPoolExecutor(_CONNECTIONS) as pool:
        answers = [pool.submit(send, client) for _ in range(requests)]
        answers[requests // 3].result()
        action()
        return Counter(answer.result() for answer in answers)


def main(bundle: str, image: str, port: int, requests: int) -> None:
    os.environ |= {"TENFOLD_WEIGHTS": bundle, "TENFOLD_THREADS": "1"}
    import ray
    from ray import serve

    from deploy.ray.serve import deployment

    def scale(replicas: int) -> None:
        options = {"num_replicas": replicas, "autoscaling_config": None, "ray_actor_options": {"num_cpus": 0.5}}
        serve.run(deployment.options(**options).bind())

    ray.init("local", num_cpus=3, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        scale(2)
        url, data = f"http://127.0.0.1:{port}/predict", Path(image).read_bytes()
        killed = load(url, data, requests, lambda: os.kill(processes()[0], signal.SIGKILL))
        counts = []

        def scale_twice() -> None:
            for replicas in (3, 1):
                scale(replicas)
                counts.append(len(processes()))

        scaled = load(url, data, requests, scale_twice)
        ready = httpx.get(f"http://127.0.0.1:{port}/readyz").json()
        print(json.dumps({"killed": killed, "scaled": scaled, "counts": counts, "ready": ready}))
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
