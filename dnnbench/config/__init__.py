"""The configuration file as typed models. `load_config` reads it; `Config` is the result."""

from dnnbench.config.load import Variant, expand_settings, exposed_secrets, load_config, without_secrets
from dnnbench.config.model import (
    DEFAULT_REQUESTS,
    Config,
    ConfigError,
    Execution,
    FsStorage,
    Prices,
    Requests,
    S3Credentials,
    S3Storage,
)

__all__ = [
    "DEFAULT_REQUESTS",
    "Config",
    "ConfigError",
    "Execution",
    "FsStorage",
    "Prices",
    "Requests",
    "S3Credentials",
    "S3Storage",
    "Variant",
    "expand_settings",
    "exposed_secrets",
    "load_config",
    "without_secrets",
]
