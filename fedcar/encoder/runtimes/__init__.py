"""What runs the frozen encoder: torch, ONNX Runtime or OpenVINO, all behind `encoder.reading.Runtime`.

What other folders take:
    choice.chosen: The name of the runtime for this model; with `auto` measured on these texts where nothing is
        remembered.
    choice.fastest: Run every installed runtime on some of the texts; the fastest that agrees.
    choice.runtime: The model in that runtime, made once.
    names.EXACT: the name of float32 in torch, the reference for all others.
    names.NAMES: every runtime that --runtime takes.
    names.use: Encode with this runtime from now on, or `auto`: the fastest whose mean cosine with float32 is
        `agreement`.
    onnx.OnnxRuntime: Runs a file that `runtime.onnx_file.write` made; threads follow OMP_NUM_THREADS, by default
        all cores.
    onnx_file.PRECISIONS: the precisions of an ONNX file.
    onnx_file.write: Write the model; with an adapter without it and with it, the blocks' weights once.
    torch_float32.TorchFloat32: Runs a transformer, the model's own or one that shares its weights; with `twice`
        each batch two times over.
"""
