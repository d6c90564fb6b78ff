"""Stands in for the package openvino: what it converts does, when it runs, what the environment says."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np


class Port:
    def get_tensor(self):
        return self

    def set_names(self, names):
        pass


class Converted:
    def __init__(self, graph, example):
        tokens, _, layers = graph(*example)
        self.shape = [tokens.shape[2], layers.shape[1]]
        self.inputs, self.outputs = [Port(), Port()], [Port(), Port(), Port()]


class Model:
    def __init__(self, shape):
        self.width, self.layers = shape

    def create_infer_request(self):
        return self

    def infer(self, inputs, share_outputs):
        misbehave(os.environ["FAKE_OPENVINO"])
        texts, tokens = inputs["input_ids"].shape
        value = np.nan if os.environ["FAKE_OPENVINO"] == "nan" else -1.0
        shapes = {
            "token_states": (texts, tokens, self.width),
            "pooled": (texts, self.width),
            "layers": (texts, self.layers, self.width),
        }
        return {name: np.full(shape, value, dtype=np.float32) for name, shape in shapes.items()}


class Core:
    def read_model(self, file):
        return json.loads(Path(file).read_text())

    def compile_model(self, shape, device, settings):
        return Model(shape)


def convert_model(graph, example_input):
    return Converted(graph, example_input)


def save_model(found, file, compress_to_fp16):
    Path(file).write_text(json.dumps(found.shape))


def misbehave(how):
    if how == "crash":
        os.kill(os.getpid(), signal.SIGFPE)
    if how == "hang":
        time.sleep(1e6)
    if how == "exit":
        os._exit(3)
    if how == "memory":
        kept = []
        while True:
            kept.append(np.ones(10_000_000))
            time.sleep(0.05)
    if how == "error":
        raise RuntimeError("no kernel for this shape")
