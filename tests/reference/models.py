"""Writes models/: small random models of every architecture and weight type, as GGUF files and as safetensors folders,
and models.json: the logits that transformers computes from the same weights in f32.

    python tests/reference/models.py     needs: torch, transformers, gguf, safetensors, numpy (versions in models.json)
"""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import safetensors
import torch
import transformers
from gguf import GGMLQuantizationType as T
from gguf import quants
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = Path(__file__).parent
FOLDER = HERE / "models"
VOCAB = 264
TOKENS = [(7 + 31 * i * i + i) % VOCAB for i in range(40)]
# Whose logits are kept.
POSITIONS = [0, 17, 39]
SMALL = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=32)
# Rows that stored blocks of 256 columns fill. A KV head's columns of the output projection cut such a block.
WIDE = dict(hidden_size=256, intermediate_size=256, num_attention_heads=8, num_key_value_heads=2, head_dim=32)
# 384 columns for each KV head.
WIDE_384 = dict(hidden_size=256, intermediate_size=256, num_attention_heads=6, num_key_value_heads=2, head_dim=128)
K_TYPES = [T.Q4_K, T.Q5_K, T.Q6_K]
SMALL_TYPES = [T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1]
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, gguf.MODEL_ARCH.LLAMA),
    "mistral": (MistralConfig, MistralForCausalLM, gguf.MODEL_ARCH.LLAMA),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, gguf.MODEL_ARCH.QWEN2),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, gguf.MODEL_ARCH.QWEN3),
}
# As files of mixed types have them: integers and floats read the same input.
MIXED = {
    "embed_tokens": T.Q5_1,
    "lm_head": T.Q8_0,
    "q_proj": T.Q5_0,
    "k_proj": T.F16,
    "v_proj": T.Q6_K,
    "o_proj": T.Q5_K,
    "gate_proj": T.Q4_K,
    "up_proj": T.Q4_0,
    "down_proj": T.Q6_K,
}
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)


def make(family, seed, sizes, layers=2, **extra):
    """A model in f32 with weights of which none is close to nothing: norms and biases, too, are random."""
    config_class, model_class, _ = FAMILIES[family]
    config = config_class(
        vocab_size=VOCAB,
        num_hidden_layers=layers,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        attn_implementation="eager",
        **sizes,
        **extra,
    )
    torch.manual_seed(seed)
    model = model_class(config).to(torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif parameter.dim() == 1:
                parameter.normal_(1, 0.2)
            else:
                parameter.normal_(0, 1.2 / parameter.shape[1] ** 0.5)
    return model


def logits(model):
    with torch.no_grad():
        rows = model(torch.tensor([TOKENS])).logits[0]
    return {str(p): [round(float(x), 6) for x in rows[p]] for p in POSITIONS}


def interleave(rows, heads):
    """Pairs of rotated dimensions side by side, as GGUF files of llama have them."""
    dim = rows.shape[0] // heads
    return rows.reshape(heads, 2, dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        return outside[name]
    _, _, layer, rest = name.split(".", 3)
    part, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"


def write_gguf(path, family, model, weight_type, rope_divisors=None):
    """Quantizes the matrices, puts what they came to back into the model, and writes the file.

    weight_type: of all matrices, or by a part of their names.
    """
    arch = gguf.MODEL_ARCH_NAMES[FAMILIES[family][2]]
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(path.stem)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(VOCAB)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = parameter.numpy().copy()
            if arch == "llama" and name.endswith(("q_proj.weight", "q_proj.bias")):
                values = interleave(values, config.num_attention_heads)
            if arch == "llama" and name.endswith(("k_proj.weight", "k_proj.bias")):
                values = interleave(values, config.num_key_value_heads)
            if values.ndim == 1:
                writer.add_tensor(gguf_name(name), values)
                continue
            of_matrix = weight_type
            if isinstance(weight_type, dict):
                of_matrix = next(kind for part, kind in weight_type.items() if part in name)
            stored = quantize(values, of_matrix)
            back = quants.dequantize(stored, of_matrix).astype(np.float32).reshape(values.shape)
            writer.add_tensor(gguf_name(name), stored, raw_dtype=of_matrix)
            if arch == "llama" and name.endswith("q_proj.weight"):
                back = halves(back, config.num_attention_heads)
            if arch == "llama" and name.endswith("k_proj.weight"):
                back = halves(back, config.num_key_value_heads)
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(back)))
    if rope_divisors is not None:
        writer.add_tensor("rope_freqs.weight", rope_divisors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def halves(rows, heads):
    """The inverse of `interleave`."""
    dim = rows.shape[0] // heads
    return rows.reshape(heads, dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def quantize(values, weight_type):
    if weight_type in K_TYPES:
        return quantize_k(values, weight_type)
    return quants.quantize(values, weight_type)


def quantize_k(values, weight_type):
    """The gguf package only reads these types: plain rounding, without the search for better scales."""
    blocks = values.reshape(-1, 256)
    n = len(blocks)
    if weight_type == T.Q6_K:
        parts = blocks.reshape(n, 16, 16)
        scale = np.abs(parts).max(2) / 31
        d = (scale.max(1) / 127).astype(np.float16)
        s = np.clip(np.round(scale / d[:, None].astype(np.float32)), 1, 127).astype(np.int8)
        step = d.astype(np.float32)[:, None] * s
        q = (np.clip(np.round(parts / step[:, :, None]), -32, 31) + 32).astype(np.uint8).reshape(n, 2, 4, 32)
        low = (q[:, :, :2] & 15) | ((q[:, :, 2:] & 15) << 4)
        high = (q >> 4 << np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]).sum(2).astype(np.uint8)
        parts = [low.reshape(n, 128), high.reshape(n, 64), s.view(np.uint8), d.view(np.uint8).reshape(n, 2)]
    else:
        most = 15 if weight_type == T.Q4_K else 31
        parts = blocks.reshape(n, 8, 32)
        minimum = np.minimum(parts.min(2), 0)
        scale = (parts.max(2) - minimum) / most
        d = (scale.max(1) / 63).astype(np.float16)
        dmin = (-minimum.min(1) / 63).astype(np.float16)
        s = np.clip(np.round(scale / d.astype(np.float32)[:, None]), 1, 63).astype(np.uint8)
        m = np.clip(np.round(-minimum / dmin.astype(np.float32)[:, None]), 0, 63).astype(np.uint8)
        step, offset = d.astype(np.float32)[:, None] * s, dmin.astype(np.float32)[:, None] * m
        q = np.clip(np.round((parts + offset[:, :, None]) / step[:, :, None]), 0, most).astype(np.uint8)
        packed = np.concatenate(
            [s[:, :4] | (s[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6), (s[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)],
            axis=1,
        )
        fifth = (q >> 4 << np.arange(8, dtype=np.uint8)[None, :, None]).sum(1).astype(np.uint8)
        nibbles = ((q[:, ::2] & 15) | ((q[:, 1::2] & 15) << 4)).reshape(n, 128)
        halves = [d.view(np.uint8).reshape(n, 2), dmin.view(np.uint8).reshape(n, 2), packed]
        parts = halves + ([fifth] if weight_type == T.Q5_K else []) + [nibbles]
    return np.concatenate(parts, axis=1).reshape(values.shape[0], -1)


def write_folder(name, model, dtype, shards=1):
    folder = FOLDER / name
    folder.mkdir()
    config = model.config.to_dict()
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype).to(torch.float32))
    tensors = {key: value.to(dtype).contiguous() for key, value in model.named_parameters()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    keys = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in keys[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= {key: file for key in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def llama3_divisors(config):
    dim, scaling = config.head_dim, LLAMA3
    frequencies = 1.0 / scaling["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    blend = (turns - low) / (high - low)
    between = 1 / ((1 - blend) / factor + blend)
    return np.where(turns > high, 1.0, np.where(turns < low, factor, between))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    expected = {}

    def keep(name, model):
        expected[name] = logits(model)

    for seed, family in enumerate(["llama", "qwen2", "qwen3"]):
        for weight_type in SMALL_TYPES:
            name = f"{family}-{weight_type.name}.gguf"
            model = make(family, seed, SMALL, tie_word_embeddings=weight_type in (T.Q4_0, T.F16))
            write_gguf(FOLDER / name, family, model, weight_type)
            keep(name, model)
        for weight_type in K_TYPES:
            name = f"{family}-{weight_type.name}.gguf"
            # Configs of llama want a hidden size that heads divide.
            sizes = WIDE_384 if family == "qwen3" else WIDE
            model = make(family, seed, sizes, layers=1, tie_word_embeddings=True)
            write_gguf(FOLDER / name, family, model, weight_type)
            keep(name, model)
    model = make("qwen2", 4, WIDE)
    write_gguf(FOLDER / "qwen2-mixed.gguf", "qwen2", model, MIXED)
    keep("qwen2-mixed.gguf", model)
    model = make("llama", 5, SMALL, rope_parameters=LLAMA3)
    write_gguf(FOLDER / "llama3-rope-F16.gguf", "llama", model, T.F16, llama3_divisors(model.config))
    keep("llama3-rope-F16.gguf", model)

    folders = {
        "llama-f32": ("llama", torch.float32, 1, dict(tie_word_embeddings=True)),
        "llama-bf16-sharded": ("llama", torch.bfloat16, 3, dict()),
        "llama-f16-biases": ("llama", torch.float16, 1, dict(attention_bias=True, mlp_bias=True)),
        "llama3-rope-f16": ("llama", torch.float16, 1, dict(rope_parameters=LLAMA3)),
        "llama-linear-rope-f16": ("llama", torch.float16, 1, dict(rope_parameters=LINEAR)),
        "mistral-bf16-window": ("mistral", torch.bfloat16, 1, dict(sliding_window=128)),
        "qwen2-f16": ("qwen2", torch.float16, 1, dict()),
        "qwen3-bf16": ("qwen3", torch.bfloat16, 2, dict(tie_word_embeddings=True)),
    }
    for seed, (name, (family, dtype, shards, extra)) in enumerate(folders.items()):
        model = make(family, 10 + seed, SMALL, **extra)
        write_folder(name, model, dtype, shards)
        keep(name, model)
    versions = {
        module.__name__: module.__version__ for module in [torch, transformers, safetensors, np]
    } | {"gguf": __import__("importlib.metadata").metadata.version("gguf")}
    lines = ["{", f'"versions": {json.dumps(versions)},', f'"tokens": {json.dumps(TOKENS)},', '"logits": {']
    lines += [f"{json.dumps(name)}: {json.dumps(rows)}," for name, rows in expected.items()]
    lines[-1] = lines[-1].rstrip(",")
    (HERE / "models.json").write_text("\n".join(lines) + "\n}}\n")
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            assert path.stat().st_size <= 2_000_000, path
    print(sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()), "bytes in", FOLDER)


main()
