"""`python -m strop emu`: the emulator on a command line. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from strop import __main__, _emu

FINDING = "strop::emu: "


def emu(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "strop", "emu", *arguments]
    done = subprocess.run(command, text=True, capture_output=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def program(*arguments: str, status: int = 0) -> str:
    """The output of the program itself, which starts faster than Python with torch."""
    done = subprocess.run([str(_emu.program()), *arguments], text=True, capture_output=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def table(output: str, first: str) -> list[list[str]]:
    """The rows, without commas in numbers, of the table whose head begins with this word."""
    head, _, rest = output.partition(f"\n{first} ")[2].partition("\n")
    assert head, output
    rows = []
    for line in rest.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) < 6:
            break
        rows.append([cell.replace(",", "") for cell in cells])
    return rows


def buffers(output: str) -> dict[str, list[int]]:
    """Of each buffer: bytes, read, different ones, written, different ones."""
    return {name: [int(number) for number in numbers] for name, *numbers in table(output, "buffer")}


def facts(output: str) -> dict[str, str]:
    """The lines that begin with one word and several spaces."""
    return dict(re.findall(r"^(\w+) {2,}(.*)$", output, re.MULTILINE))


def test_policy_loss_moves_what_it_must() -> None:
    done = emu("policy_loss", "--shape", "4,300", "--report")
    assert done.stderr == ""
    facts_found = facts(done.stdout)
    assert "policy_loss_row_kernel" in facts_found["kernel"] and facts_found["launch"].startswith("grid 4, block 128,")
    assert facts_found["findings"] == "0"
    found, n = buffers(done.stdout), 4 * 300
    for name in ("policy_logprobs", "old_policy_logprobs", "ref_logprobs"):
        assert found[name] == [4 * n, 4 * n, 4 * n, 0, 0], name
    assert found["completions_mask"] == [n, n, n, 0, 0]
    assert found["grad"] == [4 * n, 0, 0, 4 * n, 4 * n]
    assert found["loss"] == [4, 0, 0, 4, 4]
    size, read, different, *written = found["advantages"]  # every thread has its row's
    assert (size, different, written) == (16, 16, [0, 0]) and read > 16
    floor = 3 * 4 * n + n + 16 + 4 * n + 4
    assert facts_found["floor"] == f"{floor:,} bytes"
    moved = sum(read + written for _, read, _, written, _ in found.values())
    assert facts_found["moved"].startswith(f"{moved:,} bytes") and f"{moved / floor:.2f} x" in facts_found["moved"]


def test_policy_loss_without_gradient_and_reference() -> None:
    found = buffers(program("policy_loss", "--shape", "2,70", "--forward", "--beta", "0", "--loss", "bnpo", "--report"))
    assert not {"grad", "ref_logprobs"} & set(found)
    # Four tokens are read twice: a vector in which one row ends and the next begins, once for each.
    assert found["policy_logprobs"] == [560, 576, 560, 0, 0]


def test_reverse_kl_by_several_blocks() -> None:
    """9 KiB of shared memory hold no row of 1000 logits: blocks share it, and each logit still moves once."""
    output = program("reverse_kl", "--shape", "3,1000", "--shared-kib", "9", "--report", "--map")
    assert "grid 12," in facts(output)["launch"], output  # three rows, four blocks each
    found, n = buffers(output), 4 * 3 * 1000
    assert found["student_logits"] == found["teacher_logits"] == [n, n, n, 0, 0]
    assert found["grad"] == [n, 0, 0, n, n]
    assert facts(output)["floor"] == f"{3 * n + 3 + 4:,} bytes"
    (owners,) = re.findall(r"^grad +(\S+)$", output, re.MULTILINE)
    assert len(owners) == 64 and "." not in owners
    assert set(owners) <= set("0123456789ab*") and owners[0] != owners[12]


def test_reverse_kl_on_an_older_device() -> None:
    shape = ("--shape", "2,2,700", "--shared-kib", "8")
    output = program("reverse_kl", *shape, "--capability", "80", "--schedules", "2")
    assert "cluster 1," in facts(output)["launch"] and "sm_80" in facts(output)["device"]
    assert facts(output)["schedules"] == "forward, reverse and 2 random: bitwise equal"


def test_lines_are_counted() -> None:
    """Which lines a kernel reads from, how many sectors its warps move, and how many bank passes they make."""
    rows = table(program("policy_loss", "--shape", "2,1024", "--strides", "transposed", "--report"), "line")
    if rows[0][0] == "an unknown line":
        pytest.skip("no addr2line")
    reads = [row for row in rows if row[1:3] == ["policy_logprobs", "read"]]
    (sectors,) = {row[0] for row in reads}
    assert re.fullmatch(r"src/base/strided_load\.cuh:\d+", sectors)
    # Neighbouring tokens are 8 bytes apart: a warp's 32 tokens lie in 8 sectors, and would fit in 4.
    assert [[int(cell) for cell in row[3:7]] for row in reads] == [[2048, 64, 512, 256]]
    assert any(row[1] == "shared memory" and row[7] == "passes" for row in rows)


@pytest.mark.parametrize("mask", ["none", "random", "right_padding", "all_masked"])
@pytest.mark.parametrize("strides", ["contiguous", "sliced", "transposed", "misaligned"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_kind_agrees_with_the_oracle(mask: str, strides: str, dtype: str) -> None:
    kind = ("--mask", mask, "--strides", strides, "--dtype", dtype)
    program("policy_loss", "--shape", "3,150", *kind, "--loss", "bnpo")
    program("reverse_kl", "--shape", "2,2,130", *kind, "--in-place")


def test_schedules() -> None:
    output = program("policy_loss", "--shape", "2,9000", "--schedules", "3", "--order", "reverse", "--seed", "5")
    assert facts(output)["schedules"] == "forward, reverse and 3 random: bitwise equal"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("policy_loss", "--shape"),
        ("policy_loss --shape 4,300,2", "--shape"),
        ("policy_loss --shape 4,x", "--shape"),
        ("policy_loss --shape=-4,3", "--shape"),
        ("reverse_kl --shape 3,0", "--shape"),
        ("reverse_kl --shape 4000000,4000000", "--shape"),
        ("policy_loss --shape 4,3 --dtype float64", "--dtype"),
        ("policy_loss --shape 4,3 --loss dapo", "--loss"),
        ("policy_loss --shape 4,3 --beta nan", "beta"),
        ("reverse_kl --shape 4,3 --beta 0.1", "--beta"),
        ("policy_loss --shape 4,3 --mask some", "--mask"),
        ("policy_loss --shape 4,3 --strides odd", "--strides"),
        ("policy_loss --shape 4,3 --order sideways", "--order"),
        ("policy_loss --shape 4,3 --schedules 0", "--schedules"),
        ("policy_loss --shape 4,3 --capability 75", "--capability"),
        ("policy_loss --shape 4,3 --multiprocessors 0", "--multiprocessors"),
        ("policy_loss --shape 4,3 --shared-kib 1000", "--shared-kib"),
        ("dapo --shape 4,3", "dapo"),
        ("", "policy_loss or reverse_kl"),
    ],
)
def test_bad_arguments(arguments: str, named: str) -> None:
    message = program(*arguments.split(), status=2)
    assert message.startswith("strop-emu: ") and named in message, message


def test_bad_arguments_through_python() -> None:
    assert "--shape" in emu("reverse_kl", "--shape", "3", status=2).stderr


def test_says_that_it_was_not_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path
) -> None:
    monkeypatch.setattr(_emu, "program", lambda: tmp_path / "strop-emu")
    assert __main__.main(["emu", "policy_loss"]) == 2
    assert "STROP_EMULATOR" in capsys.readouterr().err
