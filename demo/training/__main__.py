"""Trains the demo's checkpoints and writes them with their model cards.

    python -m demo.training demo/checkpoints

takes about half an hour on one large GPU with 16 cores or more, which make the clips (`--workers`). `--steps`
and `--text-steps` make it shorter, and `--start` goes on from what an earlier run has written; the cards of
the committed checkpoints tell of their runs.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from demo.make_checkpoints import (
    TEXT_ID,
    TRAINED_TEXT,
    TRAINED_VISION,
    VISION_ID,
    qwen2_config,
    train_demo_tokenizer,
    vision_config,
    vision_processor_configs,
    write_checkpoint,
)
from demo.stories import read_caption, read_description
from demo.training.cards import steps_told, text_card, vision_card
from demo.training.learn import (
    Plan,
    Teacher,
    draw_texts,
    learn,
    text_lessons,
    video_lessons,
)
from demo.training.network import Network
from demo.training.samples import make_batch
from demo.training.scores import Score, score

log = logging.getLogger("demo.training")

CARD = "README.md"
UNSEEN = 1_000_000
"""Seeds from here on are for tests."""


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint with its chat template, as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def rounded(network: Network) -> dict[str, torch.Tensor]:
    """The weights as they are written."""
    return {
        name: weight.detach().to(torch.bfloat16).cpu().contiguous()
        for name, weight in network.state_dict().items()
    }


def with_rounded_weights(network: Network) -> Network:
    """The network that the written weights make, on the same device and in float32."""
    copy = Network(network.config)
    copy.to(next(network.parameters()).device)
    copy.load_state_dict({name: weight.float() for name, weight in rounded(network).items()})
    copy.eval()
    return copy


def new_network(config: dict[str, Any], plan: Plan, device: torch.device, start: Path | None) -> Network:
    """A network with seeded weights, or with those of the checkpoint `start`."""
    torch.manual_seed(plan.seed)
    network = Network(config)
    if start is not None:
        weights = load_file(start / "model.safetensors")
        network.load_state_dict({name: weight.float() for name, weight in weights.items()})
    network.to(device)
    return network


def caption_score(teacher: Teacher, network: Network, *, seed: int, batches: int, batch_size: int) -> Score:
    """How true the captions of unseen clips are."""
    pairs = []
    tried = with_rounded_weights(network)
    for number in range(batches):
        batch = make_batch((UNSEEN + seed, number), batch_size)
        said = teacher.ask(tried, teacher.watch(batch))
        pairs += list(zip(said, batch.stories, strict=True))
    for text, story in pairs[:3]:
        log.info("said %r of %s", text, story)
    return score(pairs, read_caption)


def description_score(teacher: Teacher, network: Network, *, seed: int, number: int) -> Score:
    """How true the descriptions of unseen captions are."""
    stories, advice = draw_texts(np.random.default_rng(UNSEEN + seed), number)
    said = teacher.ask(with_rounded_weights(network), teacher.rewrite(stories, advice))
    for text in said[:3]:
        log.info("said %r", text)
    return score(zip(said, stories, strict=True), read_description)


def train_vision(folder: Path, tokenizer: Tokenizer, plan: Plan, args: argparse.Namespace) -> None:
    """Trains the vision-language model and writes it."""
    config, processors = vision_config(TRAINED_VISION), vision_processor_configs()
    device = torch.device(args.device)
    network = new_network(config, plan, device, args.start and args.start / VISION_ID)
    write_checkpoint(folder, config, tokenizer, rounded(network), processors)
    teacher = Teacher(load_tokenizer(folder), config, processors["preprocessor_config.json"], device)
    lessons = video_lessons(teacher, plan, num_workers=args.workers, kept=args.kept, reuse=args.reuse)

    def report(step: int) -> None:
        if step % (args.report_every * 10) == 0:
            log.info(
                "captions %s", caption_score(teacher, network, seed=1, batches=2, batch_size=plan.batch_size)
            )
            write_checkpoint(folder, config, tokenizer, rounded(network), processors)

    learn(network, lessons, plan, report=report, report_every=args.report_every)
    final = caption_score(teacher, network, seed=2, batches=args.test_batches, batch_size=plan.batch_size)
    log.info("captions, at the end: %s", final)
    write_checkpoint(folder, config, tokenizer, rounded(network), processors)
    (folder / CARD).write_text(vision_card(plan, final), encoding="utf-8")


def train_text(folder: Path, tokenizer: Tokenizer, plan: Plan, args: argparse.Namespace) -> None:
    """Trains the text model and writes it."""
    config = qwen2_config(TRAINED_TEXT)
    device = torch.device(args.device)
    network = new_network(config, plan, device, args.start and args.start / TEXT_ID)
    write_checkpoint(folder, config, tokenizer, rounded(network))
    teacher = Teacher(load_tokenizer(folder), config, None, device)

    def report(step: int) -> None:
        if step % (args.report_every * 10) == 0:
            log.info("descriptions %s", description_score(teacher, network, seed=1, number=64))

    learn(network, text_lessons(teacher, plan), plan, report=report, report_every=args.report_every)
    final = description_score(teacher, network, seed=2, number=plan.batch_size)
    log.info("descriptions, at the end: %s", final)
    write_checkpoint(folder, config, tokenizer, rounded(network))
    (folder / CARD).write_text(text_card(plan, final), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.training", description="Train the demo's checkpoints and write them."
    )
    parser.add_argument("folder", type=Path, help="folder that repository ids are relative to")
    parser.add_argument("--steps", type=int, default=20_000, help="updates of the vision-language model")
    parser.add_argument("--text-steps", type=int, default=3_000, help="updates of the text model")
    parser.add_argument("--batch-size", type=int, default=64, help="clips of an update")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--workers", type=int, default=15, help="processes that make clips")
    parser.add_argument("--kept", type=int, default=200, help="batches kept for use again")
    parser.add_argument("--reuse", type=int, default=5, help="times that a batch is used on average")
    parser.add_argument("--test-batches", type=int, default=16, help="batches of the last test of captions")
    parser.add_argument("--report-every", type=int, default=100, help="steps between two lines")
    parser.add_argument("--seed", type=int, default=0, help="of weights and samples")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch device")
    parser.add_argument("--start", type=Path, help="go on from the checkpoints in this folder")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    tokenizer = train_demo_tokenizer()
    for model_id, steps, batch_size, train in (
        (TEXT_ID, args.text_steps, 4 * args.batch_size, train_text),
        (VISION_ID, args.steps, args.batch_size, train_vision),
    ):
        if steps:
            before = steps_told((args.start / model_id / CARD).read_text("utf-8")) if args.start else 0
            plan = Plan(steps, batch_size, args.rate, seed=args.seed, steps_before=before)
            train(args.folder / model_id, tokenizer, plan, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
