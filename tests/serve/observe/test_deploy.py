"""The files of deploy/: they agree with the server, with its metrics and with each other. No image is built here.

Where hadolint, kubernetes-validate, promql-parser or kubectl are installed, they check the files too.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cases import each

from adaptive_lm.serve.observe.telemetry import Telemetry
from adaptive_lm.serve.settings import Settings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/adaptive.json").read_text("utf-8"))
USER = "10001"
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
METRIC = re.compile(r"\b(?:adaptive|process)_[a-z_]+\b")
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def load(name: str) -> Any:
    return yaml.safe_load((KUBERNETES / name).read_text("utf-8"))


def program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def series(telemetry: Telemetry) -> set[str]:
    """Return the names that queries may use."""
    suffixes = {"counter": ["_total"], "gauge": [""], "info": ["_info"], "histogram": ["_bucket", "_count", "_sum"]}
    return {
        family.name + suffix
        for family in telemetry.metrics.registry.collect()
        for suffix in suffixes[family.type]
        if family.name.startswith("adaptive_")
    }


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        yield word, rest


def test_every_query_of_the_dashboard_names_metrics_that_exist(telemetry: Telemetry) -> None:
    assert len(QUERIES) > 30
    named = {name for query in QUERIES for name in METRIC.findall(query)}
    assert named - PROCESS <= series(telemetry)
    assert {query for query in QUERIES if not METRIC.search(query)} == set()


def test_every_metric_has_a_place_on_the_dashboard(telemetry: Telemetry) -> None:
    named = {name for query in QUERIES for name in METRIC.findall(query)}
    families = {re.sub(r"_(total|bucket|count|sum|info)$", "", name) for name in named}
    own = {re.sub(r"_info$", "", each.name) for each in telemetry.metrics.registry.collect()}
    assert {name for name in own if name.startswith("adaptive_")} - families == set()


def test_every_label_of_a_query_is_a_label_of_its_metric(telemetry: Telemetry) -> None:
    telemetry.rejected("demo", "memory")
    labels: dict[str, set[str]] = {}
    for family in telemetry.metrics.registry.collect():
        labels[family.name] = {label for sample in family.samples for label in sample.labels}
    labels["adaptive_http_requests"] = {"route", "method", "status", "model"}
    labels["adaptive_http_request_duration_seconds"] = {"route", "le"}
    for query in QUERIES:
        (family,) = {re.sub(r"_(total|bucket|count|sum|info)$", "", name) for name in METRIC.findall(query)[:1]}
        grouped = {name.strip() for names in re.findall(r"by \(([^)]*)\)", query) for name in names.split(",")}
        selected = set(re.findall(r'([a-z]+)=~"', query))
        if family.startswith("adaptive_"):
            assert grouped | selected <= labels[family] | {"le"}, query


@each("query", sorted(set(QUERIES)))
def test_every_query_is_promql(query: str) -> None:
    parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed")
    parser.parse(query.replace("$__rate_interval", "1m").replace("$model", ".*"))


def test_the_dashboard_is_the_one_that_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("dashboard", DEPLOY / "grafana/dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.FILE.read_text("utf-8") == module.text(), "type: python deploy/grafana/dashboard.py"


def test_the_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_image_has_a_build_stage_a_user_without_rights_and_a_health_check() -> None:
    words = [word for word, _ in instructions()]
    images = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert len(images) == 2
    assert len(set(images)) == 1, "a virtual environment moves only between equal images"
    assert all(re.fullmatch(r"[a-z]+:[\w.-]+", image) for image in images), "a version, and no address"
    last = words[len(words) - words[::-1].index("FROM") :]
    assert "RUN" in last
    assert not [rest for word, rest in list(instructions())[-len(last) :] if word == "RUN" and "apt-get" in rest]
    assert ("USER", f"{USER}:{USER}") in list(instructions())
    assert last.index("USER") < last.index("ENTRYPOINT")
    assert "HEALTHCHECK" in last
    assert "http://" not in DOCKERFILE.replace("http://127.0.0.1", "")
    assert "https://" not in DOCKERFILE


def test_only_the_sources_enter_the_image() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert {path for path in allowed if not (ROOT / path).exists()} == set()
    assert {"contract", "runtime", "train", "export", "serve", "pyproject.toml", "setup.py"} <= allowed


def test_hadolint_finds_no_fault() -> None:
    done = subprocess.run([program("hadolint"), DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_compose_file_publishes_to_this_computer_only_and_waits_for_the_drain() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    services = compose["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).exists(), source
    server = services["adaptive"]
    timeout = float(server["command"][server["command"].index("--shutdown-timeout") + 1])
    assert float(server["stop_grace_period"].removesuffix("s")) > timeout
    assert server["read_only"] is True
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text("utf-8"))
    assert scraped["scrape_configs"][0]["static_configs"] == [{"targets": ["adaptive:8000"]}]


def pod_specs() -> Iterator[tuple[str, Any]]:
    yield "deployment", load("deployment.yaml")["spec"]["template"]["spec"]
    cluster = load("rayservice.yaml")["spec"]["rayClusterConfig"]
    yield "ray head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield f"ray {group['groupName']}", group["template"]["spec"]


@pytest.mark.parametrize(("name", "spec"), list(pod_specs()))
def test_pods_run_without_rights_on_a_read_only_file_system(name: str, spec: Any) -> None:
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert str(spec["securityContext"]["runAsUser"]) == USER
    assert spec["automountServiceAccountToken"] is False
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        for mount in container["volumeMounts"]:
            assert mount.get("readOnly", False) != ("emptyDir" in volumes[mount["name"]])


def test_a_pod_has_time_to_drain_before_it_is_killed() -> None:
    spec = load("deployment.yaml")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    args = container["args"]
    timeout = float(args[args.index("--shutdown-timeout") + 1])
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert timeout == Settings().shutdown_timeout
    assert spec["terminationGracePeriodSeconds"] >= pause + timeout + 5
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_the_autoscaler_reads_the_queue_that_the_adapter_gives_it(telemetry: Telemetry) -> None:
    (metric,) = load("autoscaler.yaml")["spec"]["metrics"]
    (rule,) = load("prometheus-adapter.yaml")["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].partition("{")[0] in series(telemetry)


def test_the_manifests_select_the_pods_of_the_deployment() -> None:
    deployment = load("deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert load("service.yaml")["spec"]["selector"] == labels
    assert load("disruption.yaml")["spec"]["selector"]["matchLabels"] == labels
    assert load("autoscaler.yaml")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in load("service.yaml")["spec"]["ports"]} <= ports


@pytest.mark.parametrize("name", load("kustomization.yaml")["resources"])
def test_a_manifest_is_valid_for_kubernetes(name: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validate.validate(load(name), "1.33", strict=True)


def test_kustomize_builds_the_manifests() -> None:
    done = subprocess.run(
        [program("kubectl"), "kustomize", KUBERNETES], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kinds = {each["kind"] for each in yaml.safe_load_all(done.stdout)}
    assert kinds == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
