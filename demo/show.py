"""Shows what the demo made: the view `window_captions` as a table, and the previews as files.

`python demo/show.py LAKE FOLDER` queries the lake with SQL and writes its previews into FOLDER.
"""

import argparse
import re
import sys
from pathlib import Path
from urllib.parse import unquote

from pyspark.sql import SparkSession

from conf.settings import SparkSettings
from jobs.lake import Lake
from jobs.session import get_session
from jobs.sql import query, write_result
from schemas.tables import TABLES

SHOWN = """
SELECT regexp_extract(clips.source_video, '[^/]+$', 0) AS clip, concat(start_frame, '-', end_frame) AS frames,
  caption_status AS status, left(caption_text, 60) AS caption, left(enhanced_text, 60) AS enhanced,
  concat(preview_width, 'x', preview_height) AS preview
FROM window_captions JOIN clips USING (clip_id)
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

NOISE = """
The captions are noise: the demo's models have the real architecture but random, seeded weights that
nobody trained. What is real is everything around them: windows, frames, tokens, statuses, previews."""


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
    print(f"\n{SHOWN}\n")
    write_result(query(spark, Lake(spark, args.lake), SHOWN), sys.stdout, form="table")
    saved = save_previews(spark, args.folder)
    print(f"Tables    {', '.join(table.name for table in TABLES)}: Delta tables in {args.lake}")
    print(f"Previews  {len(saved)} animated WebP files in {args.folder}, e.g. {saved[0]}" if saved else "")
    print(ASK_MORE.format(lake=args.lake))
    if not spark.sql("SELECT 1 FROM captions WHERE model_variant = 'demo'").isEmpty():
        print(NOISE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
