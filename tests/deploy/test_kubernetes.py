"""deploy/kubernetes: kustomize renders it, it fits the schemas of Kubernetes, and it agrees with the service."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app.main import create_app
from app.settings import Settings
from tests.app.fakes import image_file
from tests.app.running import ROOT, serving

FOLDER = ROOT / "deploy" / "kubernetes"
BASE, GPU, TWO_MODELS = FOLDER / "base", FOLDER / "overlays" / "gpu", FOLDER / "overlays" / "two-models"
# The oldest version that deploy/README.md names, and the newest that the package has schemas of.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
ADAPTER = FOLDER / "prometheus-adapter.yaml"

Resource = dict[str, Any]

every_variant = pytest.mark.parametrize("folder", [BASE, GPU, TWO_MODELS], ids=lambda folder: folder.name)


@functools.cache
def render(folder: Path) -> list[Resource]:
    """The resources of a kustomization, by the kustomize in kubectl."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl 1.27 or newer, to run kustomize")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return list(yaml.safe_load_all(done.stdout))


def resource(kind: str, folder: Path = BASE) -> Resource:
    (found,) = [each for each in render(folder) if each["kind"] == kind]
    return found


def pod(folder: Path = BASE) -> Resource:
    found: Resource = resource("Deployment", folder)["spec"]["template"]["spec"]
    return found


def container(folder: Path = BASE) -> Resource:
    (found,) = pod(folder)["containers"]
    assert isinstance(found, dict)
    return found


def settings(folder: Path = BASE) -> Settings:
    """The settings of the ConfigMap, which must all be known."""
    names = {f"TENFOLD_{name.upper()}": name for name in Settings.model_fields}
    return Settings.model_validate(
        {names[name]: value for name, value in resource("ConfigMap", folder)["data"].items()}
    )


def adapter_rule() -> dict[str, Any]:
    (rule,) = yaml.safe_load(ADAPTER.read_text(encoding="utf-8"))["rules"]["custom"]
    assert isinstance(rule, dict)
    return rule


def gibibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) / {"Mi": 1024, "Gi": 1}[unit]


@pytest.mark.parametrize("version", VERSIONS)
@every_variant
def test_resources_fit_the_schemas_of_kubernetes(folder: Path, version: str) -> None:
    checked = [each for each in render(folder) if each["kind"] != "ServiceMonitor"]
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)
    assert {each["kind"] for each in checked} == {
        *("Namespace", "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"),
        "NetworkPolicy",
    }


@every_variant
def test_all_resources_are_in_the_namespace(folder: Path) -> None:
    name = resource("Namespace", folder)["metadata"]["name"]
    assert {each["metadata"]["namespace"] for each in render(folder) if each["kind"] != "Namespace"} == {name}


@every_variant
def test_selectors_match_the_pods(folder: Path) -> None:
    deployment = resource("Deployment", folder)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        resource("Service", folder)["spec"]["selector"],
        resource("PodDisruptionBudget", folder)["spec"]["selector"]["matchLabels"],
        resource("NetworkPolicy", folder)["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in pod(folder)["topologySpreadConstraints"]),
    ]
    assert len(selectors) == 6
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()


@every_variant
def test_ports_are_those_of_the_container(folder: Path) -> None:
    (port,) = container(folder)["ports"]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f"TENFOLD_PORT={port['containerPort']}" in dockerfile
    (service,) = resource("Service", folder)["spec"]["ports"]
    (endpoint,) = resource("ServiceMonitor", folder)["spec"]["endpoints"]
    (rule,) = resource("NetworkPolicy", folder)["spec"]["ingress"]
    assert service["targetPort"] == rule["ports"][0]["port"] == port["name"]
    assert endpoint["port"] == service["name"]


@every_variant
def test_the_drain_fits_the_probes_and_the_grace_period(folder: Path) -> None:
    chosen = settings(folder)
    assert pod(folder)["terminationGracePeriodSeconds"] >= chosen.drain_delay + chosen.drain_timeout + 5
    readiness = container(folder)["readinessProbe"]
    seconds = readiness["failureThreshold"] * (readiness["periodSeconds"] + readiness["timeoutSeconds"])
    assert chosen.drain_delay > seconds
    assert "lifecycle" not in container(folder)


@every_variant
def test_probes_are_endpoints_of_the_service(folder: Path) -> None:
    paths = create_app(Settings()).openapi()["paths"]
    for probe, path in {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}.items():
        request = container(folder)[probe]["httpGet"]
        assert request == {"path": path, "port": container(folder)["ports"][0]["name"]}
        assert path in paths


@every_variant
def test_restrictions_are_those_of_docker_compose(folder: Path) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["tenfold"]
    security = container(folder)["securityContext"]
    assert security["readOnlyRootFilesystem"] is compose["read_only"]
    assert security["capabilities"] == {"drop": compose["cap_drop"]}
    assert compose["security_opt"] == ["no-new-privileges:true"]
    assert security["allowPrivilegeEscalation"] is False
    assert [mount["mountPath"] for mount in container(folder)["volumeMounts"]] == compose["tmpfs"]
    (volume,) = pod(folder)["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"


@every_variant
def test_pods_meet_the_restricted_standard(folder: Path) -> None:
    context = pod(folder)["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {context['runAsUser']}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert pod(folder)["automountServiceAccountToken"] is False
    labels = resource("Namespace", folder)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@every_variant
def test_the_image_is_that_of_this_version(folder: Path) -> None:
    assert container(folder)["image"].partition(":")[2] == __version__ + "-gpu" * (folder == GPU)


@every_variant
def test_memory_and_threads_follow_from_the_resources(folder: Path) -> None:
    resources = container(folder)["resources"]
    assert settings(folder).threads == int(resources["requests"]["cpu"])
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert "cpu" not in resources["limits"]
    # tests/app/process/test_memory.py keeps a process below 900 MB. Files in /tmp count as well.
    temporary = gibibytes(pod(folder)["volumes"][0]["emptyDir"]["sizeLimit"])
    assert gibibytes(resources["limits"]["memory"]) >= 0.9e9 / 2**30 + temporary


def test_the_autoscaler_scales_the_deployment_by_cpu_and_queue() -> None:
    spec = resource("HorizontalPodAutoscaler")["spec"]
    assert spec["scaleTargetRef"]["name"] == resource("Deployment")["metadata"]["name"]
    assert "replicas" not in resource("Deployment")["spec"], "kubectl apply would undo the scaling"
    cpu, queue = spec["metrics"]
    assert cpu["resource"]["name"] == "cpu"
    assert queue["pods"]["metric"]["name"] == adapter_rule()["name"]["as"]
    assert int(queue["pods"]["target"]["averageValue"]) < settings().queue_size / 2
    assert spec["minReplicas"] > 1, "one pod may be evicted at a time"


def test_the_queue_metric_is_a_metric_of_the_service() -> None:
    rule = adapter_rule()
    name = re.match(r"\w+", rule["seriesQuery"])
    assert name
    with serving() as running:
        assert running.post(image_file()).status_code == 200
        families = {each.name: each for each in text_string_to_metric_families(running.client.get("/metrics").text)}
    assert families[name[0]].type == "gauge"
    assert {label for sample in families[name[0]].samples for label in sample.labels} == {"model"}
    # Labels of the target, which Prometheus adds. The sum is over the models.
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    assert rule["metricsQuery"].startswith("sum by (<<.GroupBy>>)")


def test_prometheus_gets_the_job_that_the_alerts_expect() -> None:
    """The schema of ServiceMonitor is in no package. The fields that are used are checked here."""
    spec = resource("ServiceMonitor")["spec"]
    labels = resource("Service")["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert f'job="{labels[spec["jobLabel"]]}"' in (ROOT / "observability" / "alerts.yml").read_text(encoding="utf-8")
    (endpoint,) = spec["endpoints"]
    assert set(endpoint) == {"port", "path", "interval"}
    assert endpoint["path"] in create_app(Settings()).openapi()["paths"]


def test_pods_send_no_requests() -> None:
    spec = resource("NetworkPolicy")["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert not spec.get("egress")


def test_pods_with_a_gpu_use_it() -> None:
    assert container(GPU)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert settings(GPU).device == "cuda"
    (queue,) = resource("HorizontalPodAutoscaler", GPU)["spec"]["metrics"]
    assert queue["type"] == "Pods"


def test_the_overlay_of_two_models_names_two() -> None:
    bundles = settings(TWO_MODELS).bundles
    assert len(bundles) == 2
    assert all((ROOT / bundle / "card.json").is_file() for bundle in bundles)


def test_with_api_keys_prometheus_sends_one_and_pods_need_the_secret(tmp_path: Path) -> None:
    reference = container()["env"][0]["valueFrom"]["secretKeyRef"]
    assert container()["env"][0]["name"] == "TENFOLD_API_KEYS"
    assert reference["optional"] is True
    base, component = (os.path.relpath(folder, tmp_path.resolve()) for folder in (BASE, FOLDER / "api-keys"))
    content = {"resources": [base], "components": [component]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    folder = tmp_path.resolve()
    required = container(folder)["env"][0]["valueFrom"]["secretKeyRef"]
    assert required == {**reference, "optional": False}
    assert container(folder)["env"][1:] == container()["env"][1:], "only the API keys are required"
    (endpoint,) = resource("ServiceMonitor", folder)["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"]["name"] == reference["name"]
    assert endpoint["authorization"]["credentials"]["key"] != reference["key"]


def test_admin_keys_are_an_optional_entry_of_the_secret() -> None:
    api, admin = container()["env"]
    assert admin["name"] == "TENFOLD_ADMIN_KEYS"
    reference = admin["valueFrom"]["secretKeyRef"]
    assert reference["name"] == api["valueFrom"]["secretKeyRef"]["name"]
    assert reference["key"] not in (api["valueFrom"]["secretKeyRef"]["key"], "metrics")
    assert reference["optional"] is True
    assert f"--from-literal={reference['key']}=" in (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
