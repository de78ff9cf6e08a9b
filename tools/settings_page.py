"""The page `docs/settings.md`: every setting, from the settings models."""

from typing import Any, get_args

from conf.fields import SettingField, type_name
from conf.identity import ModelIdentity, caption_config, enhance_config, prep_config, preview_config
from conf.loading import ENV_PROGRAMS, FIELDS, env_name
from conf.settings import SCRIPT_DEFAULTS, Settings
from conf.variants import model_variant
from tools.markdown import code, table

HEADINGS = ("YAML key", "flag, environment variable", "default", "allowed", "meaning", "redoes")

HEAD = """\
# Settings

<!-- Made from conf/ by `make docs`; change the settings models, not this page. -->

A setting has one name and one default, and four places where it can be given. Later ones win:

1. the defaults below;
2. a YAML file, named by `--config FILE` or by the environment variable `CAPTIONLAKE_CONFIG`;
3. environment variables: the flag in capitals after `CAPTIONLAKE_`, e.g. {env_example}
   for {flag_example};
4. the command line.

A setting that is unknown or out of range is refused before any work starts; the message names the setting,
its value, where it was given and what is allowed. `retry` starts from the settings of the last `run` over
the lake instead of the defaults.

In a YAML file the settings stand in groups, as in the headings below:

```yaml
caption_preparation:
  window_size: 128
preview:
  target_height: 360
```

**Flags.** Where a setting has several flags, the first one listed wins over the others. Switches have a
form that says no, e.g. `--no-generate-captions`; in the environment they are `true` or `false`. A list is
given to a flag as several words and to an environment variable with commas.

**Defaults.** They are those of the command line. There a step runs only when it is asked for, and vLLM's
caches are off; the settings models used from Python have other defaults for
{script_defaults}.

**Redoes.** A row carries the id of the settings that it was made with. The last column says which tables get
new rows when the setting changes; the old rows stay. New windows are captioned and shown anew, and new
captions enhanced anew. Settings without an entry change how the work is done, not what comes out; weights
from the hub count by their commit, and weights that were copied by hand by their content, wherever
`model_dir` is.

**Environment variables that are no settings.** They say where programs and files stand on a machine:

{programs}
"""

# A KeyError here means that a variable was added and not explained.
PROGRAMS = {
    "CAPTIONLAKE_CONFIG": "the YAML file of settings, where `--config` names none",
    "CAPTIONLAKE_FFMPEG": "the ffmpeg that makes previews; it needs libwebp. The default is the one that "
    "comes with `imageio-ffmpeg`",
    "CAPTIONLAKE_ENGINE_PYTHON": "the Python interpreter in which vLLM runs, where it is installed apart "
    "from the Spark workers' environment",
    "CAPTIONLAKE_RUNTIME_DIR": "folder of the engine's sockets, locks and logs on each machine; a short "
    "path. The default is `/tmp/captionlake-<user id>`",
}


def settings_page() -> str:
    """The whole page."""
    groups: dict[str, list[SettingField]] = {}
    for field in FIELDS:
        groups.setdefault(field.group, []).append(field)
    return "\n".join([_head(), *(_section(group, fields) for group, fields in groups.items())])


def _head() -> str:
    example = next(flag for field in FIELDS for flag in field.flags if flag == "--captioning-window-size")
    by_path = {field.path: field for field in FIELDS}
    script = [f"`{path}` ({_shown(by_path[path].info.default)})" for path in SCRIPT_DEFAULTS]
    return HEAD.format(
        env_example=code(env_name(example)),
        flag_example=code(example),
        script_defaults=" and ".join(script),
        programs=table(("variable", "meaning"), [(code(name), PROGRAMS[name]) for name in ENV_PROGRAMS]),
    )


def _section(group: str, fields: list[SettingField]) -> str:
    model = Settings.model_fields[group].annotation
    about = (model.__doc__ or "").strip() if model else ""
    return f"## {group}\n\n{about}\n\n{table(HEADINGS, [_row(field) for field in fields])}\n"


def _row(field: SettingField) -> tuple[str, ...]:
    flags = "<br>".join(code(flag, env_name(flag)) for flag in field.flags)
    meaning = (field.info.description or "") + (" (the flag says the opposite)" if field.negated else "")
    default = SCRIPT_DEFAULTS.get(field.path, field.info.default)
    return (code(field.name), flags, _shown(default), _allowed(field), meaning, code(*redone_by(field)))


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return code(str(value).lower() if isinstance(value, bool) else str(value))


def _allowed(field: SettingField) -> str:
    if not field.is_bounded:
        return "true, false" if field.info.annotation is bool else type_name(field.info.annotation)
    is_choice = field.allowed.startswith("one of ")
    return field.allowed if is_choice else f"{type_name(field.info.annotation)}, {field.allowed}"


def redone_by(field: SettingField) -> list[str]:
    """The tables whose config id changes with the setting; found out by changing it."""
    base = Settings.model_validate({"caption_generation": {"generate_stage2_caption": True}})
    group = getattr(base, field.group)
    changed = group.model_copy(update={field.name: _another(field, getattr(group, field.name))})
    before, after = _config_ids(base), _config_ids(base.model_copy(update={field.group: changed}))
    return [table for table in before if before[table] != after[table]]


def _another(field: SettingField, value: Any) -> Any:
    """A value that is not the default; whether it is allowed plays no part in an id."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple):
        return ("name=value",)
    choices = [choice for choice in get_args(field.info.annotation) if isinstance(choice, str)]
    return choices[-1] if choices and choices[-1] != value else "another"


def _config_ids(settings: Settings) -> dict[str, str]:
    generation, enhancement = settings.caption_generation, settings.caption_enhancement
    seen = model_variant(generation.model_variant).caption_model_id
    read = model_variant(enhancement.model_variant).text_model_id
    configs = (
        prep_config(settings),
        caption_config(settings, ModelIdentity(seen, "revision", generation.fp8)),
        enhance_config(settings, ModelIdentity(read, "revision", enhancement.fp8)),
        preview_config(settings),
    )
    return {config.kind: config.config_id for config in configs}
