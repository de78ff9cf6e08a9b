"""How true what a model says is, fact by fact."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from demo.stories import Story

Reader = Callable[[str], Story | None]


@dataclass(frozen=True)
class Score:
    """What came of a comparison.

    Attributes:
        texts: texts compared.
        true_texts: those that state every fact and nothing else.
        facts: facts of all stories.
        true_facts: those that were stated.
        added_facts: stated facts that the stories do not have.
    """

    texts: int
    true_texts: int
    facts: int
    true_facts: int
    added_facts: int

    @property
    def text_share(self) -> float:
        """Part of the texts that are wholly true."""
        return self.true_texts / self.texts

    @property
    def fact_share(self) -> float:
        """Part of the facts that were stated."""
        return self.true_facts / self.facts

    def __str__(self) -> str:
        return f"texts {self.text_share:.4f} facts {self.fact_share:.4f} ({self.texts} texts)"


def score(pairs: Iterable[tuple[str | None, Story]], read: Reader) -> Score:
    """Compares texts with the truth.

    Args:
        pairs: what was said, and what was shown.
        read: reads the story out of a text; a text that cannot be read states nothing.
    """
    texts = true_texts = facts = true_facts = added = 0
    for said, story in pairs:
        wanted = set(story.facts().items())
        told = read(said) if said is not None else None
        stated = set(told.facts().items()) if told is not None else set()
        texts, true_texts = texts + 1, true_texts + (stated == wanted)
        facts, true_facts = facts + len(wanted), true_facts + len(wanted & stated)
        added += len(stated - wanted)
    return Score(texts, true_texts, facts, true_facts, added)
