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
# Where a block's f16 values lie, and its length in bytes.
BLOCK_TYPES = {
    T.Q8_0: ([0], 34),
    T.Q4_0: ([0], 18),
    T.Q4_1: ([0, 2], 20),
    T.Q5_0: ([0], 22),
    T.Q5_1: ([0, 2], 24),
    T.Q4_K: ([0, 2], 144),
    T.Q5_K: ([0, 2], 176),
    T.Q6_K: ([208], 210),
}


def main():
    rng = np.random.default_rng(34)
    f16 = rng.integers(0, 2**16, 256, dtype=np.uint16)
    f16 = f16[(f16 & 0x7C00) != 0x7C00][:224].copy()
    bf16 = rng.integers(0, 2**16, 256, dtype=np.uint16)
    bf16 = bf16[(bf16 & 0x7F80) != 0x7F80][:224].copy()
    stored = {
        T.F32: rng.standard_normal(64).astype(np.float32),
        T.F16: f16.view(np.float16),
        T.BF16: bf16.view(np.uint8),
    }
    for weight_type, (halves, length) in BLOCK_TYPES.items():
        blocks = rng.integers(0, 256, (BLOCKS, length), dtype=np.uint8)
        for at, values in zip(halves, [SCALES, MINIMA]):
            blocks[:, at : at + 2] = values.view(np.uint8).reshape(BLOCKS, 2)
        stored[weight_type] = blocks.reshape(-1)
    rows = []
    for weight_type, data in stored.items():
        values = quants.dequantize(data, weight_type).astype(np.float32)
        rows.append({"weight_type": weight_type.name, "bytes": data.tobytes().hex(), "bits": values.view(np.uint32).tolist()})
    target = Path(__file__).with_name("dequantize.json")
    target.write_text("[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
    print(target, target.stat().st_size, "bytes")


main()
