"""An exported model as an ONNX file that answers as it does."""
