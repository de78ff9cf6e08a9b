"""The README's submission to Kubernetes, by Spark's own client and driver, to an API server on loopback.

No pod runs. What the driver's pod would start is started here, until it has asked for its executors.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyspark
import pytest

from demo.make_clips import write_scene
from tests.checkout import ROOT
from tests.cluster.kubernetes_api import Api, Object, kubernetes_api
from tests.documented import spark_submits
from tools.make_zip import make_zip

SPARK_HOME = Path(pyspark.__file__).parent
COMMAND = spark_submits("README.md")["k8s"]
NAMESPACE = "/api/v1/namespaces/captionlake"
PODS, CONFIG_MAPS = f"{NAMESPACE}/pods", f"{NAMESPACE}/configmaps"
DRIVER, EXECUTOR = "spark-role=driver", "spark-role=executor"

# Else the submission waits for the end of a pod that does not run here.
SUBMISSION = {"spark.kubernetes.submission.waitAppCompletion": "false"}
TIMEOUT_S = 120.0

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(400)]


@dataclass(frozen=True)
class Submitted:
    """What the submission and the driver left in the cluster.

    Attributes:
        driver: the driver's pod.
        properties: those that its config map has.
        executors: the pods that the driver asked for.
    """

    driver: Object
    properties: dict[str, str]
    executors: list[Object]


def environment(folder: Path) -> dict[str, str]:
    """Of a machine with Spark whose user has no cluster of their own in `~/.kube`."""
    (folder / "conf").mkdir(exist_ok=True)
    java = {name: value for name, value in os.environ.items() if name == "JAVA_HOME"}
    return java | {
        "PATH": f"{SPARK_HOME / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_CONF_DIR": str(folder / "conf"),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


def submit(api: Api, folder: Path) -> None:
    """Runs the command; what it fetches from Maven is kept where other tests have it."""
    own = environment(folder)
    defaults = folder / "conf" / "spark-defaults.conf"
    defaults.write_text("".join(f"{key} {value}\n" for key, value in SUBMISSION.items()))
    text = COMMAND.text.replace("https://cluster.example:6443", api.url)
    text = text.replace("/tmp/ivy", str(Path.home() / ".ivy2.5.2"))
    done = subprocess.run(
        ["bash", "-c", text], cwd=folder, env=own, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-4000:]


def mounted_properties(api: Api, pod: Object) -> str:
    """The file of properties that a pod gets from its config map."""
    [name] = [volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume]
    text: str = api.objects[f"{CONFIG_MAPS}/{name}"]["data"]["spark.properties"]
    return text


def read_properties(text: str) -> dict[str, str]:
    """The properties of a file that Java wrote."""
    lines = [line.replace("\\", "") for line in text.splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@contextlib.contextmanager
def driver(api: Api, pod: Object, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """What the entry point of Spark's image starts in the driver's pod, in folders of its own.

    The address of the pod, and that of the API inside a cluster, are those of loopback.
    """
    own = environment(folder)
    (folder / "conf" / "spark.properties").write_text(mounted_properties(api, pod))
    here = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.port": "0",
        "spark.driver.blockManager.port": "0",
        "spark.ui.enabled": "false",
        "spark.kubernetes.driver.master": api.url,
    }
    places = {
        "/opt/spark/conf": folder / "conf",
        "/opt/captionlake": folder / "image",
        "/data": folder / "data",
    }
    [container] = pod["spec"]["containers"]
    assert container["args"][0] == "driver"
    arguments = container["args"][1:]
    for inside, outside in places.items():
        arguments = [argument.replace(inside, str(outside)) for argument in arguments]
    confs = [word for key, value in here.items() for word in ("--conf", f"{key}={value}")]
    own |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": str(folder / "image" / "captionlake.zip")}
    with (folder / "driver.log").open("wb") as log:
        process = subprocess.Popen(
            ["spark-submit", *confs, "--deploy-mode", "client", *arguments],
            cwd=folder,
            env=own,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is in the image (`image`) and in the volume (`data`)."""
    folder = tmp_path_factory.mktemp("kubernetes")
    (folder / "image").mkdir()
    make_zip(folder / "image" / "captionlake.zip")
    for source in ("captionlake.py", "conf/gpu_cluster.yaml"):
        shutil.copy(ROOT / source, folder / "image")
    (folder / "data" / "clips").mkdir(parents=True)
    write_scene(folder / "data" / "clips" / "clip.mp4", seed=1, seconds=1, frame_rate=20, size=(112, 84))
    return folder


@pytest.fixture(scope="module")
def submitted(place: Path) -> Submitted:
    with kubernetes_api() as api:
        submit(api, place)
        [pod] = api.found(PODS)
        properties = read_properties(mounted_properties(api, pod))
        instances = int(properties["spark.executor.instances"])
        with driver(api, pod, place) as process:
            deadline = time.monotonic() + TIMEOUT_S
            while len(api.found(PODS, EXECUTOR)) < instances and time.monotonic() < deadline:
                assert process.poll() is None, (place / "driver.log").read_text()[-4000:]
                time.sleep(0.1)
        return Submitted(pod, properties, api.found(PODS, EXECUTOR))


def container(pod: Object) -> Object:
    """The one container of a pod."""
    [one] = pod["spec"]["containers"]
    return dict(one)


def mounted_claims(pod: Object) -> list[tuple[str, str]]:
    """Claims of volumes and where they are mounted."""
    mounts = {mount["name"]: mount["mountPath"] for mount in container(pod)["volumeMounts"]}
    volumes = [one for one in pod["spec"]["volumes"] if "persistentVolumeClaim" in one]
    return [(one["persistentVolumeClaim"]["claimName"], mounts[one["name"]]) for one in volumes]


def test_the_command_makes_a_pod_for_the_driver_that_runs_our_application(submitted: Submitted) -> None:
    pod = submitted.driver
    assert pod["metadata"]["labels"]["spark-app-name"] == "captionlake"
    assert pod["spec"]["serviceAccountName"] == "spark"
    assert container(pod)["image"] == "captionlake:0.1.0"
    assert container(pod)["resources"]["limits"] == {"memory": f"{(2 + 1) * 1024}Mi"}
    assert mounted_claims(pod) == [("captionlake", "/data")]
    application = COMMAND.words.index("local:///opt/captionlake/captionlake.py")
    assert container(pod)["args"][-len(COMMAND.words) + application :] == COMMAND.words[application:]


def test_every_property_of_the_command_reaches_the_driver(submitted: Submitted) -> None:
    given = dict(word.split("=", 1) for flag, word in pairwise(COMMAND.words) if flag == "--conf")
    packages = COMMAND.words[COMMAND.words.index("--packages") + 1]
    given |= {"spark.jars.packages": packages, "spark.jars.ivy": str(Path.home() / ".ivy2.5.2")}
    assert given.items() <= submitted.properties.items()


def test_the_driver_asks_for_executors_that_have_a_card_each(submitted: Submitted) -> None:
    assert len(submitted.executors) == 4
    for pod in submitted.executors:
        resources = container(pod)["resources"]
        assert resources["limits"] == {"nvidia.com/gpu": "1", "memory": f"{(8 + 40) * 1024}Mi"}
        assert resources["requests"] == {"cpu": "8", "memory": resources["limits"]["memory"]}
        told: dict[str, Any] = {one["name"]: one.get("value") for one in container(pod)["env"]}
        assert told["SPARK_EXECUTOR_CORES"] == "8"
        assert told["SPARK_EXECUTOR_MEMORY"] == "8192m"
        assert container(pod)["image"] == "captionlake:0.1.0"
        assert mounted_claims(pod) == [("captionlake", "/data")]
        [owner] = pod["metadata"]["ownerReferences"]
        assert owner["uid"] == submitted.driver["metadata"]["uid"]
