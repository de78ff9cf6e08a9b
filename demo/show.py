"""Shows what the demo made: the view `window_captions` beside the truth, and the previews as files.

`python -m demo.show LAKE FOLDER` queries the lake with SQL and writes its previews into FOLDER.
"""

import argparse
import re
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.parse import unquote

from pyspark.sql import Row, SparkSession

from conf.settings import SparkSettings
from demo.make_clips import DEMO_CLIPS
from demo.stories import caption_of, read_caption
from demo.training.scores import score as score_texts
from jobs.lake import Lake
from jobs.session import get_session
from jobs.sql import query, write_result
from schemas.tables import TABLES

SHOWN = """
SELECT clip, concat(start_frame, '-', end_frame) AS frames,
  drawn.story AS drawn, caption_text AS caption, caption_status AS status, enhanced_text AS enhanced,
  concat(preview_width, 'x', preview_height) AS preview
FROM window_captions
JOIN (SELECT clip_id, regexp_extract(source_video, '[^/]+$', 0) AS clip FROM clips) USING (clip_id)
LEFT JOIN drawn USING (clip, window_index)
ORDER BY clip, start_frame
""".strip()

# The view names the newest preview of a window; its blob is fetched by key.
PREVIEWS = """
SELECT regexp_extract(clips.source_video, '[^/]+$', 0) AS clip, clip_id, start_frame, end_frame, webp
FROM window_captions AS newest
JOIN clips USING (clip_id)
JOIN previews USING (clip_id, window_id, prep_config_id, preview_config_id)
WHERE previews.attempt = newest.preview_attempt AND webp IS NOT NULL
ORDER BY clip, clip_id, start_frame
""".strip()

ASK_MORE = """Ask more  captionlake sql --output-path {lake} "SELECT caption FROM window_captions\""""

TRUTH = """
Of {texts} captions {true_texts} state every fact of what was drawn and nothing else; of {facts} single facts
{true_facts} are right. The caption model has two million weights; what it knows, and how well, is in
{card}."""
CARD = "demo/checkpoints/captionlake/demo-vl/README.md"


def drawn_stories() -> list[tuple[str, int, str]]:
    """What the demo's clips show: name of the clip, number of the window, the story in one sentence."""
    return [
        (clip.name, index, caption_of(story))
        for clip in DEMO_CLIPS
        for index, (story, _) in enumerate(clip.windows)
    ]


def truth(rows: list[Row]) -> str:
    """How many facts of the captions are true, in words; empty where nothing was drawn by us."""
    pairs = [(row.caption, read_caption(row.drawn)) for row in rows if row.drawn is not None]
    score = score_texts(((said, story) for said, story in pairs if story is not None), read_caption)
    return TRUTH.format(**asdict(score), card=CARD) if score.texts else ""


def save_previews(spark: SparkSession, folder: Path) -> list[Path]:
    """Writes the newest preview of every window into `folder`; returns the files.

    The session knows the lake's tables and view by their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    saved: list[Path] = []
    for row in spark.sql(PREVIEWS).toLocalIterator():
        span = f"{row.start_frame}_{row.end_frame}.webp"
        path = folder / f"{safe_name(row.clip)}_{span}"
        if path in saved:  # clips of different folders or containers can share a name
            path = folder / f"{safe_name(row.clip)}_{row.clip_id}_{span}"
        path.write_bytes(row.webp)
        saved.append(path)
    return saved


def safe_name(clip: str) -> str:
    """The last part of a clip's URI as a file name: no suffix, no separators, no control characters.

    Example:
        >>> safe_name("a%20b%2Fc.final.mp4")
        'a_b_c_final'
    """
    stem = unquote(clip).rpartition(".")[0] or unquote(clip)
    return re.sub(r"[^\w-]+", "_", stem)[:80]


def main(argv: list[str] | None = None) -> int:
    """Shows the lake and writes the previews into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Show a lake's captions and save its previews.")
    parser.add_argument("lake", help="folder of the lake's tables")
    parser.add_argument("folder", type=Path, help="where the previews are written")
    args = parser.parse_args(argv)
    spark = get_session(SparkSettings())
    drawn = spark.createDataFrame(drawn_stories(), "clip string, window_index int, story string")
    drawn.createOrReplaceTempView("drawn")
    shown = query(spark, Lake(spark, args.lake), SHOWN).cache()
    write_result(shown, sys.stdout, form="table")
    saved = save_previews(spark, args.folder)
    print(f"Tables    {', '.join(table.name for table in TABLES)}: Delta tables in {args.lake}")
    print(f"Previews  {len(saved)} animated WebP files in {args.folder}, e.g. {saved[0]}" if saved else "")
    print(ASK_MORE.format(lake=args.lake))
    print(truth(shown.collect()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
