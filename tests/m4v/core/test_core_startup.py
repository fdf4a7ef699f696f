import subprocess
import sys

import pytest

from m4v.core.startup import hidden, uncollected

PANDAS = """
import sys, pyarrow
from m4v.core.startup import keep_pandas_out
keep_pandas_out()
assert pyarrow.table({"a": [1, 2]}).num_rows == 2
assert "pandas" not in sys.modules
import pandas
assert pyarrow.table({"a": [1, 2]}).to_pandas()["a"].tolist() == [1, 2]
keep_pandas_out()
"""


def test_a_hidden_package_is_missing_inside_and_there_again_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)  # another test may have imported it
    with hidden("wave"), pytest.raises(ModuleNotFoundError, match="wave"):
        import wave
    import wave

    assert wave.open
    with hidden("wave"):
        import wave  # imported before: it stays


def test_imports_are_not_collected_and_what_was_set_comes_back() -> None:
    import gc

    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_arrow_takes_lists_without_pandas_and_gives_to_it_all_the_same() -> None:
    subprocess.run([sys.executable, "-c", PANDAS], check=True, timeout=300)


def test_a_supervisor_imports_neither_numpy_nor_fsspec() -> None:
    program = "import sys, pipelines.supervise; assert not {'numpy', 'fsspec', 'pydantic'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
