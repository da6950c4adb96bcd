"""Which processors are said to have matrix units."""

import pytest

from musicjax.nn import matrix_units


@pytest.mark.parametrize(
    ("flags", "options", "expected"),
    [
        ("flags\t: fpu amx_bf16 avx2", "", True),
        ("flags\t: fpu avx512_bf16 avx2", "", False),
        ("flags\t: fpu amx_bf16", "--xla_cpu_max_isa=AVX2", False),
        ("Features\t: asimd bf16", "", False),
        (None, "", False),
    ],
)
def test_units_are_those_the_system_tells(monkeypatch, tmp_path, flags, options, expected):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor\t: 0\n{flags}\n\nprocessor\t: 1\n{flags}\n")
    monkeypatch.setattr(matrix_units, "_PROCESSOR", file)
    monkeypatch.setenv("XLA_FLAGS", options)
    assert matrix_units.has_bfloat16_units.__wrapped__() is expected
