"""What a retriever becomes for other programs: a stock model, ONNX, a bundle without torch."""
