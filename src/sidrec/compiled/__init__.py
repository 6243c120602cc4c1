"""A generator's search as one ONNX graph, for answers without PyTorch's dispatch."""
