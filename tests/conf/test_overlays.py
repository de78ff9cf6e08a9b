"""The YAML files that come with the package: each can be used as it is, and says what it is for."""

from pathlib import Path

import pytest

from conf.errors import SettingsError
from conf.loading import load_settings
from conf.settings import Settings
from jobs.session import gpu_slots_problem

CONF = Path(__file__).parents[2] / "conf"
OVERLAYS = sorted(path.name for path in CONF.glob("*.yaml"))


def overlay(name: str) -> Settings:
    return load_settings(config=str(CONF / name))


def properties(settings: Settings) -> dict[str, str]:
    return dict(text.split("=", 1) for text in settings.spark.properties)


def test_there_is_one_for_each_kind_of_place() -> None:
    assert OVERLAYS == ["databricks.yaml", "gpu_cluster.yaml", "local.yaml"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_is_refused_nowhere_and_names_no_lake_and_no_clips(name: str) -> None:
    settings = overlay(name)
    assert (settings.lake.input_path, settings.lake.output_path) == ((), None)
    # What answers is chosen by who runs the job.
    assert settings.caption_generation.model_variant == Settings().caption_generation.model_variant
    assert settings.preview.num_cpus_per_worker == 1


def test_on_a_gpu_cluster_as_many_tasks_as_cores_feed_the_card() -> None:
    settings = overlay("gpu_cluster.yaml")
    given = properties(settings)
    assert gpu_slots_problem(given.get) is None
    cores, card = int(given["spark.executor.cores"]), float(given["spark.task.resource.gpu.amount"])
    assert cores * card == float(given["spark.executor.resource.gpu.amount"])
    assert cores * settings.caption_generation.caption_batch_size == settings.engine.max_in_flight
    wrong = given | {"spark.task.resource.gpu.amount": "1"}
    problem = gpu_slots_problem(wrong.get)
    assert problem is not None
    assert "set it to 0.125" in problem
    twice = given | {"spark.speculation": "true"}
    assert "speculation" in (gpu_slots_problem(twice.get) or "")


def test_on_databricks_clips_stay_where_they_are_and_weights_go_to_each_machine_s_disk() -> None:
    settings = overlay("databricks.yaml")
    assert settings.lake.ingest_mode == "reference"
    folders = {settings.caption_generation.model_dir, settings.caption_enhancement.model_dir}
    assert folders == {"/local_disk0/captionlake/models"}
    assert settings.spark == Settings().spark, "the session is the cluster's"


@pytest.mark.parametrize("text", ["ui.enabled=true", "spark.ui.enabled"])
def test_what_is_no_spark_property_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=rf"spark\.properties.*'{text}' is not spark\.NAME=VALUE"):
        load_settings(flags={"--spark-property": (text,)})
