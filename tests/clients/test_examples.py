"""The examples of this repository, as a reader would start them."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "python"
PROMPT = "Once upon a time"


def told(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def of_python(name, *arguments):
    return told(sys.executable, str(EXAMPLES / name), *arguments)


def test_an_answer_that_was_broken_off_is_the_undisturbed_one(cluster, door):
    told_in_parts = of_python("stream_answer.py", cluster.grpc, PROMPT).removesuffix("\n")
    first, rest = told_in_parts.split("|", 1)
    whole = door.complete(PROMPT, max_tokens=32, temperature=0.8, seed=7).choices[0].text
    assert first and rest and first + rest == whole


def test_the_client_in_rust_tells_the_same(cluster, door):
    # Built with the binary: cargo build --examples.
    program = Path(os.environ["KVASIR_BIN"]).parent / "examples" / "stream_answer"
    whole = door.complete(PROMPT, max_tokens=32, temperature=0.8, seed=7).choices[0].text
    assert told(str(program), PROMPT, f"http://{cluster.grpc}") == whole + "\n"


def test_openais_client_needs_another_url_alone(cluster, door):
    question = "What is a fjord?"
    whole = door.chat(question, max_tokens=32, temperature=0).choices[0].message.content
    assert of_python("openai_chat.py", f"{cluster.http}/v1", question) == whole + "\n"
