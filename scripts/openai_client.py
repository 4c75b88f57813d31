#!/usr/bin/env python3
"""Drives a server by the package `openai`, as most clients do, and fails where it is not served.

    pip install openai
    jitune serve --model ./my-model &
    python3 scripts/openai_client.py http://127.0.0.1:8080/v1

The model must have a tokenizer and a chat template.
"""

import argparse
import math

import openai

MESSAGES = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
]


def refused(kind, call):
    try:
        call()
    except kind as e:
        assert isinstance(e.body, dict) and e.body["message"] and "type" in e.body, e.body
        return e
    raise AssertionError(f"{kind.__name__} was to be raised")


def models(client):
    listed = [m.id for m in client.models.list()]
    assert len(listed) == 1, listed
    assert client.models.retrieve(listed[0]).id == listed[0]
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))
    return listed[0]


def chat(client, model):
    ask = dict(model=model, messages=MESSAGES, max_completion_tokens=12, temperature=0, seed=1)
    whole = client.chat.completions.create(**ask)
    choice, usage = whole.choices[0], whole.usage
    assert choice.message.role == "assistant" and choice.message.content, whole
    assert choice.finish_reason in ("stop", "length"), whole
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens, usage
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == usage.completion_tokens, chunks[-1]
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == choice.message.content, (text, choice.message.content)
    assert len(chunks) == usage.completion_tokens + 2, len(chunks)
    several = client.chat.completions.create(**ask, n=2)
    assert [c.index for c in several.choices] == [0, 1], several
    assert all(c.message.content == text for c in several.choices), several
    print("chat:", repr(text))


def completion(client, model):
    ask = dict(model=model, prompt=["The capital of France is", "1, 2, 3, 4,"], max_tokens=8, temperature=0)
    whole = client.completions.create(**ask)
    texts = [c.text for c in whole.choices]
    assert len(texts) == 2 and "Paris" in texts[0], texts
    streamed = ["", ""]
    for chunk in client.completions.create(**ask, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts, (streamed, texts)
    stopped = client.completions.create(**{**ask, "prompt": ask["prompt"][0]}, stop=["ris"])
    assert stopped.choices[0].text == texts[0].split("ris")[0] and stopped.choices[0].finish_reason == "stop", stopped
    print("completions:", texts)


def logprobs(client, model):
    """Both forms, where the engine tells log-probabilities."""
    ask = dict(model=model, max_tokens=4, temperature=0)
    told = client.completions.create(**ask, prompt="The capital of France is", logprobs=3).choices[0]
    if told.logprobs is None:
        print("logprobs: none told")
        return
    assert len(told.logprobs.tokens) == len(told.logprobs.token_logprobs) == 4, told
    for chosen, top in zip(told.logprobs.token_logprobs, told.logprobs.top_logprobs):
        assert chosen <= 0 and math.isclose(chosen, max(top.values()), abs_tol=1e-4) and 3 <= len(top) <= 4, told
    assert told.logprobs.text_offset == sorted(told.logprobs.text_offset), told
    told = client.chat.completions.create(**ask, messages=MESSAGES, logprobs=True, top_logprobs=2).choices[0]
    for token in told.logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2, token
        assert token.logprob <= token.top_logprobs[0].logprob + 1e-4, token
    print("logprobs:", [t.token for t in told.logprobs.content])


def errors(client, model, url, key):
    wrong = lambda **more: client.completions.create(**{"model": model, "prompt": "a", "max_tokens": 2, **more})
    e = refused(openai.BadRequestError, lambda: wrong(temperature=9))
    assert e.param == "temperature", e.param
    e = refused(openai.BadRequestError, lambda: wrong(prompt="word " * 20_000))
    assert e.code == "context_length_exceeded", e.code
    refused(openai.NotFoundError, lambda: wrong(model="no-such-model"))
    if key:
        stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
        refused(openai.AuthenticationError, lambda: stranger.models.list())
    print("errors: as they should be")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--key", help="the server's key, if it has one")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.url, api_key=args.key or "none", max_retries=0)
    model = models(client)
    chat(client, model)
    completion(client, model)
    logprobs(client, model)
    errors(client, model, args.url, args.key)
    print(f"openai {openai.__version__}: {model} is served")


if __name__ == "__main__":
    main()
