"""Pickles: what numpy and Detectron2's model zoo write is read, and nothing else is called."""

import collections
import os
import pickle
import struct

import numpy as np
import pytest

from resobj_d2.process.pickles import UnsafePickleError, read_pickle

CONTENT = {
    "model": collections.OrderedDict(
        weight=np.arange(6, dtype=np.float32).reshape(2, 3),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        big_endian=np.arange(3, dtype=">i4"),
        half=np.float16([1.5]),
        empty=np.zeros((0, 4), np.float32),
        zero_dimensions=np.array(7, dtype=np.int64),
        flags=np.array([True, False]),
        names=np.array(["a", "bcd"]),
    ),
    "scalar": np.float64(2.5),
    "__author__": "Caffe2",
    "bytes": b"\x00\xff",
    "list": [1, -2.5, None, True, 2**70, (1, 2), {}, ""],
}


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@pytest.fixture
def write(tmp_path):
    def build(content):
        path = tmp_path / "x.pkl"
        path.write_bytes(content)
        return path

    return build


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_of_every_protocol(write, protocol):
    content = read_pickle(write(pickle.dumps(CONTENT, protocol)))
    if protocol < 3:
        # Python 2's, in which the bytes of Python 3 are written as what makes them.
        assert content["bytes"] == b"\x00\xff"
    assert same(content, CONTENT)
    assert content["model"]["weight"].flags.writeable


def test_pickles_of_python_2(write):
    # {"w": numpy.array([1.0, 2.0], "float32")} by cPickle of Python 2, protocol 2.
    data = (
        b"\x80\x02}q\x01U\x01wq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87R"
        b"q\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + struct.pack("<2f", 1, 2)
        + b"tbs."
    )
    assert same(read_pickle(write(data)), {"w": np.float32([1, 2])})


def test_one_array_twice_is_one_array(write):
    array = np.ones(3)
    content = read_pickle(write(pickle.dumps([array, array])))
    assert content[0] is content[1]


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def refer(name):
    module, _, attribute = name.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


HARM = "echo > harm"
ATTACKS = {
    "os.system": pickle.dumps(Evil(os.system, HARM)),
    "inside a model": pickle.dumps({"model": {"w": Evil(os.system, HARM)}, "__author__": "x"}),
    "eval": pickle.dumps(Evil(eval, "open('harm', 'w')")),
    "old protocol": b"cos\nsystem\n(S'" + HARM.encode() + b"'\ntR.",
    "instance": b"(S'" + HARM.encode() + b"'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'" + HARM.encode() + b"'\no.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0becho > harm\x85R.",
    "array of objects": pickle.dumps(np.array([Evil(os.system, HARM)], dtype=object)),
    "numpy's own loader": refer("numpy.load") + b"S'x'\n\x85R.",
    "attribute of numpy": b"\x80\x04\x8c\x17numpy.core.multiarray.x\x8c\x06system\x93.",
    "codec": refer("_codecs.encode") + b"(S'x'\nS'zlib'\ntR.",
    "changed function": refer("_codecs.encode") + b"}S'__kwdefaults__'\n}sb.",
    "changed class": refer("collections.OrderedDict") + b"N}S'update'\nI1\ns\x86b.",
    "persistent": b"Pos.system\n.",
    "extension": b"\x82\x01.",
    "torch": b"ctorch.storage\n_load_from_bytes\n(S'x'\ntR.",
    "records": pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "O")])),
    "size of an array": refer("numpy.core.multiarray._reconstruct")
    + b"(" + refer("numpy.ndarray") + b"(I0\ntS'b'\ntR(I1\n(I99999999999\nt"
    + refer("numpy.dtype") + b"(S'f4'\ntRI00\nS'1234'\ntb.",
    "memo": b"Nr\xff\xff\xff\x0f.0",
    "long bytes": b"\x80\x05\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"x.",
    "deep": b"]" * 1000 + b"a" * 999 + b".",
    "itself": b"]q\x00h\x00a.",
    "sets": b"\x80\x04\x8f.",
    "tuple as key": b"\x80\x04}K\x01\x85K\x01s.",
    "tuples as keys": b"\x80\x04}(K\x01\x85K\x01u.",
    "tuple as key of an old dict": b"(K\x01\x85K\x01d.",
    "tuple as key of an OrderedDict": refer("collections.OrderedDict")
    + b"K\x01\x85K\x01\x86\x85\x85R.",
    "number of 62 bits as key": b"\x80\x04}\x8a\x08" + struct.pack("<q", 2**61) + b"K\x01s.",
    "items of a list": b"\x80\x04](K\x00K\x01u.",
    "memo of a large number": b"Np" + str(2**61 - 1).encode() + b"\n.",
    "mode of text": refer("detectron2.structures.boxes.BoxMode") + b"S'x'\n\x85R.",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
    "empty": b"",
    "text": b"MODEL: {}\n",
    "cut": pickle.dumps(CONTENT)[:-200],
}  # fmt: skip


@pytest.mark.parametrize("name", [k for k in ATTACKS if k != "memo"])
def test_everything_else_is_refused_in_one_line_by_name(write, name, monkeypatch):
    path = write(ATTACKS[name])
    monkeypatch.chdir(path.parent)
    before = vars(collections.OrderedDict).get("update")
    with pytest.raises(UnsafePickleError, match="x.pkl") as error:
        read_pickle(path)
    assert "\n" not in str(error.value)
    assert os.listdir(path.parent) == ["x.pkl"]
    assert vars(collections.OrderedDict).get("update") is before


def test_a_number_of_the_memo_takes_no_memory(write):
    """The unpickler in C would make room for 2**28 objects."""
    assert read_pickle(write(ATTACKS["memo"])) is None


def test_shared_containers_do_not_multiply(write):
    """Eighteen levels of ten times the level below: 10**18 items written out."""
    level: object = "x"
    for _ in range(18):
        level = [level] * 10
    assert len(read_pickle(write(pickle.dumps(level)))) == 10


def test_the_number_of_operations_is_limited(write, monkeypatch):
    from resobj_d2.process import pickles

    monkeypatch.setattr(pickles, "MAX_OPERATIONS", 1000)
    with pytest.raises(UnsafePickleError, match="x.pkl: it has more than 1,000 operations"):
        read_pickle(write(b"(" + b"N" * 2000 + b"t."))


def nested(levels):
    """(((1, 1), (1, 1)), ...): the pairs of each level are one object."""
    return b"K\x01q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(levels))


ELEMENT = refer("numpy.dtype") + b"S'f8'\n\x85R"
SLOW = {
    "key": b"\x80\x04}" + nested(60) + b"K\x01s.",
    "type": refer("numpy.dtype") + nested(60) + b"\x85R.",
    "encoding": refer("_codecs.encode") + b"S'x'\n" + nested(60) + b"\x86R.",
    "shape": refer("numpy.core.numeric._frombuffer")
    + b"(C\x08" + bytes(8) + ELEMENT + nested(60) + b"tR.",
    "mode": refer("detectron2.structures.boxes.BoxMode") + nested(60) + b"\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_nothing_that_doubles_with_each_level_is_hashed_or_shown(write, name):
    """2**60 steps: this would not end."""
    with pytest.raises(UnsafePickleError, match="x.pkl: it ") as error:
        read_pickle(write(SLOW[name]))
    assert len(str(error.value)) < 400


TEXT = b"X" + struct.pack("<I", 10**6) + b"a" * 10**6 + b"q\x020"
MANY_DATA = {
    "bytes": refer("_codecs.encode") + b"q\x010" + TEXT
    + b"](" + b"h\x01h\x02X\x06\x00\x00\x00latin1\x86R",
    "arrays": ELEMENT + b"q\x010" + TEXT + refer("numpy.core.numeric._frombuffer") + b"q\x030"
    + b"](" + b"h\x03(h\x02h\x01J" + struct.pack("<i", 125_000) + b"\x85tR",
    "built arrays": ELEMENT + b"q\x010" + TEXT
    + refer("numpy.core.multiarray._reconstruct") + b"q\x030"
    + b"](" + b"h\x03)R(K\x01J" + struct.pack("<i", 125_000) + b"\x85h\x01I00\nh\x02tb",
    "scalars": refer("numpy.dtype") + b"S'S1000000'\n\x85Rq\x010" + TEXT
    + refer("numpy.core.multiarray.scalar") + b"q\x030" + b"](" + b"h\x03h\x01h\x02\x86R",
    "dicts": refer("collections.OrderedDict") + b"q\x010"
    + b"](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(20_000)) + b"eq\x020"
    + b"](" + b"h\x01h\x02\x85R",
}  # fmt: skip
LAST = {name: content[content.rindex(b"](") + 2 :] for name, content in MANY_DATA.items()}


@pytest.mark.parametrize("name", MANY_DATA)
def test_calls_make_no_more_than_the_file_holds(write, name):
    """One call is fine; hundreds that each copy the same megabyte are not."""
    once = read_pickle(write(MANY_DATA[name] + b"e."))
    assert len(once) == 1
    with pytest.raises(UnsafePickleError, match="far more data than it holds"):
        read_pickle(write(MANY_DATA[name] + LAST[name] * 200 + b"e."))


@pytest.mark.parametrize("protocol", range(6))
def test_large_arrays_of_every_protocol_are_within_the_budget(write, protocol):
    values = np.random.default_rng(0).random(300_000)
    items = [(f"{i}", np.float64(i)) for i in range(20_000)]
    content = {"values": values, "ordered": collections.OrderedDict(items), "bytes": bytes(10**6)}
    read = read_pickle(write(pickle.dumps(content, protocol)))
    assert np.array_equal(read["values"], values) and read["bytes"] == bytes(10**6)
    assert list(read["ordered"].items()) == items
