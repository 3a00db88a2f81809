"""What is deployed is well-formed, pinned, unprivileged and closed, checked without any engine."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
# `latest`, or no tag at all, is another image tomorrow.
PINNED = re.compile(r"[^:@]+(:(?!latest$)[\w][\w.-]*|@sha256:[0-9a-f]{64})$")


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests():
    files = sorted((INFRA / "kubernetes" / "base").glob("*.yaml"))
    return [d for file in files if file.name != "kustomization.yaml" for d in documents(file)]


def name_of(document):
    return f"{document['kind']}-{document['metadata']['name']}"


def pods(document):
    """Pod specifications anywhere in a manifest."""
    if isinstance(document, dict):
        if "containers" in document:
            yield document
        for value in document.values():
            yield from pods(value)
    elif isinstance(document, list):
        for value in document:
            yield from pods(value)


def test_the_image_passes_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed; install the test extra")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "warning", str(INFRA / "Containerfile")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_image_runs_unprivileged_and_knows_its_health():
    text = (INFRA / "Containerfile").read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert all(PINNED.match(base) for base in bases)
    assert len(set(bases)) == 1
    assert "\nUSER 10001\n" in text
    assert "\nHEALTHCHECK " in text
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_services_are_pinned_and_closed(name):
    service = COMPOSE["services"][name]
    assert PINNED.match(service["image"])
    assert not service.get("privileged")
    assert service.get("network_mode") != "host"
    for port in service.get("ports", []):
        assert str(port).startswith("127.0.0.1:")
    for key, value in service.get("environment", {}).items():
        if re.search(r"PASSWORD|SECRET|TOKEN|AUTH_STRING", key):
            assert "${" in str(value), f"{name}.{key} holds a secret"
    for needed in service.get("depends_on", []):
        assert needed in COMPOSE["services"]


def test_compose_secrets_have_no_default():
    text = (INFRA / "compose" / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    example = {
        line.split("=")[0]
        for line in (INFRA / "compose" / "example.env").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert asked == example
    ignored = (ROOT / ".gitignore").read_text().split()
    assert ".env" in ignored


def test_compose_is_accepted_by_docker():
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("this machine has no `docker compose`")
    example = str(INFRA / "compose" / "example.env")
    file = str(INFRA / "compose" / "compose.yaml")
    done = subprocess.run(
        [docker, "compose", "--env-file", example, "-f", file, "config", "--quiet"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "document", manifests(), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}"
)
def test_kubernetes_manifests(document):
    if document["apiVersion"].split("/")[0] != "ray.io":
        validate = pytest.importorskip("kubernetes_validate")
        validate.validate(document, "1.33", strict=True)
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert "memory" in container["resources"]["limits"]
            for variable in container.get("env", []):
                assert "value" not in variable, f"{variable['name']} belongs in the settings"


def servers():
    """The command and the variables of every Prefect server that is deployed."""
    service = COMPOSE["services"]["prefect"]
    yield service["entrypoint"], set(service["environment"])
    (deployment,) = [d for d in manifests() if name_of(d) == "Deployment-prefect"]
    for pod in pods(deployment):
        for container in pod["containers"]:
            yield container["command"], {v["name"] for v in container["env"]}
            for probe in ("startupProbe", "livenessProbe"):
                (header,) = container[probe]["httpGet"]["httpHeaders"]
                # A probe asks by the pod's address otherwise, which is no name of the server.
                assert header == {"name": "Host", "value": "prefect"}


def test_every_prefect_server_is_closed():
    """Password, own origin and own names: `flows.prefect_server` sees to all three."""
    found = list(servers())
    assert len(found) == 2
    for command, variables in found:
        assert command[:3] == ["python", "-m", "flows.prefect_server"]
        assert command[command.index("--name") + 1] == "prefect"
        assert "PREFECT_SERVER_API_AUTH_STRING" in variables
    for path in (INFRA / "compose" / "compose.yaml", *(INFRA / "kubernetes").rglob("*.yaml")):
        assert not re.search(r"prefect,\s*server,\s*start", path.read_text()), path


def test_all_of_ray_wants_a_token():
    for name in ("ray-head", "ray-worker"):
        environment = COMPOSE["services"][name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert "${RAY_TOKEN:?" in environment["RAY_AUTH_TOKEN"]
    kustomization = (INFRA / "kubernetes" / "base" / "kustomization.yaml").read_text()
    assert "RAY_AUTH_MODE=token" in kustomization


def test_ray_runs_the_locked_version():
    lock = (ROOT / "requirements.lock").read_text()
    (cluster,) = documents(INFRA / "kubernetes" / "base" / "ray.yaml")
    assert f"ray=={cluster['spec']['rayVersion']}\n" in lock
    assert cluster["spec"]["enableInTreeAutoscaling"] is True


def test_kustomize_builds_both():
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("this machine has no kubectl")
    for overlay in ("base", "gpu"):
        done = subprocess.run(
            [kubectl, "kustomize", str(INFRA / "kubernetes" / overlay)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        built = [d for d in yaml.safe_load_all(done.stdout) if d]
        (cluster,) = [d for d in built if d["kind"] == "RayCluster"]
        groups = [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]]
        assert groups == (["cpu"] if overlay == "base" else ["cpu", "gpu"])
        settings = {d["metadata"]["name"] for d in built if d["kind"] == "ConfigMap"}
        named = {
            source["configMapRef"]["name"]
            for document in built
            for pod in pods(document)
            for container in [*pod["containers"], *pod.get("initContainers", [])]
            for source in container.get("envFrom", [])
        }
        assert named <= settings


def test_monitoring_asks_for_metrics_that_exist():
    from flows.prometheus import METRICS

    known = {*METRICS, "ray_strata_rows_total"}
    dashboard = json.loads((INFRA / "monitoring" / "dashboards" / "strata.json").read_text())
    alerts = yaml.safe_load((INFRA / "monitoring" / "alerts.yml").read_text())
    asked = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    asked += [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    for expression in asked:
        names = set(re.findall(r"\b(?:ray_)?strata_\w+", expression))
        assert names, expression
        assert names <= known, expression


def test_rules_pass_promtool():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("this machine has no promtool")
    for arguments in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run(
            [promtool, *arguments], cwd=INFRA / "monitoring", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_health_check_asks_and_fails(monkeypatch):
    import http.server
    import threading

    program = [sys.executable, str(INFRA / "health.py")]
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        answers = [
            subprocess.run(
                program, env={"STRATA_HEALTH_URL": asked}, capture_output=True
            ).returncode
            for asked in (f"{url}/", f"{url}/nowhere", "", "file:///etc/passwd")
        ]
        server.shutdown()
    assert answers == [0, 1, 0, 1]
