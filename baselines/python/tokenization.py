#!/usr/bin/env python3
"""How fast Hugging Face's `tokenizers` is from Python: `tokenization.py TOKENIZER.json TEXT SECONDS`.

Prints one JSON object: its version, the ids of the text with what is put around it, and tokens a second of encoding and of decoding, each the
median of at least five passes over the whole text in as many seconds. Exit code 3 where the package is not there.
"""

import json
import statistics
import sys
import time


def rate(tokens, seconds, once):
    times, begun = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < seconds:
        at = time.perf_counter()
        once()
        times.append(time.perf_counter() - at)
    return tokens / statistics.median(times)


def main(file, text, seconds):
    try:
        import tokenizers
    except ImportError as e:
        print(f"this Python has no tokenizers: {e}", file=sys.stderr)
        sys.exit(3)
    tokenizer = tokenizers.Tokenizer.from_file(file)
    with open(text, encoding="utf-8") as f:
        text = f.read()
    ids = tokenizer.encode(text).ids
    encode = rate(len(ids), seconds, lambda: tokenizer.encode(text))
    decode = rate(len(ids), seconds, lambda: tokenizer.decode(ids))
    print(json.dumps({"version": tokenizers.__version__, "ids": ids, "encode": encode, "decode": decode}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
