"""The root of every error that dnnbench raises on purpose: its text is one line for the user.

DnnbenchError
├── ConfigError          the configuration file or a ``--dnn-*`` option (dnnbench.config)
├── PluginError          a class that the configuration names cannot be used (dnnbench.plugins)
├── CatalogError         what was listed is no usable data set (dnnbench.catalog)
├── MeasurementError     what was read is not what the catalog holds (dnnbench.metrics)
├── ServerError          a local server did not start (dnnbench.servers)
└── StorageError         see dnnbench.storage.errors
"""

from __future__ import annotations


class DnnbenchError(Exception):
    """An error whose message says, in one line, what is wrong and what to do."""


class MeasurementError(DnnbenchError):
    """What was read does not agree with the catalog, so no figure may be published."""
