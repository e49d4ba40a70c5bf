"""The fastest accelerator, emulated, that the storage keeps busy to 90 %, as MLPerf Storage counts it."""


def test_accelerator(measure, accelerator):
    measure(accelerator)
