"""The same plan as ONNX models."""
