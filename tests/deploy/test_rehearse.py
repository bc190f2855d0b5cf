"""Replicas behind HAProxy: the configuration fits the service, and a rolling update loses no request."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from app.settings import Settings
from benchmarks.soak.proxy import CONFIGURATION, Proxy
from deploy.rehearse import command
from tests.app.running import ROOT, serving

needs_haproxy = pytest.mark.skipif(not shutil.which("haproxy"), reason="needs haproxy, from Debian's package haproxy")


def seconds(name: str) -> float:
    """A duration in the configuration."""
    found = re.search(rf"\b{name} (\d+)s\b", CONFIGURATION.read_text(encoding="utf-8"))
    assert found, name
    return float(found[1])


def drain_delay() -> float:
    """That of the replicas in docker-compose.yml."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    return float(services["replica"]["environment"]["TENFOLD_DRAIN_DELAY"])


def test_a_replica_drains_for_longer_than_the_proxy_needs_to_notice() -> None:
    found = re.search(r"default-server check inter 1s fall (\d+) rise 1\n", CONFIGURATION.read_text(encoding="utf-8"))
    assert found
    assert drain_delay() >= 2 * int(found[1])


def test_the_timeouts_of_the_proxy_fit_those_of_the_service() -> None:
    settings = Settings()
    assert seconds("timeout server") > settings.timeout
    assert seconds("timeout client") > settings.timeout
    assert seconds("timeout http-keep-alive") < settings.keep_alive_timeout


def test_the_containers_of_the_replicas_are_those_of_the_backend() -> None:
    backend = (CONFIGURATION.parent / "replicas.cfg").read_text(encoding="utf-8")
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert re.search(r"server-template \w+ \d+ (\w+):8000 ", backend)[1] in services  # type: ignore[index]
    paths = services["proxy"]["command"][2::2]
    assert {Path(path).name for path in paths} == {file.name for file in CONFIGURATION.parent.iterdir()}
    assert {str(Path(path).parent) for path in paths} == {services["proxy"]["volumes"][0].split(":")[1]}
    assert services["replica"]["stop_grace_period"] == "40s"
    assert drain_delay() + Settings().drain_timeout < 40


@needs_haproxy
def test_the_proxy_serves_the_replica_but_not_its_metrics() -> None:
    with serving() as service, Proxy([service.port], retries=0) as proxy:
        proxy.wait_checked([service.port])
        client = service.client
        assert client.get(f"http://127.0.0.1:{proxy.port}/readyz").status_code == 200
        for path in ("/metrics", "/%6detrics", "/%6D%65trics/", "/metrics?a=b", "/metrics%0A"):
            assert client.get(f"http://127.0.0.1:{proxy.port}{path}").status_code == 404, path
        assert proxy.retries() == 0


def rehearse(bundle: Path, logs: Path, *options: str) -> tuple[int, str]:
    """The exit code and the output of a short rehearsal."""
    arguments = ["--weights", str(bundle), "--logs", str(logs), "--seconds", "1", "--connections", "8", *options]
    done = CliRunner().invoke(command, arguments)
    return done.exit_code, done.output


@needs_haproxy
@pytest.mark.slow
def test_a_rolling_update_loses_no_request_even_if_the_proxy_never_tries_again(
    int8_bundle: Path, tmp_path: Path
) -> None:
    code, output = rehearse(int8_bundle, tmp_path, "--retries", "0")
    rows = re.findall(r"^0 retries, (\w+) +(\d+) +(\d+)", output, re.MULTILINE)
    assert [(name, lost) for name, _, lost in rows] == [("before", "0"), ("update", "0")], output
    assert all(int(requests) > 8 for _, requests, _ in rows), output
    assert code == 0


@needs_haproxy
@pytest.mark.slow
def test_lost_requests_are_counted(int8_bundle: Path, tmp_path: Path) -> None:
    """Without a drain delay, the proxy sends requests to a replica that does not listen any more."""
    code, output = rehearse(int8_bundle, tmp_path, "--replicas", "1", "--retries", "0", "--drain-delay", "0")
    assert code == 1, output
    assert "lost:" in output
