"""Writes an exported model as an ONNX file with the same outputs."""
