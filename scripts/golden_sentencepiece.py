"""A small SentencePiece tokenizer and what it says of some texts: tests/golden/sentencepiece.json.

`pip install sentencepiece`, then `python3 scripts/golden_sentencepiece.py`. It is trained as those of Llama 2 and Mistral were: pairs of
bytes merged (BPE), bytes for what it does not know, a space put before a text, and spaces kept as they are.
"""
import json
import pathlib
import tempfile

import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEXTS = [
    "Hello world",
    "The kernels of a step are captured into one graph.",
    " begins with a space",
    "two  spaces,   three\tand a tab\nand a new line",
    "naïve 猫 🦀, é",
    "x",
    " ",
    "1234567890 3.14",
    "1 < s > 2 is no token",
    "a" * 40,
]


def main():
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder) / "m"
        sentencepiece.SentencePieceTrainer.train(
            input=str(ROOT / "docs" / "templates.md"), model_prefix=str(model), model_type="bpe", vocab_size=600, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
            split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2,
        )
        tokens = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    kinds = []
    for i in range(len(tokens)):
        is_a = [(tokens.is_unknown, 2), (tokens.is_control, 3), (tokens.is_unused, 5), (tokens.is_byte, 6)]
        kinds.append(next((kind for test, kind in is_a if test(i)), 1))
    texts = [{"text": text, "ids": tokens.encode(text), "decoded": tokens.decode(tokens.encode(text))} for text in TEXTS]
    golden = {
        "pieces": [tokens.id_to_piece(i) for i in range(len(tokens))],
        "scores": [tokens.get_score(i) for i in range(len(tokens))],
        "kinds": kinds,
        "texts": texts,
    }
    path = ROOT / "tests" / "golden" / "sentencepiece.json"
    path.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
