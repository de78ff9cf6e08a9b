"""The models that a `model_variant` names, and the frame sizes they are given.

Frame budgets are those of `qwen_vl_utils`: a video frame covers between `min_patches` and
`max_patches` merged patches, and all frames of a window together at most `total_patches`.

A revision is a commit of the repository: what a repository holds under a branch changes, and with it
would the captions. Another revision is another configuration, and does all captions again.
"""

from dataclasses import dataclass

from conf.errors import SettingsError


@dataclass(frozen=True)
class ModelVariant:
    """One family of checkpoints.

    Attributes:
        name: canonical name of the variant.
        caption_model_id: repository id of the vision-language model.
        text_model_id: repository id of the text model that enhances captions.
        caption_revision: commit of `caption_model_id` that is fetched; None: it is never fetched.
        text_revision: commit of `text_model_id` that is fetched; None: it is never fetched.
        patch_px: side of one merged patch in pixels; frame sides are multiples of it.
        min_patches: least number of merged patches of a frame.
        max_patches: greatest number of merged patches of a frame.
        total_patches: greatest number of merged patches of all frames of a window.
    """

    name: str
    caption_model_id: str
    text_model_id: str
    patch_px: int
    caption_revision: str | None = None
    text_revision: str | None = None
    min_patches: int = 128
    max_patches: int = 768
    total_patches: int = 24_576


QWEN25 = ModelVariant(
    name="qwen",
    caption_model_id="Qwen/Qwen2.5-VL-7B-Instruct",
    text_model_id="Qwen/Qwen2.5-14B-Instruct",
    caption_revision="cc594898137f460bfe9f0759e9844b3ce807cfb5",
    text_revision="cf98f3b3bbb457ad9e2bb7baf9a0125b6b88caa8",
    patch_px=28,
)
QWEN3 = ModelVariant(
    name="qwen3",
    caption_model_id="Qwen/Qwen3-VL-8B-Instruct",
    text_model_id="Qwen/Qwen3-14B",
    caption_revision="0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    text_revision="40c069824f4251a91eefaf281ebe4c544efd3e18",
    patch_px=32,
)
DEMO = ModelVariant(
    name="demo",
    caption_model_id="captionlake/demo-vl",
    text_model_id="captionlake/demo-text",
    patch_px=28,
    min_patches=16,
    max_patches=64,
)
VARIANTS = {"qwen": QWEN25, "qwen2.5": QWEN25, "qwen3": QWEN3, "demo": DEMO}


def model_variant(name: str) -> ModelVariant:
    """Returns the variant called `name`; raises SettingsError with the known names."""
    if name not in VARIANTS:
        raise SettingsError(f"model_variant={name!r} is unknown; allowed: {', '.join(VARIANTS)}")
    return VARIANTS[name]
