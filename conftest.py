"""Names the plugins of fixtures/, and nothing else."""

pytest_plugins = ["fixtures.plugin"]
