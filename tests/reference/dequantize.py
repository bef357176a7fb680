"""Writes dequantize.json: stored weights of each type and the f32 bits that the `gguf` package makes of them.

    python tests/reference/dequantize.py     needs: gguf, numpy
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T, quants

BLOCKS = 8
# Ordinary, negative, largest, subnormal and zero scales.
SCALES = np.array([0.0117, -0.5, 65504.0, 6e-8, 0.0, 1.0, -3.3e-5, 0.333], dtype=np.float16)
MINIMA = np.array([-0.09, 2.5, -65504.0, 6e-8, 1.0, -0.0, 4.4e-5, -7.0], dtype=np.float16)


def main():
    rng = np.random.default_rng(34)
    f16 = rng.integers(0, 2**16, 256, dtype=np.uint16)
    f16 = f16[(f16 & 0x7C00) != 0x7C00][:224].copy()
    bytes_of = lambda array: np.frombuffer(array.tobytes(), dtype=np.uint8)
    quants8 = rng.integers(0, 256, (BLOCKS, 32), dtype=np.uint8)
    quants8[0, :2] = [0x80, 0x7F]
    quants4 = rng.integers(0, 256, (BLOCKS, 16), dtype=np.uint8)
    stored = {
        T.F32: bytes_of(rng.standard_normal(64).astype(np.float32)),
        T.F16: bytes_of(f16),
        T.Q8_0: np.concatenate([SCALES.view(np.uint8).reshape(BLOCKS, 2), quants8], axis=1).reshape(-1),
        T.Q4_1: np.concatenate(
            [SCALES.view(np.uint8).reshape(BLOCKS, 2), MINIMA.view(np.uint8).reshape(BLOCKS, 2), quants4], axis=1
        ).reshape(-1),
    }
    rows = []
    for weight_type, data in stored.items():
        if weight_type in (T.F32, T.F16):
            data = data.view(np.float32 if weight_type == T.F32 else np.float16)
        values = quants.dequantize(data, weight_type).astype(np.float32)
        rows.append({"weight_type": weight_type.name, "bytes": data.tobytes().hex(), "bits": values.view(np.uint32).tolist()})
    target = Path(__file__).with_name("dequantize.json")
    target.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
    print(target, target.stat().st_size, "bytes")


main()
