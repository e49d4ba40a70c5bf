"""The knee, with ``--dnn-autoscale``: reads in flight, or loader workers, doubled until there is no more to gain."""


def test_autoscale_read(measure, read_knee):
    measure(read_knee)


def test_autoscale_loader(measure, loader_knee):
    measure(loader_knee)
