"""The prompts, from the text files of `conf/prompt_texts/`."""

from functools import cache
from importlib.resources import files

from conf.settings import Settings


@cache
def prompt_file(name: str) -> str:
    """The text of `conf/prompt_texts/<name>.txt` without its final newline."""
    return (files("conf") / "prompt_texts" / f"{name}.txt").read_text(encoding="utf-8").strip()


def caption_prompt(settings: Settings) -> str:
    """The prompt of the first pass: the user's own, else that of the variant."""
    preparation = settings.caption_preparation
    return preparation.prompt_text or prompt_file(f"caption_{preparation.prompt_variant}")


def stage2_prompt(settings: Settings) -> str | None:
    """What the second pass puts between the first prompt and the first caption; None without that pass."""
    generation = settings.caption_generation
    if not generation.generate_stage2_caption:
        return None
    return (generation.stage2_prompt_text or prompt_file("stage2_default")) + "\n\n"


def enhancement_prompt(settings: Settings) -> str:
    """The instruction of the text model: the user's own, else that of the variant."""
    enhancement = settings.caption_enhancement
    return enhancement.prompt_text or prompt_file(f"enhance_{enhancement.prompt_variant}")
