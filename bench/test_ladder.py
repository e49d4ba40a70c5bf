"""Which layer limits a training: storage, client, decoding, loader or network. Each is measured with those below it."""


def test_ladder(measure, ladder):
    measure(ladder)
