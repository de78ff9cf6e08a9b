"""The README's submission to a standalone cluster, on a real one: master and two workers on loopback."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyspark
import pytest
from deltalake import DeltaTable

from demo.make_clips import write_scene
from tests.checkout import ROOT
from tests.cluster.standalone import MARK, Cluster, standalone_cluster
from tests.documented import exported, spark_submits
from tests.engine_fixtures import MAX_MODEL_LEN, DemoModels
from tools.make_zip import make_zip
from udfs.engine.runtime import group_members, read_holder, read_loads

NUM_CLIPS = 6
A_ROW_BYTES = 1000
"""A window's row has more, as has a preview's; a batch without rows has less."""

SPARK_HOME = Path(pyspark.__file__).parent

# Those of a machine with two cores; what the README's command says of cores, cards and memory is for others.
SMALL = {
    "spark.executor.cores": "1",
    "spark.executor.memory": "1g",
    "spark.task.resource.gpu.amount": "1",
    "spark.driver.memory": "1g",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
    "spark.executor.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.sql.shuffle.partitions": "2",
    "spark.databricks.delta.snapshotPartitions": "2",
    "spark.ui.enabled": "false",
    "spark.log.level": "ERROR",
}
# No task starts before both are there, and Spark writes down which of them did what.
TWO_EXECUTORS = {
    "spark.cores.max": "2",
    "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    "spark.eventLog.enabled": "true",
    "spark.eventLog.rolling.enabled": "false",
    "spark.eventLog.compress": "false",
}
ONE_EXECUTOR = {"spark.cores.max": "1"}

SEE_IMPORTS = """
import os, re, sys
def see(event, args):
    if event == "exec" and getattr(args[0], "co_name", "") == "<module>":
        if re.search(r"(^|/)(captionlake|(conf|jobs|schemas|udfs)/.*)[.]py$", args[0].co_filename):
            with open({folder!r} + f"/{{os.getpid()}}", "a") as out:
                out.write(os.getcwd() + "\\t" + args[0].co_filename + "\\n")
sys.addaudithook(see)
"""
"""Writes down where each Python process has its modules from; the interpreter runs it when it starts."""

pytestmark = [pytest.mark.clusters, pytest.mark.timeout(1200)]


@dataclass(frozen=True)
class Submitted:
    """What two submissions left: first windows and previews on both executors, then captions on one.

    Attributes:
        place: the folder they were submitted in.
        tables: rows by table, after both.
        imports: the files that our code came from, by the folder that a process ran in.
        returned: bytes that Python workers gave back in the first, by executor, stage for stage.
        loads: models that were loaded meanwhile.
        left: processes of the applications that outlived them.
    """

    place: Path
    tables: dict[str, list[dict[str, Any]]]
    imports: dict[Path, set[str]]
    returned: list[dict[str, int]]
    loads: list[dict[str, Any]]
    left: list[list[int]]


def make_environment(folder: Path) -> None:
    """What `make environment` makes, in small: folder and archive have links to what is installed here.

    Captionlake itself is not in it, neither as a package nor as a link to the checkout.
    """
    packages = Path(*Path(pytest.__file__).parts[: Path(pytest.__file__).parts.index("site-packages") + 1])
    inside = folder / "environment" / packages.relative_to(sys.prefix)
    inside.mkdir(parents=True)
    for entry in packages.iterdir():
        if "captionlake" not in entry.name and entry.name != "__pycache__":
            (inside / entry.name).symlink_to(entry)
    (folder / "environment" / "bin").mkdir()
    (folder / "environment" / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder / "environment")
    (folder / "imports").mkdir()
    (inside / "sitecustomize.py").write_text(SEE_IMPORTS.format(folder=str(folder / "imports")))
    with tarfile.open(folder / "dist" / "environment.tar.gz", "w:gz") as archive:
        archive.add(folder / "environment", arcname=".")


@pytest.fixture(scope="module")
def place(demo_models: DemoModels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with what the README's command names, and `data` for its `/data`."""
    folder = tmp_path_factory.mktemp("submit")
    for name in ("dist", "conf", "events", "data/clips"):
        (folder / name).mkdir(parents=True)
    make_zip(folder / "dist" / "captionlake.zip")
    make_environment(folder)
    shutil.copy(ROOT / "captionlake.py", folder)
    shutil.copy(ROOT / "conf" / "gpu_cluster.yaml", folder / "conf")
    (folder / "data" / "models").symlink_to(demo_models.model_dir)
    for seed in range(NUM_CLIPS):
        path = folder / "data" / "clips" / f"clip_{seed}.mp4"
        write_scene(path, seed=seed, seconds=0.5 + 0.3 * seed, frame_rate=20, size=(112, 84))
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose workers are set up as the page says, on a machine that says it has a card."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PY", "SPARK_"))}
    options = exported("docs/clusters.md")["SPARK_WORKER_OPTS"]
    options = options.replace("/opt/captionlake/gpus.sh", str(ROOT / "tools" / "gpus.sh"))
    environment = clean | {"SPARK_WORKER_OPTS": options, "CUDA_VISIBLE_DEVICES": "0"}
    folder = tmp_path_factory.mktemp("standalone")
    with standalone_cluster(SPARK_HOME, folder, environment, memory="1g") as started:
        yield started


def submit(cluster: Cluster, place: Path, text: str, properties: dict[str, str]) -> None:
    """Runs the command in `place` with a machine's own defaults."""
    defaults = place / "spark-defaults.conf"
    given = {**SMALL, **properties, "spark.eventLog.dir": str(place / "events")}
    defaults.write_text("".join(f"{key} {value}\n" for key, value in given.items()))
    own = {
        "PATH": f"{SPARK_HOME / 'bin'}:{os.environ['PATH']}",
        "HOME": os.environ["HOME"],
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_CONF_DIR": str(place),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "CAPTIONLAKE_RUNTIME_DIR": os.environ["CAPTIONLAKE_RUNTIME_DIR"],
        "CAPTIONLAKE_MODEL_VARIANT": "demo",
        "CAPTIONLAKE_DTYPE": "float32",
        "CAPTIONLAKE_MAX_MODEL_LEN": str(MAX_MODEL_LEN),
        "CAPTIONLAKE_TEMPERATURE": "0",
        "CAPTIONLAKE_CAPTIONING_MAX_OUTPUT_TOKENS": "12",
        MARK: str(cluster.folder),
    }
    if "JAVA_HOME" in os.environ:
        own["JAVA_HOME"] = os.environ["JAVA_HOME"]
    text = text.replace("spark://head:7077", cluster.url).replace("/data/", f"{place / 'data'}/")
    done = subprocess.run(
        ["bash", "-c", text], cwd=place, env=own, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]


def imports(place: Path) -> dict[Path, set[str]]:
    """The files that our code came from, by the folder that a process ran in."""
    seen: dict[Path, set[str]] = {}
    for log in (place / "imports").iterdir():
        for line in log.read_text().splitlines():
            folder, file = line.split("\t")
            seen.setdefault(Path(folder), set()).add(file)
    return seen


def returned_bytes(place: Path) -> list[dict[str, int]]:
    """Bytes that Python workers returned, by executor, for each stage that had some, out of the event log."""
    found: dict[int, dict[str, int]] = {}
    [log] = (place / "events").iterdir()
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["Event"] == "SparkListenerTaskEnd":
            executor = event["Task Info"]["Executor ID"]
            for metric in event["Task Info"]["Accumulables"]:
                if metric.get("Name") == "data returned from Python workers":
                    stage = found.setdefault(event["Stage ID"], {})
                    stage[executor] = stage.get(executor, 0) + int(metric["Update"])
    return [found[stage] for stage in sorted(found)]


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, place: Path) -> Submitted:
    text = spark_submits("README.md")["spark"].text
    before = len(read_loads())
    submit(cluster, place, text.replace(" --generate-captions", ""), TWO_EXECUTORS)
    left = [cluster.left_over()]
    submit(cluster, place, text, ONE_EXECUTOR)
    left.append(cluster.left_over())
    lake = place / "data" / "lake"
    names = ("clips", "windows", "captions", "previews", "runs")
    tables = {name: DeltaTable(str(lake / name)).to_pyarrow_table().to_pylist() for name in names}
    loads = read_loads()[before:]
    return Submitted(place, tables, imports(place), returned_bytes(place), loads, left)


def test_every_clip_ends_as_a_window_with_a_preview_and_a_caption(submitted: Submitted) -> None:
    tables = submitted.tables
    assert len(tables["clips"]) == NUM_CLIPS
    windows = {row["window_id"] for row in tables["windows"]}
    for name, status in (("windows", "window_status"), ("previews", "preview_status")):
        assert [row[status] for row in tables[name]] == ["success"] * NUM_CLIPS
    assert {row["caption_status"] for row in tables["captions"]} <= {"success", "truncated"}
    for name in ("windows", "previews", "captions"):
        assert {row["window_id"] for row in tables[name]} == windows
        assert len(tables[name]) == NUM_CLIPS
    assert all(row["caption"] for row in tables["captions"])
    assert [row["run_status"] for row in tables["runs"]] == ["success", "success"]


def test_both_executors_cut_windows_and_made_previews(submitted: Submitted) -> None:
    *_, windows, previews = submitted.returned
    for returned in (windows, previews):
        assert returned.keys() == {"0", "1"}
        assert min(returned.values()) > A_ROW_BYTES


def test_driver_executors_and_engine_run_the_code_of_the_zip_and_no_other(
    submitted: Submitted, engine_runtime: Path
) -> None:
    executors = [folder for folder in submitted.imports if folder.parent.name.startswith("app-")]
    assert len(executors) == 3
    assert submitted.imports.keys() == {submitted.place, engine_runtime, *executors}
    for folder, files in submitted.imports.items():
        inside = {file.partition("/captionlake.zip/")[2] for file in files}
        names = {
            submitted.place: {"jobs/run.py", "schemas/windows.py"},
            engine_runtime: {"udfs/engine/host.py"},
        }
        assert {"udfs/__init__.py", "conf/__init__.py", *names.get(folder, set())} <= inside
        outside = {file for file in files if "/captionlake.zip/" not in file}
        assert outside == ({str(folder / "captionlake.py")} if folder == submitted.place else set())


def test_captions_on_one_executor_load_one_model(submitted: Submitted) -> None:
    assert len(submitted.loads) == 1


def test_nothing_of_an_application_outlives_it(submitted: Submitted, engine_runtime: Path) -> None:
    assert submitted.left == [[], []]
    holder = read_holder(engine_runtime / f"{submitted.loads[0]['host']}.lock")
    assert holder is not None
    deadline = time.monotonic() + 30
    while group_members(holder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert group_members(holder) == []
