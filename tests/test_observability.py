"""Prometheus' rules and Grafana's dashboard use metrics that the service has, and fit docker-compose.yml."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app.http.problems import TABLE
from tests.app.fakes import FakeEngine, image_file
from tests.app.running import ROOT, serving

FOLDER = ROOT / "observability"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "tenfold.json"
LOOPBACK = "127.0.0.1:"


@pytest.fixture(scope="module")
def exposition(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The response of /metrics after two images, one of them invalid, and a request that was rejected."""
    engine = FakeEngine()
    store = tmp_path_factory.mktemp("feedback") / "store"
    with serving(engine, queue_size=1, max_files=1, feedback=store) as running:
        assert running.post(image_file()).status_code == 200
        assert running.post(b"plain text").status_code == 415
        engine.block()
        pending = running.in_background(lambda: running.post(image_file()))
        running.wait_admitted(1)
        assert running.post(image_file()).status_code == 503
        engine.release()
        assert pending.result().status_code == 200
        return running.client.get("/metrics").text


@pytest.fixture(scope="module")
def metrics(exposition: str) -> dict[str, list[str]]:
    """The names of the service's time series by metric: a histogram `x` has `x_bucket`, `x_sum` and `x_count`."""
    suffixes = {
        "counter": ["_total"],
        "histogram": ["_bucket", "_sum", "_count"],
        "gauge": [""],
        "summary": ["_sum", "_count"],
    }
    families = text_string_to_metric_families(exposition)
    return {
        family.name: [family.name + suffix for suffix in suffixes[family.type]]
        for family in families
        if family.name.startswith("tenfold_") and not family.name.endswith("_created")
    }


@pytest.fixture(scope="module")
def promtool() -> str:
    """The path of promtool, which is part of Prometheus."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("needs promtool, from Debian's package prometheus for example")
    return path


def run_promtool(promtool: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [promtool, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in load_yaml(FOLDER / "alerts.yml")["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def panel_expressions() -> dict[str, list[str]]:
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard()["panels"]}


def expressions() -> list[str]:
    return [*(rule["expr"] for rule in rules()), *(expr for found in panel_expressions().values() for expr in found)]


def values_of(key: str, content: Any) -> Iterator[Any]:
    """The values of every `key` in nested dicts and lists."""
    if isinstance(content, dict):
        if key in content:
            yield content[key]
        for value in content.values():
            yield from values_of(key, value)
    elif isinstance(content, list):
        for value in content:
            yield from values_of(key, value)


def services() -> dict[str, Any]:
    content: dict[str, Any] = load_yaml(ROOT / "docker-compose.yml")["services"]
    return content


def test_every_file_parses() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yml", ".json"}
    for path in files:
        assert json.loads(path.read_text()) if path.suffix == ".json" else load_yaml(path)
    for path in ROOT.glob("docker-compose*.yml"):
        assert load_yaml(path)["services"]


def test_expressions_use_metrics_of_the_service(metrics: dict[str, list[str]]) -> None:
    series = {name for names in metrics.values() for name in names}
    for expression in expressions():
        assert set(re.findall(r"tenfold_\w+", expression)) <= series, expression


def test_the_dashboard_shows_every_metric(metrics: dict[str, list[str]]) -> None:
    shown = {name for found in panel_expressions().values() for each in found for name in re.findall(r"\w+", each)}
    assert [metric for metric, names in metrics.items() if not shown & set(names)] == []


def test_expressions_for_lack_of_capacity_name_every_such_problem() -> None:
    problems = {problem.slug for problem in TABLE.values() if problem.status in (503, 504)} - {"swap-interrupted"}
    reasons = [set(found.split("|")) for each in expressions() for found in re.findall(r'reason=~"([^"]*)"', each)]
    assert len(reasons) == 2
    assert all(found == problems for found in reasons)


def test_prometheus_accepts_the_configuration_and_the_rules(promtool: str) -> None:
    run_promtool(promtool, "check", "config", FOLDER / "prometheus.yml")


def test_alerts_fire_when_they_should(promtool: str) -> None:
    run_promtool(promtool, "test", "rules", ROOT / "tests" / "alerts.yml")


def test_panels_have_data_and_the_labels_of_their_legends(promtool: str, exposition: str, tmp_path: Path) -> None:
    """Prometheus evaluates their expressions over the series of the service, the counters of which increase."""
    series = [{"series": 'ALERTS{alertname="Example",alertstate="firing"}', "values": "1x20"}]
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            pairs = ",".join(f"{name}={json.dumps(value)}" for name, value in sample.labels.items())
            values = "1x20" if family.type == "gauge" else "1+1x20"
            series.append({"series": f"{sample.name}{{{pairs}}}", "values": values})
    cases = []
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = re.sub(r"\$\w+", "5m", target["expr"].replace("$model", ".*"))
            labels = "{}"
            for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
                expression = f'label_replace({expression}, "labelled", "yes", "{label}", ".+")'
                labels = '{labelled="yes"}'
            cases.append(
                {
                    "expr": f"group by (labelled) ({expression})",
                    "eval_time": "10m",
                    "exp_samples": [{"labels": labels, "value": 1}],
                }
            )
    test = {"interval": "1m", "input_series": series, "promql_expr_test": cases}
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"tests": [test]}), encoding="utf-8")
    run_promtool(promtool, "test", "rules", path)


def test_variables_of_the_dashboard_are_defined() -> None:
    content = dashboard()
    defined = {variable["name"] for variable in content["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(content["panels"])))
    assert used == defined
    assert set(re.findall(r"\$(__\w+)", json.dumps(content["panels"]))) == {"__rate_interval"}


def test_every_datasource_that_is_used_exists() -> None:
    (folder,) = (FOLDER / "grafana" / "datasources").iterdir()
    sources = {source["uid"]: source for source in load_yaml(folder)["datasources"]}
    panels = dashboard()["panels"]
    used = list(values_of("datasource", panels))
    assert len(used) == len(panels) + sum(len(panel["targets"]) for panel in panels), "one uses the default"
    for source in [*used, *values_of("datasource", dashboard()["templating"])]:
        assert sources[source["uid"]]["type"] == source["type"]
    assert {source["url"] for source in sources.values()} == {"http://prometheus:9090"}
    assert "prometheus" in services()


def test_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24, "outside the grid"
        assert not cells & taken, f"{panel['title']} overlaps another"
        taken |= cells


def test_alerts_have_annotations_and_a_severity() -> None:
    for rule in rules():
        if "alert" in rule:
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["labels"]["severity"] in {"page", "warn"}


def test_prometheus_scrapes_the_service_and_loads_the_rules() -> None:
    content = load_yaml(FOLDER / "prometheus.yml")
    (job,) = content["scrape_configs"]
    assert job["job_name"] == "tenfold", "the alerts use this name"
    assert job["static_configs"] == [{"targets": ["tenfold:8000"]}]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert "tenfold" in services()
    mounts = {Path(target).name for _, target in mounts_of("prometheus")}
    assert {"prometheus.yml", *content["rule_files"]} <= mounts


def mounts_of(service: str) -> list[tuple[str, str]]:
    """Bind mounts of a container: paths in the repository and in the container."""
    found = []
    for mount in services()[service].get("volumes", ()):
        source, target, *mode = mount.split(":")
        if source.startswith("."):
            assert mode == ["ro"], f"{mount} is writable"
            found.append((source, target))
    return found


def test_every_mounted_file_exists_and_all_are_mounted() -> None:
    mounted = [ROOT / source for name in services() for source, _ in mounts_of(name)]
    assert all(path.exists() for path in mounted)
    for path in FOLDER.rglob("*"):
        if path.is_file():
            assert any(path == mount or mount in path.parents for mount in mounted), f"{path.name} is not mounted"


def test_grafana_loads_the_dashboard() -> None:
    mounts = dict(mounts_of("grafana"))
    folder = mounts["./observability/grafana/dashboards"]
    (provider,) = load_yaml(FOLDER / "grafana" / "providers" / "tenfold.yml")["providers"]
    assert provider["options"]["path"] == folder
    home = services()["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/{DASHBOARD.name}"
    assert mounts["./observability/grafana/datasources"] == "/etc/grafana/provisioning/datasources"
    assert mounts["./observability/grafana/providers"] == "/etc/grafana/provisioning/dashboards"


def test_nobody_can_log_in_to_grafana() -> None:
    environment = services()["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert not [name for name in environment if "PASSWORD" in name]


def test_ports_are_bound_to_loopback() -> None:
    for name, service in services().items():
        assert bool(service["ports"]) == (name != "replica"), name
        assert all(port.startswith(LOOPBACK) for port in service["ports"]), name


def test_without_the_profile_only_the_service_starts() -> None:
    assert [name for name, service in services().items() if "profiles" not in service] == ["tenfold"]
    profiles = {profile for service in services().values() for profile in service.get("profiles", ())}
    assert profiles == {"observability", "replicas"}
    assert not services()["tenfold"].get("depends_on")


def test_container_images_are_pinned_and_unprivileged() -> None:
    for name, service in services().items():
        if "build" not in service:
            tag = service["image"].partition(":")[2]
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), f"{name} is not pinned to a version"
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
