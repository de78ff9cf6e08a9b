"""The page `docs/tables.md`: every table and the view, from the schemas."""

import re
from enum import StrEnum
from typing import cast

from pyspark.sql import SparkSession

from jobs.lake import Lake
from jobs.views import VIEW, view_query
from schemas.captions import CAPTIONS
from schemas.enhancements import ENHANCEMENTS
from schemas.previews import PREVIEWS
from schemas.status import CaptionStatus, PreviewStatus, WindowStatus
from schemas.table import Table
from schemas.tables import TABLES
from schemas.window_media import WINDOW_MEDIA
from schemas.windows import WINDOWS
from tools.markdown import code, table

HEAD = """\
# Tables

<!-- Made from schemas/ by `make docs`; change the schemas, not this page. -->

A lake is one folder with a Delta table in each of its folders (`LAKE/clips`, `LAKE/windows`, …), or one
`catalog.schema` with the same tables. Any reader of Delta tables can open them.

Times are in seconds. Frames are counted from 0 in the clip, and `end_frame` is inclusive.

**Statuses.** Every clip and every window has one row for each configuration, whatever became of it; its
status says what did, and the error column beside it says why in words.

{statuses}

**Configurations.** A `*_config_id` is the SHA-256 of a JSON text of those settings that change the output
and are not defaults; `configs` holds the text of each. [settings.md](settings.md) says which settings they
are. Work that has a row under an id is never done again under that id; with other settings, new rows are
appended beside the old ones.

**Attempts.** The first row of a window under a configuration has `attempt` 1. A row with an error stays as
it is, and waits for `captionlake retry`, which appends a row with the next attempt. Nothing is overwritten:
the tables after `clips` are only appended to. A clip whose content changed gets a new `clip_no` in `clips`,
and with it new windows.
"""

VIEW_HEAD = """\
## {view}

A view: the windows of the clips as they are now, each with its newest caption, the newest enhancement of
that caption, its newest preview and its newest mp4. Newest is the row of the latest commit (`commit_seq`),
and within one commit that of the highest `attempt`. Where windows were cut under several settings, each
`prep_config_id` has its own rows. A window without a caption, an enhancement, a preview or an mp4 has nulls
there.

The WebP itself is not in the view. It is in `previews`, under `window_id`, `prep_config_id`,
`preview_config_id` and `attempt` (in the view: `preview_attempt`). Likewise the mp4, which a run with
`--keep-window-mp4` makes: it is in `window_media`, under `window_id`, `prep_config_id` and `attempt` (in the
view: `media_attempt`).

A lake in a catalog has the view beside its tables. For a lake in a folder, `captionlake sql` knows it and
all tables by their names.
"""

# By column; a status that is not explained here is a KeyError.
ANSWERED: dict[StrEnum, str] = {
    CaptionStatus.SUCCESS: "the model finished its answer",
    CaptionStatus.TRUNCATED: "the answer reached the greatest allowed length and was cut there",
    CaptionStatus.ERROR: "there is no answer",
    CaptionStatus.SKIPPED: "there was nothing to work on: no window, or no caption",
}
STATUSES: list[tuple[Table, type[StrEnum], dict[StrEnum, str]]] = [
    (
        WINDOWS,
        WindowStatus,
        {
            WindowStatus.SUCCESS: "the window was cut",
            WindowStatus.PARTIAL: "the clip breaks in the middle; the window lies in the frames before that",
            WindowStatus.ERROR: "the clip cannot be read; its one row has no `window_index`",
            WindowStatus.SKIPPED: "the clip is too short for a window; its one row has no `window_index`",
        },
    ),
    (CAPTIONS, CaptionStatus, ANSWERED),
    (ENHANCEMENTS, CaptionStatus, ANSWERED),
    (
        PREVIEWS,
        PreviewStatus,
        {
            PreviewStatus.SUCCESS: "the WebP was made, and checked by decoding it",
            PreviewStatus.ERROR: "there is no WebP",
            PreviewStatus.SKIPPED: "there was no window to show",
        },
    ),
    (
        WINDOW_MEDIA,
        PreviewStatus,
        {
            PreviewStatus.SUCCESS: "the mp4 was made, with every frame of the window",
            PreviewStatus.ERROR: "there is no mp4",
            PreviewStatus.SKIPPED: "there was no window to encode",
        },
    ),
]

# The columns of the view that are no column of a table.
MAPS = {
    "caption": 'the caption by model variant, e.g. `{"qwen": "…"}`',
    "enhanced_caption": 'the enhanced caption by model variant, e.g. `{"qwen_lm": "…"}`',
}
ALIASES = {"w": WINDOWS, "c": CAPTIONS, "e": ENHANCEMENTS, "p": PREVIEWS, "m": WINDOW_MEDIA}


def tables_page() -> str:
    """The whole page."""
    sections = [_section(one) for one in TABLES]
    return "\n".join([HEAD.format(statuses=_statuses()), *sections, _view()])


def _statuses() -> str:
    rows = [
        (code(one.status), code(status.value), meanings[status])
        for one, kind, meanings in STATUSES
        for status in kind
    ]
    return table(("column", "value", "meaning"), rows)


def _section(one: Table) -> str:
    about = f"Key: {code(*one.key)}."
    rows = [
        (code(field.name), _type(one, field.name), "" if field.nullable else "yes", _comment(one, field.name))
        for field in one.schema
    ]
    return f"## {one.name}\n\n{about}\n\n{table(('column', 'type', 'never null', 'meaning'), rows)}\n"


def _type(one: Table, name: str) -> str:
    return one.schema[name].dataType.simpleString()


def _comment(one: Table, name: str) -> str:
    return str(one.schema[name].metadata["comment"])


def _view() -> str:
    rows = []
    for name, source in view_columns():
        if source is None:
            rows.append((code(name), "map<string,string>", "", MAPS[name]))
        else:
            one, column = source
            rows.append((code(name), _type(one, column), code(f"{one.name}.{column}"), _comment(one, column)))
    return f"{VIEW_HEAD.format(view=VIEW)}\n{table(('column', 'type', 'from', 'meaning'), rows)}\n"


def view_columns() -> list[tuple[str, tuple[Table, str] | None]]:
    """The view's columns in order, each with the table and column it shows; None for a computed one.

    Read from the view's own query: its last SELECT names `alias.column` or `alias.column AS name`.
    """
    lake = Lake(cast(SparkSession, None), "lake")  # only names tables; no session is asked
    selected = view_query(lake).rpartition("\nSELECT\n")[2].partition("\nFROM ")[0]
    # Commas inside parentheses separate arguments, not columns.
    columns = re.split(r",(?![^()]*\))", selected.replace("\n", " "))
    return [_view_column(text.strip()) for text in columns]


def _view_column(text: str) -> tuple[str, tuple[Table, str] | None]:
    plain = re.fullmatch(r"(\w)\.(\w+)(?: AS (\w+))?", text)
    if plain:
        alias, column, name = plain.groups()
        return name or column, (ALIASES[alias], column)
    return text.rpartition(" AS ")[2], None
