"""The values for Airflow's chart and the pod templates, compared with the images, the DAGs and the roles."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "infra/kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
PODS: dict[str, dict[str, Any]] = {
    name: yaml.safe_load((FOLDER / f"{name}.yaml").read_text()) for name in ("default", "gpu")
}
CLAIM, JOB = yaml.safe_load_all((FOLDER / "settle.yaml").read_text())


def roles(spec: dict[str, Any]) -> set[str]:
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "roles"]
    return {source["secret"]["name"].removeprefix("lyrebird-role-") for source in volume["projected"]["sources"]}


def template_of(queue: str) -> str:
    """The pod template that a task of this queue gets, by the policy as Airflow would load it."""
    policy: dict[str, Any] = {}
    exec(VALUES["airflowLocalSettings"], policy)  # noqa: S102
    task = SimpleNamespace(queue=queue, executor_config={})
    policy["task_instance_mutation_hook"](task)
    return str(
        task.executor_config.get("pod_template_file", VALUES["config"]["kubernetes_executor"]["pod_template_file"])
    )


def test_a_task_of_the_queue_gpu_gets_the_gpu_template_and_others_the_default() -> None:
    assert 'queue="gpu"' in (ROOT / "dags/train.py").read_text()
    assert template_of("gpu") == "/lyrebird/infra/kubernetes/gpu.yaml"
    assert template_of("default") == "/lyrebird/infra/kubernetes/default.yaml"
    for queue in ("gpu", "default"):  # the images hold the checkout at /lyrebird
        assert (ROOT / Path(template_of(queue)).relative_to("/lyrebird")).is_file()
    # an image in the executor's own configuration would replace the template's
    assert not VALUES["config"]["kubernetes_executor"]["worker_container_repository"]


def test_only_training_has_a_gpu() -> None:
    limits = {name: pod["spec"]["containers"][0]["resources"]["limits"] for name, pod in PODS.items()}
    assert limits["gpu"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in limits["default"]


def test_pods_hold_the_roles_that_compose_workers_hold() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

    def held(service: str) -> set[str]:
        return {secret["source"].removeprefix("role_") for secret in compose[service]["secrets"]}

    assert roles(PODS["default"]["spec"]) == held("worker")
    assert roles(PODS["gpu"]["spec"]) == held("worker-gpu") == {"trainer"}
    assert roles(JOB["spec"]["template"]["spec"]) == held("airflow-init")


@pytest.mark.parametrize("spec", [*(pod["spec"] for pod in PODS.values()), JOB["spec"]["template"]["spec"]])
def test_pods_run_as_the_images_user_and_mount_what_they_name(spec: dict[str, Any]) -> None:
    dockerfile = (ROOT / "infra/docker/Dockerfile").read_text()
    assert f"USER {spec['securityContext']['runAsUser']}" in dockerfile
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}
    (place,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "roles"]
    assert f"LYREBIRD_SECRETS={place}" in dockerfile
    image, _, tag = container["image"].rpartition(":")
    assert image.rpartition("/")[2] in re.findall(r"AS (\w+)$", dockerfile, re.MULTILINE)
    assert tag == VALUES["defaultAirflowTag"]


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_a_workers_container_is_the_one_that_the_executor_fills_in(pod: dict[str, Any]) -> None:
    assert (pod["kind"], pod["apiVersion"], pod["spec"]["restartPolicy"]) == ("Pod", "v1", "Never")
    (container,) = pod["spec"]["containers"]
    assert container["name"] == "base"
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert paths["logs"] == f"{VALUES['airflowHome']}/logs"
    assert paths["config"] == f"{VALUES['airflowHome']}/airflow.cfg"
    assert f"AIRFLOW_HOME={VALUES['airflowHome']}" in (ROOT / "infra/docker/Dockerfile").read_text()
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"lyrebird-logs", CLAIM["metadata"]["name"]}


def test_the_chart_brings_no_store_and_no_secret_and_phones_nobody() -> None:
    assert VALUES["executor"] == "KubernetesExecutor"
    assert not VALUES["postgresql"]["enabled"] and not VALUES["redis"]["enabled"]
    secret = {VALUES[name] for name in ("fernetKeySecretName", "apiSecretKeySecretName", "jwtSecretName")}
    assert secret == {VALUES["data"]["metadataSecretName"]}
    assert VALUES["config"]["usage_data_collection"]["enabled"] == "False"
    text = (FOLDER / "values.yaml").read_text()
    assert not re.search(r"://[\w-]+:[\w-]+@|fernetKey:|jwtSecret:|apiSecretKey:|pass(word)?: \S", text)
    versions = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert VALUES["airflowVersion"] == versions["apache-airflow-core"]
