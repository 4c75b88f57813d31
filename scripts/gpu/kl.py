#!/usr/bin/env python3
"""Holds a model's logits and greedy tokens beside transformers': kl.py JITUNE FOLDER|FILE.gguf BUNDLE

Over all positions of a few prompts of random tokens, the mean Kullback-Leibler divergence of jitune's distribution from that of transformers in f32 is to
be no more than that of transformers in bf16. Of the greedy answers to them, where the first token differs, each is to be among the other's five
likeliest there. Exit code 1 where it is not so. Needs torch and transformers, and for GGUF files gguf; runs on a GPU where there is one.
"""
import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import warnings

os.environ["TQDM_DISABLE"] = "1"
import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("jitune")
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("bundle")
parser.add_argument("-o", "--output", type=pathlib.Path, required=True, help="a folder for what jitune says")
parser.add_argument("--target", default="cuda")
parser.add_argument("--dtype", default="bf16", help="jitune's")
parser.add_argument("--prompts", type=int, default=4)
parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
parser.add_argument("--tokens", type=int, default=64, help="tokens of a greedy answer")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--texts", type=pathlib.Path, help="take the prompts from a file such as smollm2.json: their ids and answers")
args = parser.parse_args()

transformers.logging.set_verbosity_error()
warnings.filterwarnings("ignore")
# A product in f32 is one, with no mantissa shortened.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
torch.set_float32_matmul_precision("highest")
device = "cuda" if torch.cuda.is_available() else "cpu"
TOP = 5


def net(dtype, attention):
    if args.model.suffix == ".gguf":
        load = {"pretrained_model_name_or_path": str(args.model.parent), "gguf_file": args.model.name}
    else:
        load = {"pretrained_model_name_or_path": str(args.model)}
    return transformers.AutoModelForCausalLM.from_pretrained(**load, dtype=dtype, attn_implementation=attention).eval().to(device)


def log_probabilities(net, ids):
    """Of the token after each of a prompt, kept by the host in f32."""
    with torch.no_grad():
        return net(torch.tensor([ids], device=device)).logits[0].double().log_softmax(-1).float().cpu()


def greedy(net, ids):
    """The answer, and the likeliest tokens at each of its places."""
    answer, top, cache, new = [], [], None, ids
    with torch.no_grad():
        for _ in range(args.tokens):
            out = net(torch.tensor([new], device=device), past_key_values=cache, use_cache=True)
            cache, last = out.past_key_values, out.logits[0, -1]
            new = [int(last.argmax())]
            answer += new
            top.append(last.topk(TOP).indices.tolist())
    return answer, top


def ours(ids, most, name):
    """jitune's log-probabilities of the token after each of a prompt, and its greedy answer."""
    logits = args.output / f"{name}.f32"
    command = [args.jitune, "run", "--model", str(args.model), "--target", args.target, "--dtype", args.dtype, "--bundle", args.bundle, "--ids",
               ",".join(map(str, ids)), "--max-tokens", str(most), "--temperature", "0", "--ignore-eos", "--json", "--logits", str(logits)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"jitune: exit code {done.returncode}: {done.stderr.strip()[-400:]}")
    rows = torch.frombuffer(bytearray(logits.read_bytes()), dtype=torch.float32).reshape(len(ids), -1)
    logits.unlink()
    (args.output / f"{name}.json").write_text(done.stdout)
    return rows.double().log_softmax(-1).float(), json.loads(done.stdout)["ids"]


def divergence(p, q):
    """KL(p || q) at each position."""
    total = []
    for a, b in zip(p.split(64), q.split(64)):
        a, b = a.to(device).double(), b.to(device).double()
        total.append((a.exp() * (a - b)).sum(-1).cpu())
    return torch.cat(total)


def place(likely, token):
    return f"number {likely.index(token) + 1}" if token in likely else f"beyond the {TOP} likeliest"


args.output.mkdir(parents=True, exist_ok=True)
config = transformers.AutoConfig.from_pretrained(args.model.parent, gguf_file=args.model.name) if args.model.suffix == ".gguf" else \
    transformers.AutoConfig.from_pretrained(args.model)
if args.texts:
    prompts = [p["ids"] + p["tokens"] for p in json.loads(args.texts.read_text())["prompts"]]
else:
    numbers = torch.Generator().manual_seed(args.seed)
    prompts = [torch.randint(0, config.vocab_size, (args.length,), generator=numbers).tolist() for _ in range(args.prompts)]
what = torch.cuda.get_device_name() if device == "cuda" else "the processor"
print(f"{args.model.name}: transformers {transformers.__version__} and torch {torch.__version__} on {what}, {len(prompts)} prompts, "
      f"{sum(map(len, prompts))} positions")

peer = net(torch.float32, "sdpa")
exact = [log_probabilities(peer, ids) for ids in prompts]
answers = [greedy(peer, ids) for ids in prompts]
entropy = torch.cat([-(p.double().exp() * p.double()).sum(-1) for p in exact]).mean()
print(f"entropy of the f32 distributions: mean {entropy:.2f} of at most {math.log(config.vocab_size):.2f} nats")
del peer

found = {}
for name, attention in (("transformers bf16, sdpa", "sdpa"), ("transformers bf16, eager", "eager")):
    peer = net(torch.bfloat16, attention)
    found[name] = torch.cat([divergence(p, log_probabilities(peer, ids)) for p, ids in zip(exact, prompts)])
    del peer
said = [ours(ids, args.tokens, f"prompt-{number}") for number, ids in enumerate(prompts)]
mine = f"jitune {args.dtype}"
found[mine] = torch.cat([divergence(p, q) for p, (q, _) in zip(exact, said)])

failed = False
print(f"\n{'KL(f32 || ...), nats':28}  {'mean':>9}  {'median':>9}  {'p99':>9}  {'max':>9}")
for name, values in found.items():
    print(f"{name:28}  {values.mean():9.2e}  {values.median():9.2e}  {values.quantile(0.99):9.2e}  {values.max():9.2e}")
# transformers takes sdpa where nothing is said.
most, value = found["transformers bf16, sdpa"].mean(), found[mine].mean()
# A distribution that is no number is not within anything.
good = bool(value <= most)
failed |= not good
print(f"{'ok' if good else 'MISS'} {value / most:.3f} of transformers' divergence (limit 1)")

print(f"\ngreedy answers of {args.tokens} tokens beside transformers in f32")
for number, (ids, (theirs, top), (_, mine)) in enumerate(zip(prompts, answers, said)):
    at = next((i for i, (a, b) in enumerate(zip(theirs, mine)) if a != b), None)
    if at is None:
        same = len(mine) == len(theirs)
        failed |= not same
        print(f"prompt {number}: {'ok  the same' if same else 'MISS of another length'}")
        continue
    rows, _ = ours(ids + mine[:at], 1, f"prompt-{number}-at-{at}")
    likely = rows[-1].topk(TOP).indices.tolist()
    good = mine[at] in top[at] and theirs[at] in likely
    failed |= not good
    print(f"prompt {number}: {'ok  ' if good else 'MISS'} token {at} is the first other one: {mine[at]} is {place(top[at], mine[at])} there, "
          f"{theirs[at]} is {place(likely, theirs[at])} here")
sys.exit(1 if failed else 0)
