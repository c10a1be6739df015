"""Control vectors as llama.cpp itself reads and writes them, by ctypes (see `llama_cpp`).

Its loader is a function of C++, not of its C interface: a vector of structs goes in, a struct with a vector comes out.
Both are laid out here by hand, for libstdc++ and for the string of the library at hand.
"""

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from tests.nn.llama_cpp import library

LOADER = "_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"
OLD_STRINGS = "_Z15common_tokenizePK11llama_vocabRKSsbb"  # a function of this name takes a string of before C++11
F32, F16 = 0, 1  # ggml_type


class Vector(Structure):
    """std::vector."""

    _fields_ = [(name, c_void_p) for name in ("begin", "end", "room")]


class Loaded(Structure):
    """common_control_vector_data."""

    _fields_ = [("n_embd", c_int), ("data", Vector)]


class OldInfo(Structure):
    """common_control_vector_load_info, with a string that is a pointer to its characters."""

    _fields_ = [("strength", c_float), ("name", c_char_p)]


class NewInfo(Structure):
    """The same, with a string that has its length and some room."""

    _fields_ = [*OldInfo._fields_, ("length", c_size_t), ("room", c_size_t * 2)]


def read(path: Path, strength: float = 1.0) -> np.ndarray | None:
    """What llama.cpp reads of a file, ``[N, D]``: the vector behind block n is row n - 1. None: it refuses the file."""
    lib, name = library(), str(path).encode()
    lib[LOADER].restype, lib[LOADER].argtypes = c_void_p, [POINTER(Loaded), POINTER(Vector)]
    # The characters of an old string stand behind its length, its room and the number of its owners.
    old = hasattr(lib, OLD_STRINGS)
    head = np.array([len(name), len(name), 0], np.int64).tobytes() if old else b""
    text = ctypes.create_string_buffer(head + name)
    info: Any = (OldInfo if old else NewInfo)()
    info.strength = strength
    ctypes.cast(ctypes.byref(info, OldInfo.name.offset), POINTER(c_void_p))[0] = ctypes.addressof(text) + len(head)
    if not old:
        info.length = len(name)
    begin = ctypes.addressof(info)
    loaded = Loaded()
    lib[LOADER](ctypes.byref(loaded), ctypes.byref(Vector(begin, begin + ctypes.sizeof(info), begin)))
    if loaded.n_embd <= 0 or not loaded.data.begin:
        return None
    size = (loaded.data.end - loaded.data.begin) // 4
    flat = np.ctypeslib.as_array(ctypes.cast(loaded.data.begin, POINTER(c_float)), (size,)).copy()
    return flat.reshape(-1, loaded.n_embd)


class Room(Structure):
    """ggml_init_params."""

    _fields_ = [("size", c_size_t), ("buffer", c_void_p), ("no_alloc", c_bool)]


# name: (result, arguments)
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [Room]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_1d": (c_void_p, [c_void_p, c_int, c_int64]),
    "ggml_set_name": (c_void_p, [c_void_p, c_char_p]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "gguf_init_empty": (c_void_p, []),
    "gguf_free": (None, [c_void_p]),
    "gguf_set_val_str": (None, [c_void_p, c_char_p, c_char_p]),
    "gguf_set_val_i32": (None, [c_void_p, c_char_p, c_int32]),
    "gguf_add_tensor": (None, [c_void_p, c_void_p]),
    "gguf_write_to_file": (c_bool, [c_void_p, c_char_p, c_bool]),
}


def write(path: Path, directions: Mapping[int, np.ndarray], hint: str = "llama") -> Path:
    """`path`, with the directions by their number in llama.cpp, as its cvector-generator writes them."""
    lib = library()
    for name, (result, arguments) in FUNCTIONS.items():
        getattr(lib, name).restype, getattr(lib, name).argtypes = result, arguments
    room = lib.ggml_init(Room(sum(row.nbytes + 1024 for row in directions.values()) + 4096, None, False))
    file = lib.gguf_init_empty()
    lib.gguf_set_val_str(file, b"general.architecture", b"controlvector")
    lib.gguf_set_val_str(file, b"controlvector.model_hint", hint.encode())
    lib.gguf_set_val_i32(file, b"controlvector.layer_count", len(directions))
    for number, row in directions.items():
        tensor = lib.ggml_new_tensor_1d(room, F16 if row.dtype == np.float16 else F32, len(row))
        lib.ggml_set_name(tensor, b"direction.%d" % number)
        ctypes.memmove(lib.ggml_get_data(tensor), np.ascontiguousarray(row).ctypes.data, row.nbytes)
        lib.gguf_add_tensor(file, tensor)
    assert lib.gguf_write_to_file(file, str(path).encode(), False)
    lib.gguf_free(file)
    lib.ggml_free(room)
    return path
