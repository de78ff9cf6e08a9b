"""Captions compared with what was filmed: they are true, and untrue as soon as the clips are tampered with.

A hundred clips go through the whole pipeline. The truth of each window is known, and is compared fact by
fact. Then the same clips, wrong in one of four ways, are captioned and compared with the truth as it was: a
measure that stayed high would see nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession

from demo.stories import Story, read_caption, read_description
from demo.training.scores import Score, score
from jobs import run
from jobs.lake import Lake
from jobs.sql import query
from tests.pipeline.conftest import lake_settings
from tests.pipeline.proof_clips import (
    REMAINDER_THRESHOLD,
    WINDOW_SIZE,
    WRONG,
    Change,
    as_it_is,
    is_unseen,
    proof_clips,
    write_clips,
)
from udfs.engine.client import EngineClient

ROWS = """
SELECT regexp_extract(source_video, '[^/]+$', 0) AS clip, window_index, stage1_caption, caption_text,
  caption_status, caption_error, enhanced_status, enhanced_text, preview_status
FROM window_captions JOIN clips USING (clip_id)
"""

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Proof:
    """The captions of one set of clips.

    Attributes:
        rows: of `window_captions`.
        truth: the story of each window, by clip and number of the window.
    """

    rows: list[Row]
    truth: dict[tuple[str, int], Story]

    def score(self, column: str = "caption_text") -> Score:
        """Compares captions with the truth; a window without one states nothing."""
        said = {(row.clip, row.window_index): row[column] for row in self.rows}
        return score(((said.get(key), story) for key, story in self.truth.items()), read_caption)


@pytest.fixture(scope="module")
def prove(
    spark: SparkSession,
    engine_flags: dict[str, Any],
    vision_engine: EngineClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Proof]:
    """Runs the pipeline over the clips of one change."""
    flags = {
        **engine_flags,
        "--captioning-window-size": WINDOW_SIZE,
        "--captioning-remainder-threshold": REMAINDER_THRESHOLD,
        "--captioning-max-output-tokens": 80,
        "--enhance-captions-max-output-tokens": 120,
    }

    def made(change: Change, *, second_pass: bool = False, **more: Any) -> Proof:
        folder = tmp_path_factory.mktemp(change.__name__)
        clips, lake = folder / "clips", folder / "lake"
        write_clips(proof_clips(), {change: clips})
        asked = {**flags, "--captioning-stage2-caption": second_pass}
        settings = lake_settings(asked, lake, input_path=[str(clips)], generate_captions=True, **more)
        run.run(spark, settings)
        rows = query(spark, Lake(spark, str(lake)), ROWS).collect()
        truth = {
            (clip.name, index): story for clip in proof_clips() for index, story in enumerate(clip.stories())
        }
        return Proof(rows, truth)

    return made


@pytest.fixture(scope="module")
def proof(prove: Callable[..., Proof]) -> Proof:
    return prove(as_it_is, second_pass=True, enhance_captions=True, generate_previews=True)


def test_the_clips_are_unlike_those_of_the_training() -> None:
    assert is_unseen()
    clips = proof_clips()
    assert len(clips) == 100
    several = [clip for clip in clips if len(clip.lengths) > 1]
    assert len(several) == 40
    assert all(len(set(clip.stories())) == len(clip.lengths) for clip in several)


def test_every_window_is_captioned_enhanced_and_shown(proof: Proof) -> None:
    assert sorted((row.clip, row.window_index) for row in proof.rows) == sorted(proof.truth)
    assert {row.caption_status for row in proof.rows} == {"success"}
    # A second pass that fails leaves its reason here.
    assert {row.caption_error for row in proof.rows} == {None}
    assert {row.enhanced_status for row in proof.rows} == {"success"}
    assert {row.preview_status for row in proof.rows} == {"success"}


@pytest.mark.parametrize("column", ["stage1_caption", "caption_text"])
def test_captions_of_both_passes_are_true(proof: Proof, column: str) -> None:
    found = proof.score(column)
    assert found.text_share >= 0.95, str(found)
    assert found.fact_share >= 0.98, str(found)


def test_enhancement_says_what_the_captions_say_at_greater_length(proof: Proof) -> None:
    told = [(row.enhanced_text, read_caption(row.caption_text)) for row in proof.rows]
    found = score(((text, story) for text, story in told if story is not None), read_description)
    assert found.texts >= 0.99 * len(proof.rows), str(found)
    assert found.fact_share >= 0.98, str(found)
    words, more = (
        sum(len(row[name].split()) for row in proof.rows) for name in ("caption_text", "enhanced_text")
    )
    assert more >= 1.5 * words


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_captions_of_wrong_clips_are_untrue(
    prove: Callable[..., Proof], proof: Proof, change: Change
) -> None:
    found = prove(change).score()
    assert found.texts == len(proof.truth)
    assert found.text_share < 0.5, str(found)
