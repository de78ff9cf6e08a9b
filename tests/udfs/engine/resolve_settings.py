"""What vLLM makes of an engine's settings, resolved in a process of its own and without a load."""

import json
import subprocess
import sys
from typing import Any

from conf.engine import EngineSettings
from udfs.engine import vllm_compat
from udfs.engine.launch import host_environment
from udfs.engine.runtime import Place
from udfs.engine.slot import Slot
from udfs.engine.vllm_compat import Device

PROGRAM = "from tests.udfs.engine.resolve_settings import main; main()"
MARK = "RESOLVED "
TIMEOUT_S = 300


def resolve_settings(wanted: list[tuple[EngineSettings, Device]]) -> list[dict[str, Any]]:
    """Returns vLLM's resolved settings for engines on devices that this machine need not have."""
    slot = Slot.of_process()
    orders = [
        (settings.model_dump(mode="json"), device.name, device.capability) for settings, device in wanted
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(orders),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=host_environment(slot, Place.of(slot, "resolve"), sys.executable),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    resolved: list[dict[str, Any]] = json.loads(line.removeprefix(MARK))
    return resolved


def main() -> None:
    """Resolves the orders on stdin."""
    orders = json.load(sys.stdin)
    vllm_compat.prepare_environment()
    from vllm.engine.arg_utils import AsyncEngineArgs

    resolved = []
    for settings, name, capability in orders:
        device = Device(name, None if capability is None else tuple(capability))
        arguments = vllm_compat.engine_arguments(EngineSettings(**settings), device)
        config = AsyncEngineArgs(**arguments).create_engine_config()
        resolved.append(vllm_compat.resolved_settings(config))
    print(MARK + json.dumps(resolved))
