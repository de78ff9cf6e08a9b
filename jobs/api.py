"""Pipelines that are composed in Python: stages one after the other, run over a lake."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from conf.errors import SettingsError
from conf.loading import stage_settings
from conf.settings import Settings
from jobs import functions, run
from jobs.report import Report
from jobs.session import check_delta
from jobs.stages import (
    CaptionEnhancementStage,
    CaptionGenerationStage,
    CaptionPreparationStage,
    Config,
    PreviewStage,
    Stage,
    follow,
)

log = logging.getLogger(__name__)

Clips = str | Path | Sequence[str | Path] | DataFrame | None

_AFTER: Mapping[type[Stage], type[Stage]] = {
    PreviewStage: CaptionPreparationStage,
    CaptionGenerationStage: CaptionPreparationStage,
    CaptionEnhancementStage: CaptionGenerationStage,
}
"""Which stage another one works on."""


class Pipeline:
    """Stages that fill a lake.

    Args:
        name: what log lines and `describe` call it.
        description: what `describe` says of it.
        stages: the first stages; `add_stage` adds more.
    """

    def __init__(
        self, name: str = "captionlake", description: str | None = None, stages: Sequence[Stage] = ()
    ) -> None:
        self.name = name
        self.description = description
        self.stages: tuple[Stage, ...] = ()
        for stage in stages:
            self.add_stage(stage)

    def add_stage(self, stage: Stage) -> "Pipeline":
        """Adds a stage at the end, and returns the pipeline.

        Raises:
            SettingsError: it is no stage, is there already, or what it works on is not.
        """
        kind = type(stage)
        have = [type(one) for one in self.stages]
        if not isinstance(stage, Stage):
            raise SettingsError(f"add_stage({stage!r}): a pipeline takes the stages of captionlake")
        if kind in have:
            raise SettingsError(f"add_stage({kind.__name__}): the pipeline has one already")
        needed = _AFTER.get(kind)
        if needed is not None and needed not in have:
            raise SettingsError(f"add_stage({kind.__name__}): add {needed.__name__} before it")
        self.stages += (stage,)
        return self

    def describe(self) -> str:
        """The pipeline in words: its name, and each stage with the parameters that were given."""
        title = f"{self.name}: {self.description}" if self.description else self.name
        return "\n".join([title, *(f"  {stage!r}" for stage in self.stages)])

    def settings(self, *, output_path: str | Path, clips: Clips = None, config: Config = None) -> Settings:
        """The settings of a job that does what the pipeline says.

        Raises:
            SettingsError: there is no stage, or two of them contradict each other.
        """
        if not self.stages:
            raise SettingsError(f"pipeline {self.name!r} has no stage; add one with add_stage")
        kinds = {type(stage) for stage in self.stages}
        given: dict[str, Any] = {stage.group: stage.given() for stage in self.stages}
        given["lake"] = {"output_path": str(output_path), "input_path": _locations(clips)}
        given["pipeline"] = {
            "generate_captions": CaptionGenerationStage in kinds,
            "enhance_captions": CaptionEnhancementStage in kinds,
        }
        if CaptionGenerationStage not in kinds:
            given["caption_generation"] = follow(given["caption_preparation"])
        settings = stage_settings(given, config=config)
        if PreviewStage not in kinds:
            off = settings.caption_preparation.model_copy(update={"generate_previews": False})
            return settings.model_copy(update={"caption_preparation": off})
        if not settings.wants_previews:
            log.info("pipeline=%s PreviewStage skips: generate_previews=False", self.name)
        return settings

    def run(
        self,
        spark: SparkSession,
        *,
        output_path: str | Path,
        clips: Clips = None,
        config: Config = None,
    ) -> Report:
        """Fills the lake; what it holds already is not done again.

        Args:
            spark: the session.
            output_path: the lake: a folder, or `catalog.schema`.
            clips: what is added to the lake first: files, folders, globs or URIs, or a table of clips with
                `clip_id` and `clip_bytes` or `clip_uri`; None: the clips that are there.
            config: settings that no stage has a parameter for, and defaults for those that it has: a YAML
                file, or groups of settings.

        Returns:
            What was done; `print(report.render())` shows it.

        Raises:
            SettingsError: something that the stages need is missing.
            SchemaError: a table is not as it must be.
            EngineError: the engine cannot start, or died for good.
        """
        check_delta(spark)
        settings = self.settings(output_path=output_path, clips=clips, config=config)
        log.info("pipeline=%s stages=%s", self.name, ",".join(type(stage).__name__ for stage in self.stages))
        return run.run(spark, settings, _table(clips))


def _locations(clips: Clips) -> tuple[str, ...]:
    if clips is None or _table(clips) is not None:
        return ()
    if isinstance(clips, str | Path):
        return (str(clips),)
    return tuple(str(one) for one in clips)  # type: ignore[union-attr]


def _table(clips: Clips) -> DataFrame | None:
    return clips if isinstance(clips, DataFrame) else None


def register_functions(spark: SparkSession, *, config: Config = None) -> None:
    """Registers `caption_windows`, `enhance_caption` and `preview_webp` with a session, for its SQL.

    Args:
        spark: the session.
        config: how they work: a YAML file, or groups of settings.

    Raises:
        SettingsError: something that a function needs is missing: weights, or an ffmpeg that makes WebP.
    """
    functions.register_functions(spark, stage_settings({}, config=config))
