"""Names the plugins of fixtures/, and nothing else."""

pytest_plugins = [
    "fixtures.session",
    "fixtures.options",
    "fixtures.ranks",
    "fixtures.axes",
    "fixtures.journal",
    "fixtures.storages",
    "fixtures.loaders",
    "fixtures.measure",
    "fixtures.results",
    "fixtures.baseline",
    "fixtures.table",
    "fixtures.spreadsheet",
]
