"""OpenAI's own client against a cluster: only the URL is another.

    pip install openai
    kvasir up --model MODEL.gguf --workers 2 --http 127.0.0.1:8000
    python examples/python/openai_chat.py http://127.0.0.1:8000/v1 "What is a fjord?"
"""

import sys

from openai import OpenAI


def main(url, question):
    client = OpenAI(base_url=url, api_key="none")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=32,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        else:
            print(f"\n{chunk.usage.total_tokens} tokens", file=sys.stderr)
    print()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
