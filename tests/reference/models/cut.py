"""Cuts the committed subset of the model fixtures out of the full set: python3 cut.py FULL_SET

Keeps checkpoints and inputs whole. Of expectations it keeps scalars, column sums and the sums of each gradient and
parameter, of large tensors only what has no such sum. Tests use the tensors themselves where the full set is there.
"""

import json
import pathlib
import shutil
import struct
import sys

LARGEST = 80_000  # bytes of a tensor without sums that is still kept

def cut(source, target):
    data = source.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    kept, body = {}, b""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        summed = name + ".colsum" in header or name.split("/")[0] in ("grad", "param", "left", "right")
        if summed or end - start > LARGEST:
            continue
        kept[name] = {**entry, "data_offsets": [len(body), len(body) + end - start]}
        body += data[8 + length + start : 8 + length + end]
    text = json.dumps(kept, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + body)

here = pathlib.Path(__file__).parent
for model in ("bert_cls", "gpt2_lm"):
    source, target = pathlib.Path(sys.argv[1]) / model, here / model
    target.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "inputs.safetensors"):
        shutil.copyfile(source / name, target / name)
    for name in ("expected", "grads", "masked", "train5"):
        cut(source / f"{name}.safetensors", target / f"{name}.safetensors")
