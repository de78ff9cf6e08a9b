"""The command line: `captionlake COMMAND …`, generated from the settings model."""

import argparse
import difflib
import importlib
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.errors import CaptionlakeError, SchemaError, SettingsError
from conf.fields import SettingField
from conf.loading import FIELDS, load_settings
from conf.settings import SCRIPT_DEFAULTS, Settings
from udfs.worker_log import log_to_stderr

log = logging.getLogger(__name__)

MIN_JAVA = 17

_ALL = ("lake", "pipeline", "caption_preparation", "preview", "caption_generation", "caption_enhancement")
_FUNCTIONS = ("caption_preparation", "preview", "caption_generation", "caption_enhancement")
_MACHINE = ("engine", "media", "spark")

COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "run": ("ingest, windows, captions, enhancements and previews as one pipeline", (*_ALL, *_MACHINE)),
    "ingest": ("add files, folders, globs or URIs to the table clips", ("lake", "spark")),
    "windows": ("cut clips into windows", ("lake", "caption_preparation", "media", "spark")),
    "caption": (
        "caption windows with the vision-language model",
        ("lake", "caption_preparation", "caption_generation", *_MACHINE),
    ),
    "enhance": (
        "rewrite captions with the text model",
        ("lake", "caption_preparation", "caption_enhancement", "engine", "spark"),
    ),
    "preview": ("make animated WebP previews", ("lake", "caption_preparation", "preview", "media", "spark")),
    "retry": ("try rows with an error again, with the settings of the last run", (*_ALL, *_MACHINE)),
    "export": ("write a lake as files", ("lake", "caption_preparation", "export", "spark")),
    "sql": (
        "query a lake: its tables and the view window_captions; with the functions caption_windows, "
        "enhance_caption and preview_webp",
        ("lake", *_FUNCTIONS, *_MACHINE),
    ),
}


def main(argv: Sequence[str]) -> int:
    """Runs one command.

    Returns:
        0 when the job ended, whatever the statuses of its rows; 1 when it could not go on; 2 when a
        setting or a table was refused before work started.
    """
    parser = make_parser()
    args, unknown = parser.parse_known_args(argv)
    log_to_stderr(logging.INFO)
    try:
        _refuse_unknown(unknown, args.command)
        _java()
        return _run(args)
    except (SettingsError, SchemaError) as error:
        return _refused(str(error), 2)
    except CaptionlakeError as error:
        return _refused(str(error), 1)
    except Exception as error:
        text = _worker_error(error)
        if text is None:
            raise
        return _refused(text, 1)


def _run(args: argparse.Namespace) -> int:
    flags = {name: value for name, value in vars(args).items() if name.startswith("--")}
    config = args.config or os.environ.get("CAPTIONLAKE_CONFIG")
    settings = load_settings(config=config, environment=os.environ, flags=flags)
    if not settings.lake.output_path:
        raise SettingsError("lake.output_path is not set; give --output-path FOLDER or catalog.schema")
    from jobs.session import get_session

    if args.command in ("sql", "retry"):
        spark = get_session(settings.spark)
        return _sql(spark, settings, args) if args.command == "sql" else _retry(spark, args, config, flags)
    job = importlib.import_module(f"jobs.{args.command}")
    for kind in job.kinds(settings):
        kind.check(settings)
    report = job.run(get_session(settings.spark), settings)
    sys.stdout.write(report.render())
    return 0


def _retry(spark: Any, args: argparse.Namespace, config: str | None, flags: dict[str, Any]) -> int:
    from jobs.retry import last_settings, retry

    given = load_settings(config=config, environment=os.environ, flags=flags)
    base = last_settings(spark, given.lake.output_path)
    settings = load_settings(config=config, environment=os.environ, flags=flags, base=base)
    sys.stdout.write(retry(spark, settings, where=args.where).render())
    return 0


def _sql(spark: Any, settings: Settings, args: argparse.Namespace) -> int:
    from jobs.functions import functions_in, register_functions
    from jobs.lake import Lake
    from jobs.session import small_batches
    from jobs.sql import query, write_result

    register_functions(spark, settings, functions_in(args.statement))
    with small_batches(spark):
        result = query(spark, Lake(spark, settings.lake.output_path), args.statement)
        if args.save is None:
            write_result(result, sys.stdout, form=args.format)
            return 0
        try:
            with Path(args.save).open("w", encoding="utf-8", newline="") as out:
                write_result(result, out, form=args.format)
        except OSError as error:
            raise SettingsError(
                f"--save {args.save!r} cannot be written: {error.strerror or error}"
            ) from error
    return 0


def _refuse_unknown(unknown: Sequence[str], command: str) -> None:
    """Refuses arguments that the command does not have, with the nearest that it has."""
    if not unknown:
        return
    known = [flag for field in FIELDS for flag in field.flags if _takes(command, field)]
    near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see captionlake {command} --help"
    raise SettingsError(f"captionlake {command} has no {unknown[0]}; {hint}")


def _takes(command: str, field: SettingField) -> bool:
    """Whether a setting means something to a command."""
    if field.group not in COMMANDS[command][1]:
        return False
    if command in ("sql", "export") and field.group == "lake":
        return field.name == "output_path"
    if command == "sql" and field.group == "caption_preparation":
        # Its windows are those of the statement.
        return field.name not in ("sampling_fps", "window_size", "remainder_threshold", "generate_previews")
    if command in ("windows", "enhance", "preview", "export") and field.group == "caption_preparation":
        has_lines = command != "export" and field.name == "verbose"
        return has_lines or field.name in ("sampling_fps", "window_size", "remainder_threshold")
    return command in ("ingest", "run") or field.name not in ("ingest_mode", "input_path", "from_curator")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; flags that are not given are absent from what it returns."""
    parser = argparse.ArgumentParser(
        prog="captionlake",
        description="Captions and previews for the video clips of a lakehouse.",
        epilog="Settings: defaults < YAML file (--config) < environment (CAPTIONLAKE_…) < command line.",
        allow_abbrev=False,
    )
    from captionlake import __version__

    parser.add_argument("--version", action="version", version=f"captionlake {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, groups) in COMMANDS.items():
        command = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        _own_arguments(name, command)
        _setting_flags(command, name, groups)
    return parser


def _own_arguments(name: str, command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", metavar="FILE", help="YAML file with groups of settings")
    if name == "sql":
        command.add_argument("statement", help="the query, e.g. SELECT * FROM window_captions")
        command.add_argument("--format", choices=("table", "csv", "json"), default="table")
        command.add_argument("--save", metavar="FILE", help="write the result here and not to stdout")
    if name == "retry":
        command.add_argument("--where", required=True, help="a condition on window_captions")


def _setting_flags(command: argparse.ArgumentParser, name: str, groups: tuple[str, ...]) -> None:
    """Adds a flag for every setting of the groups; flags that set the same settings are one argument."""
    fields_by_flag: dict[str, list[SettingField]] = {}
    for field in FIELDS:
        for flag in field.flags:
            if _takes(name, field):
                fields_by_flag.setdefault(flag, []).append(field)
    flags_by_fields: dict[tuple[str, ...], list[str]] = {}
    for flag, fields in fields_by_flag.items():
        flags_by_fields.setdefault(tuple(field.path for field in fields), []).append(flag)
    sections = {group: command.add_argument_group(group) for group in groups}
    for flags in flags_by_fields.values():
        fields = fields_by_flag[flags[0]]
        _add_flag(sections[fields[0].group], flags, fields)


def _add_flag(section: Any, flags: list[str], fields: list[SettingField]) -> None:
    field = fields[0]
    annotation = field.info.annotation
    common: dict[str, Any] = {"dest": flags[0], "default": argparse.SUPPRESS, "help": _help(fields)}
    if annotation is bool:
        section.add_argument(*flags, action=argparse.BooleanOptionalAction, **common)
    elif annotation == tuple[str, ...]:
        section.add_argument(*flags, nargs="+", action="extend", metavar=_metavar(field), **common)
    else:
        section.add_argument(*flags, metavar=field.name.upper(), **common)


def _metavar(field: SettingField) -> str:
    """What one of a list's words is."""
    return "PATH" if field.name.endswith("path") else "NAME=VALUE"


def _is_shared(fields: list[SettingField]) -> bool:
    """True for a flag that captions and enhancement share."""
    return "caption_enhancement" in {one.group for one in fields} and len(fields) > 1


def _help(fields: list[SettingField]) -> str:
    """What a flag does, what it allows and what holds without it."""
    field = fields[0]
    default = SCRIPT_DEFAULTS.get(field.path, field.info.default)
    text = field.info.description or ""
    if _is_shared(fields):
        text += ", in all stages"
    if field.is_bounded:
        text += f"; {field.allowed}"
    if isinstance(default, bool):
        shown = "on" if default is not field.negated else "off"
    else:
        shown = str(default) if default else "none"
    return f"{text} (default: {shown})".replace("%", "%%")


def _java() -> None:
    """Refuses to start without Java, in words; Spark's own message is a stack trace."""
    if "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    advice = "install Java 17 or 21 and put it on PATH, or set JAVA_HOME to its folder"
    if not shutil.which(java):
        where = f"JAVA_HOME={home!r} has no bin/java" if home else "there is no java on PATH"
        raise SettingsError(f"Java is missing: {where}; {advice}")
    said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60).stderr
    version = re.search(r'version "(\d+)', said)
    if not version or int(version.group(1)) < MIN_JAVA:
        raise SettingsError(f"{java} is {said.splitlines()[0] if said else 'no Java'}; {advice}")
    try:
        import pyspark  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "pyspark is missing: run on a cluster that brings it, or install captionlake[local]"
        ) from error


def _worker_error(error: Exception) -> str | None:
    """Our own error out of a failed task's stack traces; None where it is none of ours."""
    found = re.search(r"conf\.errors\.(\w+): (.+?)(?:\n\s*at |\n\n|\Z)", str(error), re.DOTALL)
    return found.group(2).strip() if found else None


def _refused(text: str, code: int) -> int:
    sys.stderr.write(f"captionlake: error: {text}\n")
    return code
