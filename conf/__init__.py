"""Settings, prompts and defaults: the only place where a default is written down."""

CAPTIONLAKE = "conf"
