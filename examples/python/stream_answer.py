"""Streams an answer over gRPC, breaks the stream off in the middle, and gets the rest of the very same answer.

    pip install grpcio grpcio-tools
    python examples/python/stream_answer.py 127.0.0.1:50051 "Once upon a time"

Any other language does the same: the service is `kvasir.v1.Inference` in proto/kvasir/v1/inference.proto.
"""

import sys
import tempfile
from pathlib import Path

import grpc
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[2] / "proto"


def compile_protos(folder):
    files = [str(PROTOS / "kvasir/v1/inference.proto")]
    flags = [f"--proto_path={PROTOS}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(["protoc", *flags, *files]) != 0:
        raise SystemExit(f"the protos in {PROTOS} do not compile")
    sys.path.insert(0, folder)


def main(address, prompt):
    from kvasir.v1 import inference_pb2 as v1
    from kvasir.v1.inference_pb2_grpc import InferenceStub

    inference = InferenceStub(grpc.insecure_channel(address))
    request = v1.GenerateRequest(text=prompt, max_tokens=32, sampling=v1.SamplingParams(temperature=0.8, seed=7))

    # The first message says all that determines the answer. With it and the tokens, any coordinator has the rest.
    descriptor, tokens, text = None, [], ""
    stream = inference.Generate(request)
    for response in stream:
        if response.HasField("started"):
            descriptor = response.started.descriptor
        elif response.HasField("chunk"):
            tokens += [token.id for token in response.chunk.tokens]
            text += response.chunk.text
            if len(tokens) >= 10:
                stream.cancel()
                break
    print(text, end="|", flush=True)

    resume = v1.Resume(descriptor=descriptor, received_token_ids=tokens)
    for response in inference.Generate(v1.GenerateRequest(resume=resume)):
        if response.HasField("chunk"):
            print(response.chunk.text, end="", flush=True)
        elif response.HasField("finished"):
            print(response.finished.text)
            usage = response.finished.usage
            print(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        compile_protos(folder)
        main(sys.argv[1], sys.argv[2])
