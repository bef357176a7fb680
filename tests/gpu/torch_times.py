#!/usr/bin/env python3
"""What PyTorch takes for the same shapes on the same GPU: a Llama-3-8B-shaped decode step and paged-size attention.

Times are medians over replays of a CUDA graph, taken with CUDA events after a warm-up, inputs random. Prints one line each
and writes them as JSON to the file that is named. `--device cpu` runs tiny shapes once, to see that the script works.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

HEAD_DIM = 128
NUM_Q_HEADS = 32


class Shape:
    """Of the model; `tiny` is for a dry run."""

    def __init__(self, tiny):
        self.hidden = 256 if tiny else 4096
        self.ffn = 512 if tiny else 14336
        self.layers = 2 if tiny else 32
        self.vocab = 512 if tiny else 128256
        self.q_heads = 4 if tiny else NUM_Q_HEADS
        self.kv_heads = 2 if tiny else 8
        self.head_dim = 64 if tiny else HEAD_DIM


def random(device, *sizes, scale=0.02):
    return torch.randn(*sizes, device=device, dtype=torch.bfloat16) * scale


class Layer:
    def __init__(self, shape, device):
        q, kv = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.qkv = random(device, q + 2 * kv, shape.hidden)
        self.out = random(device, shape.hidden, q)
        self.gate_up = random(device, 2 * shape.ffn, shape.hidden)
        self.down = random(device, shape.hidden, shape.ffn)
        self.norms = [torch.ones(shape.hidden, device=device, dtype=torch.bfloat16) for _ in range(2)]


class Model:
    def __init__(self, shape, batch, context, device, weights=None):
        self.shape, self.batch, self.context = shape, batch, context
        self.layers = weights or [Layer(shape, device) for _ in range(shape.layers)]
        self.head = random(device, shape.vocab, shape.hidden)
        sizes = (batch, shape.kv_heads, context, shape.head_dim)
        self.cells = [(random(device, *sizes, scale=1), random(device, *sizes, scale=1)) for _ in self.layers]
        angles = torch.rand(shape.head_dim // 2, device=device)
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()

    def rotate(self, x):
        even, odd = x.chunk(2, dim=-1)
        return torch.cat((even * self.cos - odd * self.sin, even * self.sin + odd * self.cos), dim=-1)

    def step(self, x):
        shape = self.shape
        q_size, kv_size = shape.q_heads * shape.head_dim, shape.kv_heads * shape.head_dim
        for layer, (keys, values) in zip(self.layers, self.cells):
            normed = F.rms_norm(x, (shape.hidden,), layer.norms[0])
            q, k, v = F.linear(normed, layer.qkv).split((q_size, kv_size, kv_size), dim=-1)
            q = self.rotate(q.view(self.batch, shape.q_heads, 1, shape.head_dim))
            k = self.rotate(k.view(self.batch, shape.kv_heads, 1, shape.head_dim))
            keys[:, :, -1:] = k
            values[:, :, -1:] = v.view(self.batch, shape.kv_heads, 1, shape.head_dim)
            attended = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
            x = x + F.linear(attended.reshape(self.batch, q_size), layer.out)
            normed = F.rms_norm(x, (shape.hidden,), layer.norms[1])
            gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer.down)
        return F.linear(x, self.head).argmax(dim=-1)


def time_us(device, work, repeats):
    """The median time of one call of `work`, in microseconds."""
    if device == "cpu":
        begun = time.perf_counter()
        work()
        return (time.perf_counter() - begun) * 1e6
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(times)


def copy_gb_s(device, tiny):
    num_bytes = 1 << 20 if tiny else 4 << 30
    source = torch.randint(0, 255, (num_bytes,), device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * num_bytes / time_us(device, lambda: target.copy_(source), 20) / 1e3


def decode_times(device, tiny, shape):
    weights = [Layer(shape, device) for _ in range(shape.layers)]
    times = {}
    for batch in (1, 8, 64):
        model = Model(shape, batch, 64 if tiny else 512, device, weights)
        x = random(device, batch, shape.hidden, scale=1)
        times[f"decode_batch_{batch}_us"] = time_us(device, lambda: model.step(x), 20)
        del model
    return times


def attention_times(device, tiny):
    batch, context = (2, 64) if tiny else (64, 2048)
    times = {}
    for group in (1, 2, 4, 8, 16, 32):
        sizes = (batch, NUM_Q_HEADS // group, context, HEAD_DIM)
        keys, values = random(device, *sizes, scale=1), random(device, *sizes, scale=1)
        q = random(device, batch, NUM_Q_HEADS, 1, HEAD_DIM, scale=1)
        work = lambda: F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
        times[f"attention_group_{group}_us"] = time_us(device, work, 20)
        del keys, values
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", required=True)
    arguments = parser.parse_args()
    tiny = arguments.device == "cpu"
    torch.manual_seed(time.time_ns())
    with torch.inference_mode():
        numbers = {"copy_gb_s": copy_gb_s(arguments.device, tiny)}
        numbers |= attention_times(arguments.device, tiny)
        numbers |= decode_times(arguments.device, tiny, Shape(tiny))
    for name, number in numbers.items():
        print(f"torch {name:<28} {number:12.1f}")
    with open(arguments.json, "w") as file:
        json.dump({"torch": torch.__version__, "device": arguments.device, **numbers}, file, indent=1)


if __name__ == "__main__":
    main()
