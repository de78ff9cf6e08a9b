"""docs/clusters.md: what can be wrong in its commands without a cluster to tell."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.sql import SparkSession

from conf.loading import load_settings
from conf.settings import Settings
from jobs.cli import make_parser
from jobs.session import DELTA_PACKAGES, delta_package, gpu_slots_problem
from tests.checkout import ROOT
from tests.documented import Command, cluster_commands, commands, exported, spark_submits

PAGE = "docs/clusters.md"
SUBMITS = spark_submits(PAGE)
DOCKERFILE = (ROOT / "tools" / "kubernetes.Dockerfile").read_text()
IMAGE_FOLDER = "/opt/captionlake/"

# Where Spark's own code declares its properties.
DECLARED = (
    "org.apache.spark.internal.config.package$",
    "org.apache.spark.deploy.yarn.config.package$",
    "org.apache.spark.deploy.k8s.Config$",
)
# Properties whose names hold something of the user's; Spark reads these prefixes.
FAMILIES = (
    r"spark\.(executor|task|worker)\.resource\.gpu\.(amount|discoveryScript|vendor)",
    r"spark\.(executorEnv|yarn\.appMasterEnv)\.[A-Z_]+",
    r"spark\.kubernetes\.(driver|executor)\.volumes\.persistentVolumeClaim\.\w+\.(mount\.path|options\.claimName)",
)

each_submit = pytest.mark.parametrize("name", SUBMITS)


def parsed(spark: SparkSession, command: Command) -> Any:
    """The command as spark-submit itself reads it."""
    jvm: Any = spark.sparkContext._jvm
    words = jvm.PythonUtils.toSeq(command.words[1:])
    environment = jvm.PythonUtils.toScalaMap(command.environment)
    return jvm.org.apache.spark.deploy.SparkSubmitArguments(words, environment)


def scala_list(spark: SparkSession, found: Any) -> list[Any]:
    """The elements of a collection of Scala's."""
    jvm: Any = spark.sparkContext._jvm
    return list(jvm.scala.jdk.javaapi.CollectionConverters.asJava(found))


def spark_conf(spark: SparkSession, command: Command) -> Any:
    """The command's properties as Spark's code takes them."""
    jvm: Any = spark.sparkContext._jvm
    conf = jvm.org.apache.spark.SparkConf(False)
    for key, value in properties(spark, command).items():
        conf.set(key, value)
    return conf


def properties(spark: SparkSession, command: Command) -> dict[str, str]:
    """The properties that the command gives."""
    jvm: Any = spark.sparkContext._jvm
    given = parsed(spark, command).sparkProperties()
    return dict(jvm.scala.jdk.javaapi.CollectionConverters.asJava(given))


def arguments(command: Command) -> list[str]:
    """What comes after the application."""
    return command.words[next(k for k, word in enumerate(command.words) if word.endswith(".py")) + 1 :]


def settings(command: Command) -> Settings:
    """The settings of the command, by our own command line; its settings file is the checkout's."""
    args = make_parser().parse_args(arguments(command))
    flags = {flag: value for flag, value in vars(args).items() if flag.startswith("--")}
    return load_settings(config=str(ROOT / "conf" / Path(args.config).name), flags=flags)


def made() -> set[str]:
    """Files that targets of the Makefile make."""
    return set(re.findall(r"dist/[\w.]+", (ROOT / "Makefile").read_text()))


def in_image() -> set[str]:
    """Files that the image has in its folder."""
    [copied] = re.findall(r"^COPY (captionlake\.py .*) \./$", DOCKERFILE, re.M)
    return {IMAGE_FOLDER + Path(source).name for source in copied.split()}


def test_the_readme_has_the_page_s_command_for_each_kind_of_cluster() -> None:
    assert list(SUBMITS) == ["spark", "yarn", "k8s"]
    assert cluster_commands("README.md") == cluster_commands(PAGE)
    assert exported(PAGE).items() <= exported("README.md").items()


@each_submit
def test_spark_submit_takes_the_command(spark: SparkSession, name: str) -> None:
    command = SUBMITS[name]
    read = parsed(spark, command)
    assert read.master().startswith(name)
    assert read.deployMode() == (None if name == "spark" else "cluster")
    assert read.primaryResource().endswith("captionlake.py")
    assert scala_list(spark, read.childArgs()) == arguments(command)
    assert read.packages() == delta_package("4.2.0")


def test_an_option_that_spark_does_not_have_is_found(spark: SparkSession) -> None:
    wrong = Command("", {}, ["spark-submit", "--archive", "a.tar.gz", "captionlake.py"])
    with pytest.raises(Exception, match="Unrecognized option"):
        parsed(spark, wrong)


@each_submit
def test_spark_knows_every_property(spark: SparkSession, name: str) -> None:
    loader = spark.sparkContext._jvm.java.lang.Class
    for declared in DECLARED:
        loader.forName(declared)
    entries = spark.sparkContext._jvm.org.apache.spark.internal.config.ConfigEntry
    given = properties(spark, SUBMITS[name])
    overlay = dict(text.split("=", 1) for text in settings(SUBMITS[name]).spark.properties)
    unknown = [
        key
        for key in {**overlay, **given}
        if entries.findEntry(key) is None and not any(re.fullmatch(one, key) for one in FAMILIES)
    ]
    assert unknown == []
    assert entries.findEntry("spark.executor.corse") is None


@each_submit
def test_cards_and_cores_are_what_captionlake_asks_for(spark: SparkSession, name: str) -> None:
    chosen = settings(SUBMITS[name])
    overlay = dict(text.split("=", 1) for text in chosen.spark.properties)
    given = properties(spark, SUBMITS[name])
    # What the commands give by themselves is what the settings file says.
    assert {key: given[key] for key in overlay.keys() & given.keys()}.items() <= overlay.items()
    whole = {**overlay, **given}
    assert gpu_slots_problem(whole.get) is None
    cards, per_task = (float(whole[f"spark.{who}.resource.gpu.amount"]) for who in ("executor", "task"))
    assert cards / per_task == int(whole["spark.executor.cores"])
    assert (chosen.pipeline.generate_captions, chosen.wants_previews) == (True, True)


@each_submit
def test_spark_reads_the_cards_as_meant(spark: SparkSession, name: str) -> None:
    parse = spark.sparkContext._jvm.org.apache.spark.resource.ResourceUtils.parseAllResourceRequests
    found = scala_list(spark, parse(spark_conf(spark, SUBMITS[name]), "spark.executor"))
    if name == "spark":
        assert found == [], "the settings file says it"
        return
    assert [(one.id().resourceName(), one.amount()) for one in found] == [("gpu", 1)]
    assert found[0].discoveryScript().get().endswith("/gpus.sh")
    assert found[0].vendor().isPresent() == (name == "k8s")
    assert name != "k8s" or found[0].vendor().get() == "nvidia.com"


@each_submit
def test_every_file_of_a_command_is_there_or_is_made(name: str) -> None:
    words = SUBMITS[name].words
    listed = [words[k + 1] for k, word in enumerate(words) if word in ("--files", "--py-files", "--archives")]
    application = next(word for word in words if word.endswith(".py"))
    config = words[words.index("--config") + 1]
    shipped = {Path(one).name for text in listed for one in text.split(",")}
    for text in [*listed, application, *([config] if name != "yarn" else [])]:
        for one in text.split(","):
            file = one.split("#")[0].removeprefix("local://")
            assert file in made() or file in in_image() or (ROOT / file).is_file(), file
    if name == "yarn":
        assert {config, "gpus.sh"} <= shipped


@each_submit
def test_executors_find_python_and_the_discovery_script(spark: SparkSession, name: str) -> None:
    command, given = SUBMITS[name], properties(spark, SUBMITS[name])
    if name == "k8s":
        python = re.findall(r"PYSPARK_PYTHON=(\S+)", DOCKERFILE)
        assert python == ["/opt/captionlake/environment/bin/python"]
        assert "-m venv environment" in DOCKERFILE
        assert (
            set(re.findall(r" PYTHONPATH=(\S+)", DOCKERFILE))
            == {IMAGE_FOLDER + "captionlake.zip"}
            <= in_image()
        )
        assert given["spark.executor.resource.gpu.discoveryScript"] in in_image()
        return
    unpacked = command.words[command.words.index("--archives") + 1].split("#")[1]
    python = command.environment.get("PYSPARK_PYTHON") or given["spark.yarn.appMasterEnv.PYSPARK_PYTHON"]
    assert python == f"./{unpacked}/bin/python"


def test_the_image_starts_in_a_folder_that_spark_may_write() -> None:
    assert re.findall(r"^WORKDIR (\S+)$", DOCKERFILE, re.M)[-1] == "/opt/spark/work-dir"


def test_driver_and_executors_have_the_same_volume_on_kubernetes(spark: SparkSession) -> None:
    conf = spark_conf(spark, SUBMITS["k8s"])
    read = spark.sparkContext._jvm.org.apache.spark.deploy.k8s.KubernetesVolumeUtils.parseVolumesWithPrefix
    for who in ("driver", "executor"):
        volumes = scala_list(spark, read(conf, f"spark.kubernetes.{who}.volumes."))
        told = [(one.volumeName(), one.mountPath(), one.volumeConf().claimName()) for one in volumes]
        assert told == [("data", "/data", "captionlake")]
    places = [word for word in SUBMITS["k8s"].words if word.startswith("/data")]
    assert len(places) == 3


def test_the_page_names_the_delta_of_each_spark() -> None:
    rows = re.findall(r"^\| (4\.\d) \| `(\S+)` \|$", (ROOT / PAGE).read_text(), re.M)
    assert dict(rows) == DELTA_PACKAGES
    tested = (ROOT / "tests" / "requirements-spark-4.0.txt").read_text()
    assert f"delta-spark=={DELTA_PACKAGES['4.0'].split(':')[2]}\n" in tested
    assert delta_package("9.0.0") == delta_package("4.2.0")


def test_what_make_is_told_to_make_is_a_target() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    asked = [word for one in commands(PAGE) if one.words[0] == "make" for word in one.words[1:]]
    assert set(asked) <= set(targets)
    assert {"zip", "environment"} <= set(asked)


def test_the_environment_the_image_and_databricks_have_the_same_engine() -> None:
    [packed] = re.findall(r"^ENGINE \?= (.+)$", (ROOT / "Makefile").read_text(), re.M)
    [image] = re.findall(r'^ARG ENGINE="(.+)"$', DOCKERFILE, re.M)
    job = yaml.safe_load((ROOT / "databricks.yml").read_text())["resources"]["jobs"]["captionlake"]
    libraries = next(task["libraries"] for task in job["tasks"] if task["task_key"] == "caption")
    bundle = " ".join(one["pypi"]["package"] for one in libraries if "pypi" in one)
    assert packed == image == bundle


def test_the_image_copies_files_that_are_there_or_made() -> None:
    sources = [word for line in re.findall(r"^COPY (.+) \./$", DOCKERFILE, re.M) for word in line.split()]
    ignored = (ROOT / "tools" / "kubernetes.Dockerfile.dockerignore").read_text().splitlines()
    assert ignored == ["*", *(f"!{source}" for source in sources)]
    for source in sources:
        assert source in made() or (ROOT / source).is_file(), source
    [build] = [one for one in commands(PAGE) if one.words[0] == "docker"]
    assert (ROOT / build.words[build.words.index("--file") + 1]).is_file()
    image = build.words[build.words.index("--tag") + 1]
    assert f"spark.kubernetes.container.image={image}" in SUBMITS["k8s"].words


def test_workers_say_what_they_have_in_properties_that_spark_reads() -> None:
    told = exported(PAGE)
    options = dict(word.removeprefix("-D").split("=") for word in told["SPARK_WORKER_OPTS"].split())
    assert options == {
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": "/opt/captionlake/gpus.sh",
    }


def discovered(**environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.run(
        [str(ROOT / "tools" / "gpus.sh")], env={**clean, **environment}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("visible", "addresses"),
    [("0", ["0"]), ("2,3", ["2", "3"]), ("GPU-8a1b, GPU-9c2d", ["GPU-8a1b", "GPU-9c2d"])],
)
def test_spark_understands_what_the_discovery_script_says(
    spark: SparkSession, visible: str, addresses: list[str]
) -> None:
    said = discovered(CUDA_VISIBLE_DEVICES=visible).stdout
    assert json.loads(said) == {"name": "gpu", "addresses": addresses}
    read = spark.sparkContext._jvm.org.apache.spark.resource.ResourceInformation.parseJson(said)
    assert (read.name(), list(read.addresses())) == ("gpu", addresses)


def nvidia_smi(folder: Path, script: str) -> str:
    """A PATH on which `nvidia-smi` is this script."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_discovery_script_lists_the_cards_of_nvidia_smi(tmp_path: Path) -> None:
    path = nvidia_smi(tmp_path, "printf '0\\n1\\n'")
    assert json.loads(discovered(PATH=path).stdout)["addresses"] == ["0", "1"]


@pytest.mark.parametrize(
    ("visible", "script", "reason"),
    [
        ("", None, "hides them all"),
        ("-1", None, "hides them all"),
        (None, "exit 0", "nvidia-smi lists none"),
        (None, "echo 'Driver/library version mismatch'; exit 18", "nvidia-smi failed: Driver/library"),
        (None, None, "there is no nvidia-smi on PATH"),
    ],
)
def test_the_discovery_script_says_why_there_is_no_card(
    tmp_path: Path, visible: str | None, script: str | None, reason: str
) -> None:
    path = nvidia_smi(tmp_path, script) if script else str(tmp_path)
    for program in ("sh", "tr", "awk"):
        if not script:
            (tmp_path / program).symlink_to(f"/usr/bin/{program}")
    given = {"PATH": path} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = discovered(**given)
    assert done.returncode == 1
    assert done.stdout == ""
    assert reason in done.stderr
