"""The Kubernetes manifests, rendered by kustomize and validated by Kubernetes' schemas."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.local.options import LocalOptions
from tests.support import setting_names

FOLDER = Path(__file__).parents[3] / "infra" / "kubernetes"
TOOLS = Path(sys.executable).parent
VERSIONS = ("1.32", "1.34", "1.36")
# KEDA's, without a schema here.
CUSTOM_RESOURCES = {"ScaledObject"}


def rendered(name: str | Path) -> dict[tuple[str, str], dict[str, Any]]:
    done = subprocess.run([TOOLS / "kubectl", "kustomize", FOLDER / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return {(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module", params=["base", "prod"])
def objects(request: pytest.FixtureRequest) -> dict[tuple[str, str], dict[str, Any]]:
    return rendered(request.param)


def pods(objects: dict[tuple[str, str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pod templates, by the name of their StatefulSet or Deployment."""
    return {
        name: item["spec"]["template"]
        for (kind, name), item in objects.items()
        if kind in {"StatefulSet", "Deployment"}
    }


@pytest.mark.slow
@pytest.mark.parametrize("of", VERSIONS)
def test_every_object_is_valid(objects: dict[tuple[str, str], dict[str, Any]], of: str) -> None:
    for (kind, _), item in objects.items():
        if kind not in CUSTOM_RESOURCES:
            kubernetes_validate.validate(item, of, strict=True)
        assert kind == "Namespace" or item["metadata"]["namespace"] == "foldtune"


def test_references_between_objects_resolve(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    templates = pods(objects)
    assert set(templates) == {"foldtune-worker", "foldtune-api"}
    for name, template in templates.items():
        labels = template["metadata"]["labels"].items()
        for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
            spec = objects[kind, name]["spec"]
            selector = spec.get("podSelector", spec.get("selector", {}))
            assert selector.get("matchLabels", selector).items() <= labels, kind
            assert "app.kubernetes.io/name" in selector.get("matchLabels", selector)
        (container,) = template["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in objects["Service", name]["spec"]["ports"]} <= ports
        probes = [container[f"{when}Probe"]["httpGet"] for when in ("startup", "liveness", "readiness")]
        assert {probe["port"] for probe in probes} <= ports
        configured = [source["configMapRef"]["name"] for source in container["envFrom"] if "configMapRef" in source]
        assert [("ConfigMap", config) in objects for config in configured] == [True]
        # A user of its own at the brokers.
        secrets = [source["secretRef"]["name"] for source in container["envFrom"] if "secretRef" in source]
        assert secrets == [f"foldtune-kafka-{name.removeprefix('foldtune-')}"]
        assert {mount["name"] for mount in container["volumeMounts"]} <= {
            volume["name"] for volume in template["spec"]["volumes"]
        } | {"data"}
        assert ("ServiceAccount", template["spec"]["serviceAccountName"]) in objects
    assert objects["StatefulSet", "foldtune-worker"]["spec"]["serviceName"] == "foldtune-worker"


def test_a_worker_has_a_volume_and_probes(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    worker = objects["StatefulSet", "foldtune-worker"]["spec"]
    (claim,) = worker["volumeClaimTemplates"]
    (container,) = worker["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    # The folder of the image's FOLDTUNE_WORKER__DATA_DIR.
    assert mounts[claim["metadata"]["name"]] == "/var/lib/foldtune"
    assert worker["persistentVolumeClaimRetentionPolicy"]["whenScaled"] == "Delete"
    paths = {when: container[f"{when}Probe"]["httpGet"]["path"] for when in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    (port,) = container["ports"]
    dockerfile = (FOLDER.parent / "docker" / "Dockerfile").read_text()
    assert f"FOLDTUNE_WORKER__HTTP_PORT={port['containerPort']}" in dockerfile
    # One of its own for each worker.
    (instance_id,) = [entry for entry in container["env"] if entry["name"] == "FOLDTUNE_WORKER__INSTANCE_ID"]
    assert instance_id["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    # A worker shuts down within 8 s.
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] > 8


def test_all_pods_are_unprivileged(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    namespace = objects["Namespace", "foldtune"]["metadata"]["labels"]
    assert namespace["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in pods(objects).values():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_variables_are_settings_without_secrets(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    known = setting_names()
    for (kind, _), item in objects.items():
        assert kind != "Secret"
        if kind == "ConfigMap":
            assert set(item["data"]) <= known
            assert not [name for name in item["data"] if "PASSWORD" in name or "ACCESS_KEY" in name]
    for template in pods(objects).values():
        assert {variable["name"] for variable in template["spec"]["containers"][0].get("env", [])} <= known


def test_images_have_this_version(objects: dict[tuple[str, str], dict[str, Any]]) -> None:
    for template in pods(objects).values():
        for container in template["spec"]["containers"]:
            assert container["image"].endswith(f":{version('foldtune')}")


def test_workers_scale_with_their_lag_up_to_the_number_of_partitions() -> None:
    objects = rendered("prod")
    scaled = objects["ScaledObject", "foldtune-worker"]["spec"]
    target = scaled["scaleTargetRef"]
    worker = objects[target["kind"], target["name"]]
    assert target["apiVersion"] == worker["apiVersion"]
    # It would contend with the autoscaler.
    assert "replicas" not in worker["spec"]
    (config,) = [item["data"] for (kind, _), item in objects.items() if kind == "ConfigMap"]
    assert str(scaled["maxReplicaCount"]) == config["FOLDTUNE_KAFKA__PARTITIONS"] == str(LocalOptions().partitions)
    (trigger,) = scaled["triggers"]
    assert "foldtune_lag_records" in trigger["metadata"]["query"]


def test_webhooks_are_a_component_with_what_the_notifier_reads(tmp_path: Path) -> None:
    """Rendered as in an overlay of somebody's own."""
    parts = {part: os.path.relpath(FOLDER / part, tmp_path) for part in ("base", "notifications")}
    overlay = {"resources": [parts["base"]], "components": [parts["notifications"]], "namespace": "foldtune"}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = rendered(tmp_path)
    notifier = objects["Deployment", "foldtune-notifier"]
    kubernetes_validate.validate(notifier, VERSIONS[-1], strict=True)
    test_all_pods_are_unprivileged(objects)
    test_variables_are_settings_without_secrets(objects)
    test_images_have_this_version(objects)
    template = notifier["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["command"] == ["foldtune", "notify"]
    labels = template["metadata"]["labels"].items()
    assert objects["NetworkPolicy", "foldtune-notifier"]["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert notifier["spec"]["selector"]["matchLabels"].items() <= labels
    assert ("ConfigMap", container["envFrom"][0]["configMapRef"]["name"]) in objects
    assert container["envFrom"][1]["secretRef"]["name"] == "foldtune-kafka-notifier"
    # An image without the packages of the command would not start.
    assert "--extra api --extra notifications" in (FOLDER.parent / "docker" / "Dockerfile").read_text()
