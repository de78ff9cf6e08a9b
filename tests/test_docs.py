"""The pages made from the code: a reader who finds an old default there makes the wrong run."""

import subprocess
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from jobs.lake import Lake
from jobs.views import view_query
from tools.make_docs import DOCS, outdated, pages
from tools.tables_page import MAPS, view_columns

ROOT = Path(__file__).resolve().parent.parent


def test_the_pages_say_what_the_code_says() -> None:
    assert outdated() == [], "run make docs"


def test_check_fails_when_a_page_is_missing_or_old(tmp_path: Path) -> None:
    (tmp_path / "settings.md").write_text((DOCS / "settings.md").read_text() + "more\n")
    assert outdated(tmp_path) == ["settings.md", "tables.md"]


def test_check_exits_zero_on_the_committed_pages() -> None:
    done = subprocess.run([sys.executable, "tools/make_docs.py", "--check"], cwd=ROOT)
    assert done.returncode == 0


def test_the_page_lists_the_columns_and_types_of_the_view_that_spark_makes(
    spark: SparkSession, tmp_path: Path
) -> None:
    lake = Lake(spark, str(tmp_path / "lake"))
    lake.create()
    view = spark.sql(view_query(lake))
    told = {
        name: "map<string,string>" if source is None else source[0].schema[source[1]].dataType.simpleString()
        for name, source in view_columns()
    }
    assert told == {field.name: field.dataType.simpleString() for field in view.schema}
    assert {name for name, source in view_columns() if source is None} == set(MAPS)


def test_the_settings_page_tells_what_a_change_redoes() -> None:
    rows = {line.split("|")[1].strip(): line for line in pages()["settings.md"].splitlines() if "|" in line}
    assert rows["`window_size`"].endswith("| `windows` |")
    assert rows["`max_in_flight`"].endswith("|  |")
    assert rows["`temperature`"].endswith("| `captions`, `enhancements` |")
