"""What the profile `observability` of docker-compose.yml is made of fits together, and fits the service's metrics."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from app.telemetry.metrics import Telemetry
from tests.app.running import ROOT


class Metric(NamedTuple):
    """What kind a metric is, and its labels."""

    kind: str
    labels: frozenset[str] = frozenset()


METRICS: dict[str, Metric] = {
    "tenfold_requests_total": Metric("counter", frozenset({"route", "status"})),
    "tenfold_request_seconds": Metric("histogram", frozenset({"route"})),
    "tenfold_pictures_total": Metric("counter", frozenset({"outcome"})),
    "tenfold_rejections_total": Metric("counter", frozenset({"reason"})),
    "tenfold_pictures_under_way": Metric("gauge"),
    "tenfold_uploads_under_way": Metric("gauge"),
    "tenfold_batch_views": Metric("histogram"),
    "tenfold_decode_seconds": Metric("histogram"),
    "tenfold_queue_seconds": Metric("histogram"),
    "tenfold_inference_seconds": Metric("histogram"),
    "tenfold_predictions_total": Metric("counter", frozenset({"label"})),
    "tenfold_confidence": Metric("histogram"),
    "tenfold_accepted_total": Metric("counter"),
    "tenfold_model_info": Metric("gauge", frozenset({"name", "version", "engine", "device", "precision"})),
    "tenfold_ready": Metric("gauge"),
    "process_resident_memory_bytes": Metric("gauge"),
    "process_cpu_seconds_total": Metric("counter"),
    "process_start_time_seconds": Metric("gauge"),
}
# Prometheus' own.
OWN = {"up", "ALERTS"}
OWN_LABELS = {"job", "instance", "le", "alertname", "alertstate", "severity"}
FOLDER = ROOT / "observability"
DASHBOARD = FOLDER / "grafana" / "dashboards" / "tenfold.json"
LOOPBACK = "127.0.0.1:"

_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_NAME = re.compile(r"\b[A-Za-z_][A-Za-z0-9_:]*")


class Parts(NamedTuple):
    """What a PromQL expression names."""

    metrics: set[str]
    labels: set[str]


def parts(expression: str) -> Parts:
    """The metrics and the labels of an expression, as far as ours go: no metric has a keyword's name."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    labels = {name for group in (*_GROUPING.findall(bare), *_MATCHERS.findall(bare)) for name in _NAME.findall(group)}
    bare = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", " ", _MATCHERS.sub(" ", _GROUPING.sub(" ", bare)))
    calls = set(re.findall(r"([A-Za-z_]\w*)\s*\(", bare))
    return Parts({name for name in _NAME.findall(bare) if name not in _WORDS | calls}, labels)


def series() -> dict[str, frozenset[str]]:
    """Each series that Prometheus gets of the metrics above, and its labels."""
    out: dict[str, frozenset[str]] = {}
    for name, metric in METRICS.items():
        if metric.kind == "histogram":
            out |= {
                name + "_bucket": metric.labels | {"le"},
                name + "_sum": metric.labels,
                name + "_count": metric.labels,
            }
        else:
            out[name] = metric.labels
    return out


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [rule for group in load_yaml(FOLDER / "alerts.yml")["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return content


def panel_expressions() -> dict[str, list[str]]:
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard()["panels"]}


def expressions() -> dict[str, str]:
    """Every expression that is used, by where it stands."""
    from_rules = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    from_panels = {
        f"{title}, {number}": expression
        for title, found in panel_expressions().items()
        for number, expression in enumerate(found)
    }
    return from_rules | from_panels


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


@pytest.mark.parametrize(
    ("expression", "metrics", "labels"),
    [
        ("up", {"up"}, set()),
        ('up{job="a or b"} == 0 or c_total', {"up", "c_total"}, {"job"}),
        ("sum by (le, route) (rate(a_bucket[5m]))", {"a_bucket"}, {"le", "route"}),
        ("sum(rate(a_sum[$window])) / ignoring (x) group_left () sum(b)", {"a_sum", "b"}, {"x"}),
        ("abs(a:b:1h - avg_over_time(a:b:1h[1d] offset 1h)) > 0.15 and on () d", {"a:b:1h", "d"}, set()),
        ('time() - max(a{x=~"b|c", y!="d"}) > 1e3', {"a"}, {"x", "y"}),
    ],
)
def test_an_expression_is_taken_apart(expression: str, metrics: set[str], labels: set[str]) -> None:
    assert parts(expression) == Parts(metrics, labels)


def test_the_metrics_are_those_of_the_service() -> None:
    telemetry = Telemetry()
    suffix = {"counter": "_total"}
    kinds = {family.name + suffix.get(family.type, ""): family.type for family in telemetry.registry.collect()}
    ours = {name: metric.kind for name, metric in METRICS.items() if name.startswith("tenfold_")}
    assert ours == {name: kind for name, kind in kinds.items() if name.startswith("tenfold_")}
    assert kinds.items() >= {name: metric.kind for name, metric in METRICS.items()}.items()
    for attribute in vars(telemetry).values():
        if isinstance(attribute, MetricWrapperBase):
            (family,) = attribute.describe()
            name = family.name + suffix.get(family.type, "")
            assert set(attribute._labelnames) == METRICS[name].labels, name


def test_every_file_parses() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yml", ".json"}
    for path in files:
        assert json.loads(path.read_text()) if path.suffix == ".json" else load_yaml(path)
    for path in ROOT.glob("docker-compose*.yml"):
        assert load_yaml(path)["services"]


@pytest.mark.parametrize("where", expressions())
def test_an_expression_asks_for_what_there_is(where: str) -> None:
    known = series()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    found = parts(expressions()[where])
    assert found.metrics, "it asks for nothing"
    assert found.metrics <= known.keys() | recorded | OWN
    labels = {label for metric in found.metrics for label in known.get(metric, ())}
    assert found.labels <= labels | OWN_LABELS


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for found in panel_expressions().values() for each in found for name in parts(each).metrics}
    for name, metric in METRICS.items():
        names = {name + end for end in ("_bucket", "_sum", "_count")} if metric.kind == "histogram" else {name}
        assert shown & names, f"{name} is shown nowhere"


def test_legends_name_labels_that_are_there() -> None:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            assert legend <= parts(target["expr"]).labels


def test_variables_of_the_dashboard_are_defined() -> None:
    content = dashboard()
    defined = {variable["name"] for variable in content["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(content["panels"])))
    assert used == defined
    assert set(re.findall(r"\$(__\w+)", json.dumps(content["panels"]))) == {"__rate_interval"}


def test_every_datasource_that_is_used_exists() -> None:
    (folder,) = (FOLDER / "grafana" / "datasources").iterdir()
    sources = {source["uid"]: source for source in load_yaml(folder)["datasources"]}
    used = list(values_of("datasource", dashboard()))
    panels = dashboard()["panels"]
    assert len(used) == len(panels) + sum(len(panel["targets"]) for panel in panels), "one falls back to the default"
    for source in used:
        assert sources[source["uid"]]["type"] == source["type"]
    assert {source["url"] for source in sources.values()} == {"http://prometheus:9090"}
    assert "prometheus" in services()


def test_panels_lie_beside_one_another() -> None:
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
        assert max(x for x, _ in cells) < 24, "wider than the page"
        assert not cells & taken, f"{panel['title']} overlaps another"
        taken |= cells


def test_alerts_say_what_they_mean() -> None:
    for rule in rules():
        if "alert" in rule:
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["labels"]["severity"] in {"page", "warn"}


def test_prometheus_asks_the_service_and_knows_its_rules() -> None:
    content = load_yaml(FOLDER / "prometheus.yml")
    (job,) = content["scrape_configs"]
    assert job["job_name"] == "tenfold", "the alerts name it"
    assert job["static_configs"] == [{"targets": ["tenfold:8000"]}]
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert "tenfold" in services()
    mounts = {Path(target).name for _, target in mounts_of("prometheus")}
    assert {"prometheus.yml", *content["rule_files"]} <= mounts


def mounts_of(service: str) -> list[tuple[str, str]]:
    """Files and folders of the repository that a service is given, and where it finds them."""
    found = []
    for mount in services()[service].get("volumes", ()):
        source, target, *mode = mount.split(":")
        if source.startswith("."):
            assert mode == ["ro"], f"{mount} may be written"
            found.append((source, target))
    return found


def test_every_mounted_file_exists_and_all_are_mounted() -> None:
    mounted = [ROOT / source for name in services() for source, _ in mounts_of(name)]
    assert all(path.exists() for path in mounted)
    for path in FOLDER.rglob("*"):
        if path.is_file():
            assert any(path == mount or mount in path.parents for mount in mounted), f"nobody is given {path.name}"


def test_grafana_finds_its_dashboard() -> None:
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
        assert service["ports"], name
        assert all(port.startswith(LOOPBACK) for port in service["ports"]), name


def test_without_the_profile_only_the_service_comes_up() -> None:
    assert [name for name, service in services().items() if "profiles" not in service] == ["tenfold"]
    assert {profile for service in services().values() for profile in service.get("profiles", ())} == {"observability"}
    assert not services()["tenfold"].get("depends_on")


def test_images_are_pinned_and_may_do_little() -> None:
    for name, service in services().items():
        if "build" not in service:
            tag = service["image"].partition(":")[2]
            assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), f"{name} is not pinned to a version"
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
