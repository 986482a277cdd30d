"""Compares looplm's GGUF reader with Python's package gguf, an independent writer, reader and definition of the block types.

    python3 -m venv VENV && VENV/bin/pip install gguf==0.19.0
    VENV/bin/python tools/gguf-check.py         # in a built checkout

For every type it writes a small Ouro model with gguf.GGUFWriter, and compares all parameters that looplm loads with
gguf.dequantize, bit for bit. Then it reads a file of test/gguf-file.ts with gguf.GGUFReader.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
V, D, F, LAYERS, HEADS, KV, HEAD = 40, 256, 512, 2, 4, 2, 64
WRITTEN = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]  # gguf quantizes to these
RANDOM = ["Q4_K", "Q5_K", "Q6_K"]  # and only reads these


def shapes():
    yield "model.embed_tokens.weight", "token_embd.weight", (V, D)
    for i in range(LAYERS):
        for name, short, shape in [
            ("self_attn.q_proj", "attn_q", (HEADS * HEAD, D)),
            ("self_attn.k_proj", "attn_k", (KV * HEAD, D)),
            ("self_attn.v_proj", "attn_v", (KV * HEAD, D)),
            ("self_attn.o_proj", "attn_output", (D, HEADS * HEAD)),
            ("mlp.gate_proj", "ffn_gate", (F, D)),
            ("mlp.up_proj", "ffn_up", (F, D)),
            ("mlp.down_proj", "ffn_down", (D, F)),
            ("input_layernorm", "attn_norm", (D,)),
            ("input_layernorm_2", "post_attention_norm", (D,)),
            ("post_attention_layernorm", "ffn_norm", (D,)),
            ("post_attention_layernorm_2", "post_ffw_norm", (D,)),
        ]:
            yield f"model.layers.{i}.{name}.weight", f"blk.{i}.{short}.weight", shape
    yield "model.norm.weight", "output_norm.weight", (D,)
    yield "lm_head.weight", "output.weight", (V, D)


def turned(matrix):
    """The rows of queries or keys as llama.cpp orders them: the two halves of a head in turns."""
    rows = matrix.reshape(-1, 2, HEAD // 2, matrix.shape[-1])
    return rows.swapaxes(1, 2).reshape(matrix.shape)


def straight(matrix):
    rows = matrix.reshape(-1, HEAD // 2, 2, matrix.shape[-1])
    return rows.swapaxes(1, 2).reshape(matrix.shape)


def write(path, type_name, rng):
    """Writes a model; returns its values by published name."""
    kind = gguf.GGMLQuantizationType[type_name]
    writer = gguf.GGUFWriter(path, "ouro")
    writer.add_context_length(128)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(F)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(V)
    writer.add_uint32("ouro.num_loops", 3)
    writer.add_bool("ouro.skip_loop_final_norm", False)
    values = {}
    for published, name, shape in shapes():
        plain = rng.normal(0, 0.1, shape).astype(np.float32)
        permuted = "attn_q" in name or "attn_k" in name
        if len(shape) == 1:
            writer.add_tensor(name, 1 + plain)
            values[published] = 1 + plain
            continue
        data = turned(plain) if permuted else plain
        if type_name in RANDOM:
            block, size = gguf.GGML_QUANT_SIZES[kind]
            bytes_ = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
            scale = np.float16(rng.uniform(0.0001, 0.001, bytes_.shape[:2])).view(np.uint8).reshape(*bytes_.shape[:2], 2)
            places = [208] if type_name == "Q6_K" else [0, 2]
            for place in places:
                bytes_[:, :, place : place + 2] = scale
            stored = bytes_.reshape(shape[0], -1)
        else:
            stored = gguf.quantize(data, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
        expected = gguf.dequantize(stored, kind).astype(np.float32).reshape(shape)
        values[published] = straight(expected) if permuted else expected
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def node(code, *arguments):
    command = ["node", "--no-warnings", "--input-type=module", "-e", code, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


LOAD = """
import { writeFileSync } from 'node:fs'
import { LoopLM } from './dist/src/index.js'
const [path, out] = process.argv.slice(1)
const kept = []
for (const options of [{ device: 'reference', dequantize: true }, { device: 'cpu', dtype: 'float32' }]) {
  const model = await LoopLM.fromPretrained(path, options)
  kept.push(model.quantization ?? null)
  for (const { name } of model.parameters())
    writeFileSync(`${out}/${options.device}-${name}`, Float32Array.from(await model.getParameter(name)))
}
console.log(JSON.stringify(kept))
"""

WRITE = """
const [path, writer] = process.argv.slice(1)
const { ggufMetadata, randomData, valuesOf, writeGguf } = await import(writer)
const types = ['F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0', 'Q4_K', 'Q5_K', 'Q6_K']
const entries = types.map((type, i) => ({ name: `t.${type}`, type, shape: [3, 512], data: randomData(type, 1536, i) }))
await writeGguf(path, ggufMetadata('ouro', { hidden_size: 32, num_attention_heads: 2, vocab_size: 9, num_hidden_layers: 1,
  intermediate_size: 32 }), entries, 64)
console.log(JSON.stringify(entries.map(({ type, data }) => Array.from(valuesOf(type, data)))))
"""


def main():
    failures = 0
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        for type_name in WRITTEN + RANDOM:
            path = f"{folder}/{type_name}.gguf"
            values = write(path, type_name, rng)
            kept = json.loads(node(LOAD, path, folder))
            equal = {
                device: all(
                    np.array_equal(np.fromfile(f"{folder}/{device}-{name}", np.float32).reshape(value.shape), value)
                    for name, value in values.items()
                )
                for device in ("reference", "cpu")
            }
            failures += not all(equal.values())
            print(f"{type_name:5} {len(values)} parameters equal: {equal}; codes kept on cpu: {kept[1]}")
        path = f"{folder}/ours.gguf"
        writer = f"{folder}/writer.mjs"
        bundle = ["npx", "esbuild", "test/gguf-file.ts", "--bundle", "--platform=node", "--format=esm", f"--outfile={writer}"]
        subprocess.run(bundle, cwd=ROOT, check=True, capture_output=True)
        expected = json.loads(node(WRITE, path, writer))
        reader = gguf.GGUFReader(path)
        for tensor, want in zip(reader.tensors, expected, strict=True):
            got = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).ravel()
            same = np.array_equal(got, np.array(want, np.float32))
            failures += not same
            print(f"read by gguf: {tensor.name} {'equal' if same else 'DIFFERS'}")
    sys.exit(1 if failures else 0)


main()
