"""`wae selftest`: correct ops pass; a wrong op is named, with the problem that shows it."""

import json

import pytest
import torch

from wae.cli import main
from wae.experiments import selftest
from wae_kernels import backends
from wae_kernels._load import schemas


def test_every_op_passes_on_every_backend(capsys):
    assert main(["selftest", "--only", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {(row["backend"], row["op"]) for row in rows} == {
        (name, op) for name, _ in selftest.devices() for op in selftest.OPS
    }
    assert all(row["calls"] == 1 and row["share"] <= 1 for row in rows)
    assert all((row["error"] == 0) == (row["op"] == "encode_int8") for row in rows)


def test_every_op_is_tested():
    """``conv3x3_pack`` is, too: it makes the weights of ``conv3x3``."""
    ops = {schema.partition("(")[0] for schema in schemas()}
    assert ops == {*selftest.OPS, "conv3x3_pack"}


@pytest.mark.parametrize("wrong", ["one number", "NaN", "a shape"])
def test_a_wrong_op_is_named(wrong, monkeypatch, capsys):
    call = selftest._call

    def wrong_call(op, arguments):
        outputs = call(op, arguments)
        if op != "decode" or arguments[0].dtype != torch.float32:
            return outputs
        image = outputs[0].clone()
        if wrong == "a shape":
            return (image[..., 1:],)
        image[0, 0, -1, -1] += 1.0 if wrong == "one number" else float("nan")
        return (image,)

    monkeypatch.setattr(selftest, "_call", wrong_call)
    assert main(["selftest", "--only", "5"]) == 1
    printed = capsys.readouterr()
    rows = [1 + (device == "cuda") for _, device in selftest.devices()]  # on a GPU in tf32, too
    assert printed.out.count("WRONG") == sum(rows)
    assert "wae: decode in float32 on reference: problem 5 (" in printed.err
    assert all(len(line) <= 80 for line in printed.out.splitlines())
    assert all(op in printed.out for op in selftest.OPS)  # none is cut off


@pytest.mark.parametrize("factor", [0, 2])
@pytest.mark.parametrize(
    ("op", "output"), [("encode_backward", 1), ("encode_backward", 12), ("decode_backward", 2)]
)
def test_a_wrong_small_output_is_named(op, output, factor, monkeypatch, capsys):
    """The gradients of the image, of image_scale and of high are less than a hundredth of all in the norm."""
    made = selftest.problem(5, op, "bfloat16")
    wanted = selftest.expected(made)
    call = selftest._call

    def wrong_call(name, arguments):
        outputs = list(call(name, arguments))
        if name == op and arguments[0].dtype == torch.bfloat16:
            outputs[output - 1] = factor * outputs[output - 1]
        return tuple(outputs)

    monkeypatch.setattr(selftest, "_call", wrong_call)
    assert selftest._relative(wrong_call(op, made.arguments), wanted.outputs) < wanted.allowed
    assert main(["selftest", "--only", "5"]) == 1
    failed = capsys.readouterr().err.splitlines()[:-1]
    assert len(failed) == len(selftest.devices())
    assert all(line.startswith(f"wae: {op} in bfloat16 on ") for line in failed)
    assert all(line.endswith(f" in output {output}") for line in failed)


def test_an_op_that_raises_is_named_and_the_others_are_tested(monkeypatch, capsys):
    """As Triton does on a machine without a C compiler."""
    call = selftest._call

    def failing_call(op, arguments):
        if op == "decode":
            raise RuntimeError("Failed to find C compiler.\nAt: ...")
        return call(op, arguments)

    monkeypatch.setattr(selftest, "_call", failing_call)
    assert main(["selftest", "--only", "5"]) == 1
    failed = capsys.readouterr().err.splitlines()[:-1]
    assert failed
    assert all(line.startswith("wae: decode in ") for line in failed)
    assert all(line.endswith("): Failed to find C compiler.") for line in failed)


def test_float32_is_not_tested_in_tf32(monkeypatch):
    """torch allows tf32 on a GPU by default, which misses the limit of float32."""
    call, found = selftest._call, set()

    def recorded_call(op, arguments):
        found.add(backends.tf32_allowed())
        return call(op, arguments)

    monkeypatch.setattr(selftest, "_call", recorded_call)
    monkeypatch.setattr(selftest, "devices", lambda: [("reference", "cpu")])
    with selftest._tf32(True):
        list(selftest.run(0.0, only=0))
        assert backends.tf32_allowed()  # as before
    assert found == {False}


def test_tf32_is_tested_on_gpus_alone():
    assert "tf32" in selftest._arithmetics("encode", "cuda")
    assert "tf32" not in selftest._arithmetics("encode", "cpu")
    with selftest._tf32(True):
        assert backends.tf32_allowed()
    image, exact = (selftest.problem(7, "encode", name).arguments[0] for name in ("float32", "tf32"))
    assert image.stride() == exact.stride()
    assert not torch.any(exact.contiguous().view(torch.int32) & 0x1FFF)  # tf32 has no such bits
    assert 0 < (image - exact).abs().max() < 2**-8


def test_encode_int8_must_be_exact(monkeypatch, capsys):
    call = selftest._call

    def wrong_call(op, arguments):
        outputs = call(op, arguments)
        if op == "encode_int8":
            number = outputs[1][0, 0, -1, -1]
            number.copy_(torch.nextafter(number, number.new_tensor(torch.inf)))
        return outputs

    monkeypatch.setattr(selftest, "_call", wrong_call)
    assert main(["selftest", "--only", "5"]) == 1
    assert "encode_int8 in float32 on reference: problem 5 (" in capsys.readouterr().err


def test_a_problem_depends_only_on_its_number():
    first, again = (selftest.problem(7, "encode", "float32") for _ in range(2))
    assert first.description == again.description
    assert all(
        torch.equal(a, b) for a, b in zip(first.arguments, again.arguments, strict=True) if a is not None
    )
    assert first.description != selftest.problem(8, "encode", "float32").description


@pytest.mark.parametrize("arguments", [["--seconds", "nan"], ["--seconds", "x"], ["--only", "-1"]])
def test_numbers_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["selftest", *arguments])
    assert "needs" in capsys.readouterr().err
