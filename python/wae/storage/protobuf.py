"""Reading protocol buffers, in their binary and their text form, without generated code.

Both readers give a :class:`Message`. They are made for files of unknown origin: nothing is allocated by a
length that the file merely claims, nesting has a limit, and so has the number of fields. Whatever is wrong
with the bytes ends in one :class:`ProtobufError` that says where.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, NoReturn, TypeVar, Union

import numpy as np
from numpy.typing import NDArray

from wae.errors import WaeError

MAX_FIELDS = 50_000
"""Of a binary message, with all it contains; a row of floats is one. 100 layers have some 2000."""
MAX_DEPTH = 32
"""Messages within messages, in the text form. (In the binary form, the schema limits them.)"""
MAX_NAME = 1000
"""Bytes of a string that is read rather than skipped, characters of any word of the text form."""

Array = NDArray[Any]
Value = Union[int, float, str, Array, "Message"]
_T = TypeVar("_T")


class ProtobufError(WaeError):
    """A malformed message. The text says where and what, but does not know the file's name."""


class Kind(Enum):
    """What a schema says a field of the binary form holds, if not a message."""

    INTEGER = "an integer"
    """int32, int64, uint32, uint64, bool, enum; packed or not. Negative where its 64 bits say so."""
    STRING = "a string"
    FLOAT = "floats"
    """32 bits; packed or not."""
    DOUBLE = "doubles"
    """64 bits; packed or not."""


class Field(NamedTuple):
    """One entry of a schema; fields that have none are skipped."""

    name: str
    kind: Kind | Schema


class Schema(dict[int, Field]):
    """The fields of a message that are read, by number."""


class Message(dict[str, list[Value]]):
    """The values of each field by its name, in the file's order.

    The methods read a field and say what is wrong with it: they raise ProtobufError.
    """

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        """For people: "line 12", "byte 4711"."""

    def add(self, name: str, value: Value) -> None:
        """Append ``value`` to the field ``name``."""
        self.setdefault(name, []).append(value)

    def integers(self, name: str) -> list[int]:
        """All values of an integer field; none if it is absent."""
        return self._all(name, int, Kind.INTEGER.value)

    def integer(self, name: str, default: int) -> int:
        """The value of an integer field that is given once or not at all."""
        return self._one(name, self.integers(name), default)

    def number(self, name: str, default: float) -> float:
        """The value of a number of the text form that is given once or not at all."""
        value = self._one(name, self.get(name, []), default)
        if isinstance(value, (int, float)):
            return value
        return self._refuse(name, "a number")

    def flag(self, name: str, default: bool) -> bool:
        """The value of a bool field that is given once or not at all: the word or, in binary, the number."""
        value = self._one(name, self.get(name, []), default)
        if value in ("true", "True", "t", 1):
            return True
        if value in ("false", "False", "f", 0):
            return False
        return self._refuse(name, "true or false")

    def strings(self, name: str) -> list[str]:
        """All values of a string field; none if it is absent."""
        return self._all(name, str, Kind.STRING.value)

    def string(self, name: str, default: str = "") -> str:
        """The value of a string field, or an enum's word, that is given once or not at all."""
        return self._one(name, self.strings(name), default)

    def messages(self, name: str) -> list[Message]:
        """All values of a field of messages; none if it is absent."""
        return self._all(name, Message, "a message")

    def message(self, name: str) -> Message:
        """The message of a field that is given once, or an empty one if it is absent."""
        return self._one(name, self.messages(name), Message(self.where))

    def arrays(self, name: str) -> list[Array]:
        """The rows of a field of floats or doubles, which have to be joined; none if it is absent."""
        return [value for value in self.get(name, []) if isinstance(value, np.ndarray)]

    def _all(self, name: str, kind: type[_T], called: str) -> list[_T]:
        values = self.get(name, [])
        found: list[_T] = [value for value in values if isinstance(value, kind)]
        if len(found) != len(values):
            self._refuse(name, called)
        return found

    def _one(self, name: str, values: list[_T], default: _T) -> _T:
        if len(values) > 1:
            raise ProtobufError(f"{self.where}: {name} may be given once, got {len(values)} values")
        return values[0] if values else default

    def _refuse(self, name: str, needed: str) -> NoReturn:
        raise ProtobufError(f"{self.where}: {name} must be {needed}")


# ------------------------------------------------------------------------------------------------ binary form

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the wire types; 3 and 4, groups, were given up long ago
_NUMBERS: Mapping[int, np.dtype[Any]] = {_FIXED32: np.dtype("<f4"), _FIXED64: np.dtype("<f8")}
_WIRE_TYPES: Mapping[Kind, tuple[int, ...]] = {
    Kind.INTEGER: (_VARINT, _BYTES),
    Kind.STRING: (_BYTES,),
    Kind.FLOAT: (_FIXED32, _BYTES),
    Kind.DOUBLE: (_FIXED64, _BYTES),
}
_CHUNK = 4096  # unpacked floats that are looked at together


def read_binary(data: bytes | mmap.mmap, schema: Schema, name: str) -> Message:
    """The message that ``data`` holds from its first to its last byte.

    Floats and doubles are views of ``data``: they cost no memory, whatever their number.

    Args:
        data: the bytes; a memory-mapped file needs no copy of them.
        schema: the fields to read, and those of the messages within.
        name: of the message, for errors.
    """
    return _BinaryReader(data).message(0, len(data), schema, name)


class _BinaryReader:
    """Holds what every part of a file shares: the bytes, and how many fields may still come."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        self.fields_left = MAX_FIELDS

    def message(self, start: int, end: int, schema: Schema, path: str) -> Message:
        """The message in the bytes from ``start`` to ``end``. It recurs as deep as ``schema`` is."""
        message = Message(f"byte {start}")
        at = start
        while at < end:
            field_at = at
            tag, at = self.varint(at, end, path)
            number, wire_type = tag >> 3, tag & 7
            field = schema.get(number)
            inner = f"{path}.{field.name if field else number}"
            self.count(field_at, inner)
            if number == 0:
                _fail(field_at, path, "a field has the number 0")
            if field and wire_type not in _wire_types(field.kind):
                _fail(field_at, inner, f"the wire type does not fit, got {wire_type}")
            if wire_type == _VARINT:
                value, at = self.varint(at, end, inner)
                if field:
                    message.add(field.name, _signed(value))
            elif wire_type in _NUMBERS:
                row, at = self.row(field_at, at, end, _NUMBERS[wire_type], inner)
                if field:
                    message.add(field.name, row)
            elif wire_type == _BYTES:
                size, at = self.varint(at, end, inner)
                if size > end - at:
                    _fail(field_at, inner, f"it says that it has {size} bytes, but {end - at} are left")
                if field:
                    self.add_bytes(message, field, at, at + size, inner)
                at += size
            else:
                _fail(field_at, inner, f"unknown wire type {wire_type}")
        return message

    def add_bytes(self, message: Message, field: Field, start: int, end: int, path: str) -> None:
        """Add to ``message`` what the bytes from ``start`` to ``end`` mean for ``field``."""
        if isinstance(field.kind, Schema):
            message.add(field.name, self.message(start, end, field.kind, path))
        elif field.kind is Kind.STRING:
            if end - start > MAX_NAME:
                _fail(start, path, f"a string of {end - start} bytes; at most {MAX_NAME} make sense here")
            message.add(field.name, self.data[start:end].decode("utf-8", errors="replace"))
        elif field.kind is Kind.INTEGER:
            while start < end:
                self.count(start, path)
                value, start = self.varint(start, end, path)
                message.add(field.name, _signed(value))
        else:
            dtype = _NUMBERS[_FIXED32 if field.kind is Kind.FLOAT else _FIXED64]
            length, rest = divmod(end - start, dtype.itemsize)
            if rest:
                _fail(start, path, f"{end - start} bytes are no whole number of {field.kind.value}")
            message.add(field.name, np.frombuffer(self.data, dtype, length, start))

    def row(self, field_at: int, at: int, end: int, dtype: np.dtype[Any], path: str) -> tuple[Array, int]:
        """The number at ``at``, and all that follow it under the same tag; and where they end."""
        tag_size = at - field_at
        record = np.dtype([("tag", f"V{tag_size}"), ("number", dtype)])
        most = (end - field_at) // record.itemsize
        if most == 0:
            _fail(field_at, path, f"{dtype.itemsize} bytes are needed, but {end - at} are left")
        records = np.frombuffer(self.data, record, most, field_at)
        length = 1
        while length < most:
            same = records["tag"][length : length + _CHUNK] == records["tag"][0]
            length += len(same) if same.all() else int(same.argmin())
            if not same.all():
                break
        return records["number"][:length], field_at + length * record.itemsize

    def varint(self, at: int, end: int, path: str) -> tuple[int, int]:
        """The integer of up to 64 bits at ``at``, seven bits a byte; and where it ends."""
        value = 0
        for index in range(10):
            if at + index >= end:
                _fail(at, path, "the data ends within an integer")
            byte = self.data[at + index]
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if value >= 1 << 64:
                    break
                return value, at + index + 1
        return _fail(at, path, "an integer has more than 64 bits")

    def count(self, at: int, path: str) -> None:
        """One more field; a limit keeps time and memory in proportion to what a network can need."""
        self.fields_left -= 1
        if self.fields_left < 0:
            _fail(at, path, f"there are more than {MAX_FIELDS} fields")


def _wire_types(kind: Kind | Schema) -> tuple[int, ...]:
    return (_BYTES,) if isinstance(kind, Schema) else _WIRE_TYPES[kind]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _fail(at: int, path: str, what: str) -> NoReturn:
    raise ProtobufError(f"byte {at}: {path}: {what}")


# -------------------------------------------------------------------------------------------------- text form

_SPACE = re.compile(r"(?:\s|#[^\n]*)*")
_TOKEN = re.compile(
    r"""(?P<word>[A-Za-z_]\w*)
      | (?P<number>-?\s*(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?|inf|nan))
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<mark>[{}<>:;,\[\]])""",
    re.VERBOSE | re.ASCII,
)
_CLOSING = {"{": "}", "<": ">"}


class _Token(NamedTuple):
    kind: str  # a group of _TOKEN, or "end"
    text: str
    line: int


def read_text(text: str) -> Message:
    """The message that ``text`` holds.

    There is no schema: the words of an enum are strings, and so are true and false (see
    :meth:`Message.flag`). Backslashes in strings stay as they are.
    """
    tokens = _tokens(text)
    return _TextReader(tokens).message("", 1, 0)


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while True:
        space = _SPACE.match(text, at)
        assert space is not None  # it matches nothing, too
        line += text.count("\n", at, space.end())
        at = space.end()
        if at == len(text):
            yield _Token("end", "the end of the file", line)
            return
        token = _TOKEN.match(text, at)
        if token is None:
            raise ProtobufError(f"line {line}: cannot read {text[at : at + 20]!r}")
        if token.end() - at > MAX_NAME:
            raise ProtobufError(f"line {line}: {text[at : at + 20]!r}... has more than {MAX_NAME} characters")
        yield _Token(token.lastgroup or "", token.group(), line)
        at = token.end()


class _TextReader:
    """A parser that looks one token ahead."""

    def __init__(self, tokens: Iterator[_Token]) -> None:
        self.tokens = tokens
        self.token = next(tokens)

    def message(self, closing: str, line: int, depth: int) -> Message:
        """The fields up to the mark ``closing``, or up to the end of the text if that is empty."""
        if depth > MAX_DEPTH:
            raise ProtobufError(f"line {line}: more than {MAX_DEPTH} messages within each other")
        message = Message(f"line {line}")
        while not (self.token.text == closing if closing else self.token.kind == "end"):
            name = self.take("word", f"a field's name{' or ' * bool(closing)}{closing}").text
            colon = self.skip(":")
            if self.skip("["):
                while not self.skip("]"):
                    message.add(name, self.value(depth))
                    if not self.skip(",") and self.token.text != "]":
                        self.refuse("a comma or ]")
            elif colon or self.token.text in _CLOSING:
                message.add(name, self.value(depth))
            else:
                self.refuse(f"a colon after {name}")
            self.skip(",", ";")
        return message

    def value(self, depth: int) -> Value:
        """One value of a field."""
        token = self.token
        if token.text in _CLOSING:
            self.token = next(self.tokens)
            message = self.message(_CLOSING[token.text], token.line, depth + 1)
            self.token = next(self.tokens)  # the closing mark
            return message
        if token.kind == "string":
            text = ""
            while self.token.kind == "string" and len(text) <= MAX_NAME:
                text += self.take("string", "").text[1:-1]
            return text
        if token.kind == "number":
            return _number(self.take("number", ""))
        return self.take("word", "a value").text

    def take(self, kind: str, called: str) -> _Token:
        """The token at hand, which must be of ``kind``."""
        token = self.token
        if token.kind != kind:
            self.refuse(called)
        self.token = next(self.tokens)
        return token

    def skip(self, *marks: str) -> bool:
        """Go past the token at hand if it is one of ``marks``."""
        found = self.token.kind == "mark" and self.token.text in marks
        if found:
            self.token = next(self.tokens)
        return found

    def refuse(self, needed: str) -> NoReturn:
        raise ProtobufError(f"line {self.token.line}: needed {needed}, got {self.token.text[:40]!r}")


def _number(token: _Token) -> int | float:
    """The value of a number's text: an int if it looks like one."""
    text = "".join(token.text.split())
    if len(text) > 64:
        raise ProtobufError(f"line {token.line}: a number of {len(text)} characters")
    if re.fullmatch(r"-?0[xX].*", text):
        return int(text, 16)
    if re.fullmatch(r"-?0\d+", text):
        try:
            return int(text, 8)
        except ValueError:
            raise ProtobufError(f"line {token.line}: {text} is no octal number") from None
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    return float(text.rstrip("fF") if "inf" not in text else text)
