"""ONNX graphs for ncnn: bound to fixed shapes, converted by pnnx, tried out, and packed into one file."""
