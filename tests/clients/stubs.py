"""The messages and stubs of `kvasir.v1` and of the Open Inference Protocol, compiled from the protos of this repository when they are first imported."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[2] / "proto"
# Removed when the interpreter ends.
_FOLDER = tempfile.TemporaryDirectory()


def _compile():
    files = [str(PROTOS / "kvasir" / "v1" / name) for name in ("inference.proto", "admin.proto")]
    files.append(str(PROTOS / "inference" / "open_inference.proto"))
    target = _FOLDER.name
    arguments = [f"--proto_path={PROTOS}", f"--python_out={target}", f"--grpc_python_out={target}"]
    if protoc.main(["protoc", *arguments, *files]) != 0:
        raise RuntimeError(f"the protos in {PROTOS} do not compile")
    sys.path.insert(0, target)


_compile()

from inference import open_inference_pb2 as oip  # noqa: E402
from inference import open_inference_pb2_grpc  # noqa: E402
from kvasir.v1 import admin_pb2 as admin  # noqa: E402
from kvasir.v1 import admin_pb2_grpc, inference_pb2_grpc  # noqa: E402
from kvasir.v1 import inference_pb2 as v1  # noqa: E402

Admin = admin_pb2_grpc.AdminStub
Inference = inference_pb2_grpc.InferenceStub
OpenInference = open_inference_pb2_grpc.GRPCInferenceServiceStub

__all__ = ["Admin", "Inference", "OpenInference", "admin", "oip", "v1"]
