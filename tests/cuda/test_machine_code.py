"""Counting a step in a kernel's machine code: the loop, the path through it, the kinds of instructions."""

from __future__ import annotations

import re

import machine_code
from machine_code import Step

LOOP = """
		Function : kernel
        /*0000*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;     /* 0x0000000000007b1d */
        /*0010*/                   MOV R1, RZ ;
        /*0020*/               @P0 BRA 0x40 ;
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0040*/                   LDSM.16.M88.4 R4, [R8] ;
        /*0050*/              @!P1 BRA 0x90 ;
        /*0060*/                   HMMA.16816.F32 R12, R4, R10, R12 ;
        /*0070*/                   HMMA.1688.F32 R12, R4, R10, R12 ;
        /*0080*/                   BRA 0xa0 ;
        /*0090*/                   HMMA.16816.F32 R12, R4, R10, R12 ;
        /*00a0*/              @!P2 BRA 0xd0 ;
        /*00b0*/                   IADD3 R20, R20, 0x1, RZ ;
        /*00c0*/                   STS.64 [R9], R12 ;
        /*00d0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00e0*/               @P3 BRA 0x120 ;
        /*00f0*/                   CALL.REL.NOINC 0x150 ;
        /*0100*/                   IADD3 R21, R21, 0x1, RZ ;
        /*0110*/                   BRA 0x120 ;
        /*0120*/                   MOV R2, R3 ;
        /*0130*/               @P4 BRA 0x20 ;
        /*0140*/                   EXIT ;
        /*0150*/                   RET.REL.NODEC R2 0x0 ;
"""


def steps(dump: str) -> list[Step]:
    (code,) = machine_code.functions(dump).values()
    return machine_code.steps(code)


def test_step_is_the_heaviest_path_through_the_loop() -> None:
    """The path with the loads, the branch with more products and the stores, without the call."""
    # BRA, LDG, LDSM, BRA, HMMA, HMMA, BRA, BRA, IADD3, STS, BAR, BRA, MOV, BRA
    assert steps(LOOP) == [Step(slots=14, tensor=1.5, wavefronts=4 + 2, global_bytes=32 * 16)]


def test_unrolled_loop_has_two_steps() -> None:
    two = LOOP.replace("MOV R2, R3 ;", "BAR.SYNC.DEFER_BLOCKING 0x0 ;")
    assert steps(two) == [Step(slots=7, tensor=0.75, wavefronts=3, global_bytes=256)]


def test_each_role_has_a_loop() -> None:
    """The second role's loop starts at the exit of the first."""
    first = LOOP.replace("EXIT", "NOP ").replace("RET.REL.NODEC R2 0x0", "NOP")
    second = re.sub(
        r"(?<=/\*)[0-9a-f]{4}|(?<= 0x)[0-9a-f]+(?= ;)",
        lambda address: f"{int(address[0], 16) + 0x160:04x}",
        LOOP.replace("Function : kernel", ""),
    )
    assert steps(first + second) == 2 * steps(LOOP)


def test_no_main_loop() -> None:
    """A loop without a barrier or without products is not a main loop; it may load weights, for example."""
    assert steps(LOOP.replace("HMMA", "FFMA")) == []
    assert steps(LOOP.replace("BAR.SYNC.DEFER_BLOCKING 0x0", "NOP")) == []


def test_conditional_branches_may_fall_through() -> None:
    for line, falls_through in {
        "BRA 0x20": False,
        "@P1 BRA 0x20": True,
        "@PT BRA 0x20": False,
        "BRA.DIV UR4, 0x20": True,
        "BRA.U UP0, 0x20": True,
        "BRA.U !UP1, 0x20": True,
        "EXIT": False,
        "@P0 EXIT": True,
        "HMMA.16816.F32 R12, R4, R10, R12": True,
    }.items():
        (code,) = machine_code.functions(f"Function : k\n  /*0010*/   {line} ;").values()
        assert code[0].may_fall_through == falls_through, line
