"""ONNX graphs of the two pipelines, built from a model's configuration and weights."""
