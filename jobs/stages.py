"""The four stages as Python objects: the parameters of their settings, and `transform`.

    prepared = CaptionPreparationStage().transform(clips)       # one row a clip, with its windows
    previews = PreviewStage().transform(prepared)               # one row a window
    captions = CaptionGenerationStage().transform(prepared)     # one row a window
    enhanced = CaptionEnhancementStage().transform(captions)    # one row a caption

Nothing is written: the frames have the columns of the lake's tables but for those that a commit fills in.
`Pipeline` is the way to write a lake.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from conf.errors import SchemaError
from conf.fields import Group
from conf.identity import prep_config
from conf.loading import stage_settings, stage_values
from conf.settings import AGREEING, Settings
from conf.stages import (
    CaptionEnhancementSettings,
    CaptionGenerationSettings,
    CaptionPreparationSettings,
    PreviewSettings,
)
from jobs import caption, enhance, preview
from jobs.checks import check_clip_columns
from jobs.precision import with_effective_precision
from jobs.session import check_gpu_slots
from jobs.windows import media_limits, window_rule
from udfs.ffmpeg import check_ffmpeg
from udfs.windows_udf import cut_windows_udf

log = logging.getLogger(__name__)

Config = str | Mapping[str, Any] | None
"""A YAML file, or groups of settings: what no stage has a parameter for, e.g. `{"engine": {…}}`."""

PREPARATION = "captionlake.preparation"
"""Metadata of the column `windows`: how they were prepared, so that captions answer the same prompt."""


class Stage(Group):
    """Base of the stages: immutable, and checked when it is made."""

    group: ClassVar[str]

    def __init__(self, **parameters: Any) -> None:
        # First, because our message names the parameter and what is allowed.
        stage_values(self.group, parameters, type(self).__name__)
        super().__init__(**parameters)

    def given(self) -> dict[str, Any]:
        """The parameters that the code gave; the others may come from a file, or have their defaults."""
        return self.model_dump(exclude_unset=True)

    def _settings(self, config: Config, **more: Mapping[str, Any]) -> Settings:
        return stage_settings({self.group: self.given(), **more}, config=config)


class CaptionPreparationStage(Stage, CaptionPreparationSettings):
    """Cuts clips into windows, and says which prompt their captions answer."""

    group: ClassVar[str] = "caption_preparation"

    def transform(self, df: DataFrame, *, config: Config = None) -> DataFrame:
        """Adds windows to clips.

        Args:
            df: one row a clip: `clip_id`, and `clip_bytes` or `clip_uri` or both; `clip_no` and
                `content_id` where they are there.
            config: settings that no stage has a parameter for: `media`.

        Returns:
            `clip_no`, `clip_id`, `clip_bytes`, `clip_uri` and `windows`, an array with at least one
            element: a clip without a window has one that says why.

        Raises:
            SchemaError: a column is missing.
        """
        settings = self._settings(config, caption_generation=follow(self.given()))
        preparation = settings.caption_preparation
        udf = cut_windows_udf(
            window_rule(settings),
            media_limits(settings),
            prep_config(settings).config_id,
            check_frames=settings.media.check_frames,
            verbose=preparation.verbose,
        )
        note = {PREPARATION: json.dumps(preparation.model_dump())}
        windows = udf("clip_id", "clip_bytes", "clip_uri", "content_id").alias("windows", metadata=note)
        return _clips(df).select("clip_no", "clip_id", "clip_bytes", "clip_uri", windows)


class PreviewStage(Stage, PreviewSettings):
    """Makes an animated WebP of each window."""

    group: ClassVar[str] = "preview"

    def transform(self, df: DataFrame, *, config: Config = None) -> DataFrame:
        """Makes previews.

        Args:
            df: clips with their windows, from `CaptionPreparationStage.transform`.
            config: settings that no stage has a parameter for: `media`.

        Returns:
            One row a window, with the columns of `previews`; none where the windows were prepared with
            `generate_previews=False`.

        Raises:
            SchemaError: the frame has no prepared windows.
            SettingsError: there is no ffmpeg that makes WebP.
        """
        preparation = _preparation(df)
        settings = self._settings(
            config, caption_preparation=preparation, caption_generation=follow(preparation)
        )
        check_ffmpeg()
        if not settings.wants_previews:
            log.info("PreviewStage skips: the windows were prepared with generate_previews=False")
            df = df.where("false")
        return preview.build(df, settings)


class CaptionGenerationStage(Stage, CaptionGenerationSettings):
    """Captions each window with the vision-language model."""

    group: ClassVar[str] = "caption_generation"

    def transform(self, df: DataFrame, *, config: Config = None) -> DataFrame:
        """Makes captions.

        Args:
            df: clips with their windows, from `CaptionPreparationStage.transform`.
            config: settings that no stage has a parameter for: `engine`, `media`.

        Returns:
            One row a window, with the columns of `captions`.

        Raises:
            SchemaError: the frame has no prepared windows.
            SettingsError: there are no weights, or the two stages are made for different models.
        """
        settings = self._settings(config, caption_preparation=_preparation(df))
        check_gpu_slots(df.sparkSession)
        return caption.build(df, with_effective_precision(df.sparkSession, settings))


class CaptionEnhancementStage(Stage, CaptionEnhancementSettings):
    """Rewrites captions with the text model."""

    group: ClassVar[str] = "caption_enhancement"

    def transform(self, df: DataFrame, *, config: Config = None) -> DataFrame:
        """Enhances captions.

        Args:
            df: captions, from `CaptionGenerationStage.transform` or the table `captions`.
            config: settings that no stage has a parameter for: `engine`.

        Returns:
            One row a caption, with the columns of `enhancements`.

        Raises:
            SettingsError: there are no weights.
        """
        settings = self._settings(config)
        check_gpu_slots(df.sparkSession)
        captions = df.withColumnRenamed("attempt", "caption_attempt").withColumn("attempt", F.lit(1))
        return enhance.build(captions, with_effective_precision(df.sparkSession, settings))


def follow(preparation: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a caption generation that is not run: those that must agree with the preparation."""
    return {name: preparation[name] for name in AGREEING if name in preparation}


def _clips(df: DataFrame) -> DataFrame:
    """Clips with all columns that the stages read."""
    check_clip_columns(df)
    missing = {
        "clip_no": F.xxhash64("clip_id"),
        "clip_bytes": F.lit(None).cast("binary"),
        "clip_uri": F.lit(None).cast("string"),
        "content_id": F.lit(None).cast("string"),
    }
    return df.withColumns({name: value for name, value in missing.items() if name not in df.columns})


def _preparation(df: DataFrame) -> dict[str, Any]:
    """How the windows of a frame were prepared."""
    noted = df.schema["windows"].metadata.get(PREPARATION) if "windows" in df.columns else None
    if noted is None:
        raise SchemaError(
            "the frame has no column windows that CaptionPreparationStage.transform has made: "
            f"it has {df.columns}"
        )
    preparation: dict[str, Any] = json.loads(noted)
    return preparation
