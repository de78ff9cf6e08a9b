"""Every error that Captionlake raises.

The two that stop a job before any work starts (`SettingsError`, `SchemaError`) name the setting or
the column, its value and what is allowed. Row errors (`ClipError`, `PreviewError`) never stop a job:
the stage that meets one writes its message into the row.
"""


class CaptionlakeError(Exception):
    """Base of every error of this project."""


class SettingsError(CaptionlakeError):
    """Raised when a setting is unknown, out of range, or contradicts another one."""


class SchemaError(CaptionlakeError):
    """Raised when a table lacks a column, has one of another type, or breaks its key."""


class CommitError(CaptionlakeError):
    """Raised when a chunk of rows could not be committed after all tries."""


class EngineError(CaptionlakeError):
    """Raised when the engine cannot start, or has died and could not be brought back."""


class WeightsError(EngineError):
    """Raised when a model's weights are incomplete on a machine, or cannot be fetched to it."""


class RowContractError(CaptionlakeError):
    """Raised when a stage would lose, double or mix up a row."""


class ClipError(CaptionlakeError):
    """Raised when one clip cannot be read or decoded; becomes the clip's row error."""


class PreviewError(CaptionlakeError):
    """Raised when one preview cannot be made; becomes the window's row error."""
