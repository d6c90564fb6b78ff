"""What runs the frozen encoder: torch, ONNX Runtime or OpenVINO, all behind `protocol.Runtime`."""
