"""What the host does with one request: render, generate, and again for a second pass."""

import itertools
import time
from dataclasses import dataclass, replace

from conf.engine import RenderSettings
from conf.errors import EngineError
from udfs.engine import vllm_compat
from udfs.engine.recording import record_pass
from udfs.engine.rendering import (
    caption_messages,
    check_caption_request,
    check_text_request,
    second_prompt,
    text_messages,
)
from udfs.engine.requests import CaptionRequest, Reply, Request, TextRequest
from udfs.engine.supervisor import KillerRequestError, Supervisor
from udfs.engine.vllm_compat import Answer, Engine, UnansweredError

_numbers = itertools.count()


@dataclass
class Task:
    """One request on its way through the engine.

    Attributes:
        request: what was asked.
        render: how its client wants it rendered.
        name: unique in this host; names the video in vLLM's caches.
        started: `time.monotonic()` when an engine first took it up, None before that.
    """

    request: Request
    render: RenderSettings
    name: str
    started: float | None = None

    @classmethod
    def of(cls, request: Request, render: RenderSettings) -> "Task":
        """Returns a task with a name of its own."""
        return cls(request, render, f"{request.request_key}#{next(_numbers)}")

    @property
    def latency_s(self) -> float:
        """Seconds since an engine took the request up; waiting for one to load does not count."""
        return 0.0 if self.started is None else time.monotonic() - self.started


async def reply_to(task: Task, supervisor: Supervisor) -> Reply:
    """Returns the outcome of `task`; whatever is wrong with the request itself becomes its error.

    Raises:
        EngineError: when there is no engine any more.
    """
    try:
        _check(task)
        first = await supervisor.answer(lambda engine: _first_pass(task, engine))
    except EngineError:
        raise
    except Exception as error:
        return Reply(text=None, error=_message(error), latency_s=task.latency_s)
    reply = Reply(first.text, None, first.finish_reason, first.prompt_tokens, first.output_tokens)
    if isinstance(task.request, CaptionRequest) and task.request.stage2_prompt is not None:
        again = second_prompt(task.request.prompt, task.request.stage2_prompt, first.text)
        reply = await _second_reply(task, supervisor, first, again)
    return replace(reply, latency_s=task.latency_s)


async def _second_reply(task: Task, supervisor: Supervisor, first: Answer, prompt: str) -> Reply:
    """Returns the outcome of the second pass, which falls back on the first caption."""
    try:
        second = await supervisor.answer(lambda engine: _see(task, engine, prompt, stage=2))
    except EngineError:
        raise
    except Exception as error:
        return Reply(
            text=first.text,
            stage1_text=first.text,
            finish_reason=first.finish_reason,
            prompt_tokens=first.prompt_tokens,
            output_tokens=first.output_tokens,
            stage2_error=_message(error),
        )
    return Reply(
        text=second.text,
        stage1_text=first.text,
        finish_reason=second.finish_reason,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
    )


def _check(task: Task) -> None:
    if isinstance(task.request, CaptionRequest):
        check_caption_request(task.request, task.render)
    else:
        check_text_request(task.request)


async def _first_pass(task: Task, engine: Engine) -> Answer:
    task.started = task.started or time.monotonic()
    if isinstance(task.request, TextRequest):
        return await _read(task, task.request, engine)
    return await _see(task, engine, task.request.prompt, stage=1)


async def _read(task: Task, request: TextRequest, engine: Engine) -> Answer:
    text = engine.renderer.prompt_text(text_messages(request))
    rendered = await engine.renderer.render_text(text)
    answer = await engine.generate(rendered, request.generation, task.name)
    record_pass(task.render.record_dir, task.name, request, 1, text, rendered, answer)
    return answer


async def _see(task: Task, engine: Engine, prompt: str, *, stage: int) -> Answer:
    try:
        return await _see_once(task, engine, prompt, stage=stage, cache_key=task.name)
    except UnansweredError:
        # vLLM's caches in host and engine have drifted apart about this video; a name that neither
        # knows sends it again.
        return await _see_once(task, engine, prompt, stage=stage, cache_key=f"{task.name}!{stage}")


async def _see_once(task: Task, engine: Engine, prompt: str, *, stage: int, cache_key: str) -> Answer:
    request = task.request
    assert isinstance(request, CaptionRequest)
    text = engine.renderer.prompt_text(caption_messages(prompt))
    rendered = await engine.renderer.render_video(request, task.render, text=text, cache_key=cache_key)
    # What is recorded is read before the engine takes the pixels over.
    record = record_pass(task.render.record_dir, task.name, request, stage, text, rendered, None)
    answer = await engine.generate(rendered, request.generation, f"{cache_key}/{stage}")
    if record is not None:
        record.add_answer(answer)
    return answer


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, KillerRequestError) else vllm_compat.innermost_message(error)
