"""Settings from defaults, a YAML file, the environment and the command line, in that order of precedence."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from conf.errors import SettingsError
from conf.fields import Group, SettingField, fields_of
from conf.settings import SCRIPT_DEFAULTS, Settings

ENV_PREFIX = "CAPTIONLAKE_"
# Read elsewhere, beside the settings: where programs stand, not what a job does.
ENV_PROGRAMS = (
    "CAPTIONLAKE_FFMPEG",
    "CAPTIONLAKE_ENGINE_PYTHON",
    "CAPTIONLAKE_RUNTIME_DIR",
    "CAPTIONLAKE_CONFIG",
)

FIELDS: tuple[SettingField, ...] = tuple(fields_of(Settings))

Layer = dict[str, tuple[Any, str]]
"""One source of settings: path (`group.name`) to value and, for messages, where the value stands."""


def load_settings(
    *,
    config: str | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Settings:
    """Builds the settings of a job.

    Args:
        config: path of a YAML file, groups of settings as in `docs/settings.md`.
        environment: environment variables; those named `CAPTIONLAKE_<FLAG>` count.
        flags: command-line flags that were given, e.g. `{"--captioning-window-size": 128}`.
        base: values below all of these, as groups (`retry` starts from an earlier run's settings).

    Raises:
        SettingsError: a setting is unknown or not allowed; names the setting, its value, where it was
            given and what is allowed.
    """
    layers: list[Layer] = [
        {path: (value, "the script's defaults") for path, value in SCRIPT_DEFAULTS.items()}
    ]
    if base:
        layers.append(_flatten(base, "the earlier run"))
    if config:
        layers.append(_flatten(_read_yaml(config), config))
    layers.append(_environment_layer(environment or {}))
    layers.append(flag_layer(flags or {}))
    merged: Layer = {}
    for layer in layers:
        merged.update(layer)
    return _validate(merged)


def stage_settings(
    given: Mapping[str, Mapping[str, Any]], *, config: str | Mapping[str, Any] | None = None
) -> Settings:
    """Builds the settings of stages that are composed in Python; the script's own defaults play no part.

    Args:
        given: groups of settings as the code gives them.
        config: path of a YAML file, or groups of settings; below what the code gives.

    Raises:
        SettingsError: as `load_settings`.
    """
    merged: Layer = {}
    if isinstance(config, str):
        merged.update(_flatten(_read_yaml(config), config))
    elif config:
        merged.update(_flatten(config, "config"))
    merged.update(_flatten(given, "the code"))
    return _validate(merged)


def stage_values(group: str, values: Mapping[str, Any], where: str) -> Group:
    """Checks the settings of one group alone, whatever the others may be.

    Raises:
        SettingsError: as `load_settings`.
    """
    layer = _flatten({group: values}, where)
    model = Settings.model_fields[group].annotation
    assert model is not None
    try:
        return cast(Group, model(**values))
    except ValidationError as error:
        items = [{**item, "loc": (group, *item["loc"])} for item in error.errors()]
        raise SettingsError("\n".join(_explain(item, layer) for item in items)) from error


def flag_layer(flags: Mapping[str, Any], where: str = "") -> Layer:
    """The settings that flags set; of a setting's several flags, the most specific one counts."""
    layer: Layer = {}
    for field in FIELDS:
        given = next((flag for flag in field.flags if flag in flags), None)
        if given is not None:
            value = flags[given]
            layer[field.path] = (not value if field.negated else value, where or given)
    return layer


def env_name(flag: str) -> str:
    """The environment variable of a flag, e.g. `CAPTIONLAKE_OUTPUT_PATH` for `--output-path`."""
    return ENV_PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    by_name = {env_name(flag): (flag, field) for field in FIELDS for flag in field.flags}
    layer_flags: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(ENV_PREFIX) or name in ENV_PROGRAMS:
            continue
        if name not in by_name:
            raise SettingsError(f"environment variable {name} names no setting{_nearest(name, by_name)}")
        flag, field = by_name[name]
        layer_flags[flag] = _parse_text(text, field, name)
    layer = flag_layer(layer_flags)
    return {path: (value, env_name(flag)) for path, (value, flag) in layer.items()}


def _parse_text(text: str, field: SettingField, name: str) -> Any:
    """The value that an environment variable's text stands for."""
    if field.info.annotation is bool:
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words:
            raise SettingsError(f"{name}={text!r}: allowed are true and false")
        return words[text.lower()]
    if field.info.annotation == tuple[str, ...]:
        return tuple(part for part in text.split(",") if part)
    return text


def _read_yaml(config: str) -> Mapping[str, Any]:
    try:
        loaded = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {config}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {config} is not YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise SettingsError(f"settings file {config} holds {type(loaded).__name__}, not groups of settings")
    return loaded


def _flatten(groups: Mapping[str, Any], where: str) -> Layer:
    known = {field.path for field in FIELDS}
    names = {field.group for field in FIELDS}
    layer: Layer = {}
    for group, values in groups.items():
        if group not in names:
            raise SettingsError(f"{where}: {group!r} is no group of settings{_nearest(str(group), names)}")
        if not isinstance(values, Mapping):
            raise SettingsError(f"{where}: {group} holds {values!r}, not settings by name")
        for name, value in values.items():
            path = f"{group}.{name}"
            if path not in known:
                raise SettingsError(f"{where}: {path!r} is no setting{_nearest(path, known)}")
            layer[path] = (value, where)
    return layer


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(sorted(known))}"


def _validate(merged: Layer) -> Settings:
    nested: dict[str, dict[str, Any]] = {}
    for path, (value, _) in merged.items():
        group, name = path.split(".")
        nested.setdefault(group, {})[name] = value
    try:
        return Settings.model_validate(nested)
    except ValidationError as error:
        lines = dict.fromkeys(_explain(item, merged) for item in error.errors())
        raise SettingsError("\n".join(lines)) from error


def _explain(item: Any, merged: Layer) -> str:
    """One line of a refusal: setting, value, where it was given, what is allowed."""
    path = ".".join(str(part) for part in item["loc"][:2])
    field = next((field for field in FIELDS if field.path == path), None)
    if field is None:
        return str(item["msg"]).removeprefix("Value error, ")
    value, where = merged[path]
    why = f"{item['ctx']['error']}; " if item["type"] == "value_error" else ""
    allowed = f"{field.allowed}, default {field.info.default!r}"
    return f"{path}={value!r} (from {where}) is not allowed: {why}{allowed}"
