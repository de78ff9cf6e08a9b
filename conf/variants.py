"""The models that a `model_variant` names, and the frame sizes they are given.

Frame budgets are those of `qwen_vl_utils`: a video frame covers between `min_patches` and
`max_patches` merged patches, and all frames of a window together at most `total_patches`.
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
        patch_px: side of one merged patch in pixels; frame sides are multiples of it.
        min_patches: least number of merged patches of a frame.
        max_patches: greatest number of merged patches of a frame.
        total_patches: greatest number of merged patches of all frames of a window.
    """

    name: str
    caption_model_id: str
    text_model_id: str
    patch_px: int
    min_patches: int = 128
    max_patches: int = 768
    total_patches: int = 24_576


QWEN25 = ModelVariant(
    name="qwen",
    caption_model_id="Qwen/Qwen2.5-VL-7B-Instruct",
    text_model_id="Qwen/Qwen2.5-14B-Instruct",
    patch_px=28,
)
QWEN3 = ModelVariant(
    name="qwen3",
    caption_model_id="Qwen/Qwen3-VL-8B-Instruct",
    text_model_id="Qwen/Qwen3-14B",
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
