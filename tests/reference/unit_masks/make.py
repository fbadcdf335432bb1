"""Writes files as torch.save writes them, with Python's own pickle and zipfile: head_mask.pt [2, 4] of a transposed
tensor, neuron_mask.pt a list of two half-precision vectors of 24, hostile.pt, whose pickle would run a command.

torch itself is not needed: its pickler is Python's, with storages as persistent ids, and the archive is written with
members aligned to 64 bytes.
"""
import collections
import io
import pickle
import struct
import sys
import types
import zipfile

torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
sys.modules.update({"torch": torch, "torch._utils": utils})
for name in ("FloatStorage", "HalfStorage"):
    setattr(torch, name, type(name, (), {"__module__": "torch"}))


def _rebuild_tensor_v2(*arguments):
    raise NotImplementedError


_rebuild_tensor_v2.__module__ = "torch._utils"
utils._rebuild_tensor_v2 = _rebuild_tensor_v2


class Storage:
    def __init__(self, kind, key, count):
        self.id = ("storage", kind, key, "cpu", count)


class Tensor:
    def __init__(self, storage, offset, shape, stride):
        self.arguments = (storage, offset, shape, stride, False, collections.OrderedDict())

    def __reduce_ex__(self, protocol):
        return _rebuild_tensor_v2, self.arguments


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return value.id if isinstance(value, Storage) else None


def save(path, value, storages):
    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(value)
    members = [("data.pkl", buffer.getvalue()), ("byteorder", b"little")]
    members += [(f"data/{key}", content) for key, content in storages.items()]
    members += [("version", b"3\n")]
    stem = path.removesuffix(".pt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(f"{stem}/{name}")
            start = archive.fp.tell() + 30 + len(info.filename) + 4
            padding = -start % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
            archive.writestr(info, content)


heads = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0, 1.0, -2.0]  # stored [4, 2], saved as its transpose
save("head_mask.pt", Tensor(Storage(torch.FloatStorage, "0", 8), 0, (2, 4), (1, 2)), {"0": struct.pack("<8f", *heads)})
neurons = [[float(i % 3 != layer) for i in range(24)] for layer in range(2)]
save("neuron_mask.pt", [Tensor(Storage(torch.HalfStorage, str(i), 24), 0, (24,), (1,)) for i in range(2)],
     {str(i): struct.pack("<24e", *values) for i, values in enumerate(neurons)})


class Hostile:
    def __reduce__(self):
        import os
        return os.system, ("touch secateur-was-here",)


save("hostile.pt", Hostile(), {})
