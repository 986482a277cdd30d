# Hugging Face's side of bench/generate.mjs: rates of one thread's processor time as one line of JSON.
import json
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
torch.manual_seed(1)


def seconds(run, rounds):
    run()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return min(times)


n = 2048
a, b = torch.randn(n, n), torch.randn(n, n)
gflops = 2 * n**3 / seconds(lambda: a @ b.T, 5) / 1e9
# d128 of bench/models.ts, its T loops of L blocks unrolled to Llama's blocks
config = LlamaConfig(
    vocab_size=128, hidden_size=128, intermediate_size=352, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=4,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
)
model = LlamaForCausalLM(config).eval()
prompts = torch.tensor([[(i * 31 + j * 17 + i * j) % 128 for j in range(16)] for i in range(512)])
options = dict(attention_mask=torch.ones_like(prompts), max_new_tokens=24, min_new_tokens=24, do_sample=True, top_k=0)
with torch.inference_mode():
    taken = seconds(lambda: model.generate(prompts, **options), 3)
print(json.dumps({"tokens": 512 * 24 / taken, "gflops": gflops}))
