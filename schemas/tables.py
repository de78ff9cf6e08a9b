"""All tables of a lake, in the order in which a run fills them."""

from schemas.captions import CAPTIONS
from schemas.clips import CLIPS
from schemas.configs import CONFIGS
from schemas.enhancements import ENHANCEMENTS
from schemas.previews import PREVIEWS
from schemas.runs import RUNS
from schemas.window_media import WINDOW_MEDIA
from schemas.windows import WINDOWS

TABLES = (CLIPS, WINDOWS, WINDOW_MEDIA, CAPTIONS, ENHANCEMENTS, PREVIEWS, RUNS, CONFIGS)
