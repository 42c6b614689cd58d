"""Distilled sets that are no distilled sets: files of this package, of RCIG's and of DATM's code, and label files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from flax_checkpoint import checkpoint, pack
from outcomes import distilled

from ddlnl import store

KNOTTED = b")" + b"q\0h\0\x86" * 60  # sixty pairs of pairs of pairs: of 2^60 parts, in 240 bytes
INTEGERS = b"cnumpy\ndtype\nX\2\0\0\0i8\x89\x88\x87R"
KNOTS = {  # where a label file may have them instead of a text or a number
    "type": b"cnumpy\ndtype\n" + KNOTTED + b"\x89\x88\x87R",
    "order": INTEGERS + b"(K\3" + KNOTTED + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
    "shape": b"cnumpy._core.multiarray\n_reconstruct\nNNN\x87R(K\1" + KNOTTED + INTEGERS + b"N"
    b"c_codecs\nencode\nX\0\0\0\0X\6\0\0\0latin1\x86Rtb",
    "codec": b"c_codecs\nencode\nX\1\0\0\0a" + KNOTTED + b"\x86R",
    "key": b"}" + KNOTTED + b"K\1s",
    "storage": b"(X\7\0\0\0storage" + KNOTTED * 2 + b"NNtQ",
    "size of a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(]" + KNOTTED * 3 + b"NNtR",
}

WRONG = {  # values that the parts of a description cannot have
    "class_names": (None, 7, [], ["a"], [1, 2, 3], [[], [], []]),
    "method": (None, 7, []),
    "ipc": (None, "1", 0, -1, 1.5, True, []),
    "factor": (None, "1", 0, -1, 1.5, True, []),
    "preprocessed": (None, 1, "no"),
    "meta": (None, 7, "text", []),
    "preprocessing": (None, 7, []),
    "students": (None, 7, "judges", []),
    "protocol": (None, 7, "text", [], {}, {"recipe": {}}, {"recipe": {"decay_at": []}, "architecture": 7}),
}
NEEDED = ("class_names", "method", "ipc", "preprocessing", "protocol")


def knotted() -> Iterator[bytes]:
    """torch.save files whose values are small, and endless when they are written out or hashed."""
    for opcodes in KNOTS.values():
        yield torch_save(b"\x80\2" + opcodes + b".")


def torch_save(content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as members:
        members.writestr("archive/data.pkl", content)
    return file.getvalue()


def of_ours(folder: Path, source: np.random.Generator) -> Iterator[Path]:
    """Files with valid checksums whose content is something else, and damaged ones."""
    tensors, meta = distilled(np.eye(3)).state()
    described: list[object] = [[], "text", None, {}, dict(meta) | {"more": 1}]
    described += [{key: value for key, value in meta.items() if key != name} for name in NEEDED]
    described += [dict(meta) | {name: value} for name, values in WRONG.items() for value in values]
    for part, name in (("recipe", "lr"), ("recipe", "decay_at"), ("architecture", "width"), ("recipe", "more")):
        protocol = meta["protocol"] | {part: meta["protocol"][part] | {name: "text"}}
        described.append(dict(meta) | {"protocol": protocol})
    cases = [(tensors, one) for one in described]
    for name, tensor in tensors.items():
        cases.append(({key: value for key, value in tensors.items() if key != name}, meta))
        for other in (tensor[:0], tensor[None], tensor.double(), tensor * float("nan"), tensor.flatten()[1:]):
            cases.append((tensors | {name: other}, meta))
    cases.append((tensors | {"preprocessing.more": torch.zeros(3)}, meta))
    for index, case in enumerate(cases):
        store.write_tensors(path := folder / f"{index}.safetensors", *case)
        yield path
    for index, (form, text) in enumerate((("1" * 5000, "{}"), ("2", "{"), ("2", "[" * 10**5), ("two", "{}"))):
        header = {"format": form, "meta": text, "digest": store._digest(2, tensors, text)}
        (path := folder / f"head-{index}.safetensors").write_bytes(safetensors.torch.save(tensors, header))
        yield path
    distilled(np.eye(3)).save(path := folder / "good.safetensors")
    content = path.read_bytes()
    for index in range(20):
        changed = bytearray(content)
        changed[int(source.integers(0, len(content)))] ^= 1 << int(source.integers(0, 8))
        (path := folder / f"flipped-{index}.safetensors").write_bytes(changed)
        yield path


def of_rcig(folder: Path, source: np.random.Generator) -> Iterator[Path]:
    """Checkpoints that hold something else, or are damaged."""
    images, labels = (checkpoint()["params"][name] for name in ("x_proto", "y_proto"))
    odd = [labels[:, :0], labels[:0], labels[0], labels[None], labels.astype(np.int64), labels * np.float32(np.inf)]
    odd += [labels.astype(np.float64) * 1e300, np.zeros((4, 3), np.float32), "text", None, [1, 2], {"a": labels}]
    contents = [pack(checkpoint(y_proto=one)) for one in odd]
    odd = [images[:0], images[:, :0], images[..., :0], images[:, :, 1:], images[0], images[:3], images * np.nan, 3.5]
    contents += [pack(checkpoint(x_proto=one)) for one in odd]
    contents += [pack({"ema_average": one}) for one in ({}, [], "text", None)] + [pack({})]
    endless = pack(np.zeros((0, 5), np.float32)).replace(b"\x92\x00\x05", b"\x92\x00\xcf" + b"\xff" * 8)
    contents.append(b"\x81\xa1k" + b"\xc9" + (len(endless) - 6).to_bytes(4, "big") + endless[5:])
    whole = pack(checkpoint())
    contents += [whole[: int(source.integers(0, len(whole)))] for _ in range(5)]
    for index, content in enumerate(contents):
        (path := folder / f"{index}.flax").write_bytes(content)
        yield path


def of_datm(folder: Path, source: np.random.Generator) -> Iterator[Path]:
    """Folders of three tensors that do not fit together, or of something else."""
    good = {"images": torch.rand(4, 3, 8, 8), "labels": torch.rand(4, 2), "lr": torch.tensor(0.01)}
    cases: list[dict[str, object]] = [{"labels": good["labels"][part]} for part in (slice(3), slice(0), 0)]
    cases += [{name: torch.full_like(good[name], value)} for name in good for value in (np.nan, np.inf)]
    cases += [{"images": other} for other in (good["images"].double() * 1e300, good["images"].long(), [1], "text")]
    cases += [{"lr": torch.tensor(other)} for other in ([], 0.0, -1.0, [0.1, 0.1])]
    for index, changes in enumerate(cases):
        (place := folder / str(index)).mkdir()
        for name, tensor in (good | changes).items():
            torch.save(tensor, place / f"{name}_best.pt")
        yield place
    whole = (folder / "0" / "images_best.pt").read_bytes()
    for index in range(10):
        (place := folder / f"cut-{index}").mkdir()
        (place / "images_best.pt").write_bytes(whole[: int(source.integers(0, len(whole)))])
        yield place
