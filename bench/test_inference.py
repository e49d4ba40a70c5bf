"""How fast, and how well, a trained network predicts images that it has not seen, read from the storage."""

from dnnbench.workloads import Inferring


def test_inference(measure, storage, held_out, held_out_loader, predictor, framework):
    measure(Inferring(storage, held_out, held_out_loader, predictor, f"{framework} infer"))
