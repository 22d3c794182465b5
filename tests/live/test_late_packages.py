"""Late imports of real packages, each in a process of its own: what people do with them works."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from helpers.servers import clean_environ

PACKAGES = ("pandas", "numpy", "matplotlib", "openpyxl", "sqlalchemy", "scipy", "requests")
missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

only_quiet_before_3_15 = pytest.mark.skipif(
    sys.version_info >= (3, 15),
    reason="on 3.15 Python itself delays imports: whatever reads the name loads it (PEP 810)",
)

INSTALL = f"""\
import sys
import lowmem_wsgi.imports
lowmem_wsgi.imports.install({list(PACKAGES)})
"""


def python(*arguments: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=clean_environ({"MPLBACKEND": "Agg", "MPLCONFIGDIR": str(cwd)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def script(tmp_path: Path, code: str) -> str:
    path = tmp_path / "script.py"
    path.write_text(INSTALL + textwrap.dedent(code))
    return python(path, cwd=tmp_path)


USED_FROM_THREADS = """
import io, threading
import matplotlib.pyplot as plt
import matplotlib
import numpy as np
import openpyxl
import pandas as pd
import requests
import scipy.stats, scipy.linalg
import sqlalchemy as sa, sqlalchemy.orm

assert not {name.partition(".")[0] for name in sys.modules} & {
    "pandas", "numpy", "matplotlib", "openpyxl", "sqlalchemy", "scipy", "requests"
}

def use_pandas():
    frame = pd.DataFrame({"a": ["x", "y", "x"], "b": [1, 2, 3]})
    assert frame.groupby("a").b.sum().to_dict() == {"x": 4, "y": 2}
    assert pd.read_csv(io.StringIO("a,b\\n1,2\\n")).b.tolist() == [2]

def use_numpy():
    assert np.linalg.inv(np.array([[2.0, 0.0], [0.0, 4.0]])).tolist() == [[0.5, 0.0], [0.0, 0.25]]
    assert np.random.default_rng(1).integers(10, size=3).shape == (3,)

def use_matplotlib():
    with lock:  # pyplot is not for threads
        figure, axes = plt.subplots()
        axes.plot([1, 2, 3])
        out = io.BytesIO()
        figure.savefig(out, format="png")
        plt.close(figure)
    assert out.getvalue().startswith(b"\\x89PNG")
    assert matplotlib.pyplot is plt

def use_openpyxl():
    book, out = openpyxl.Workbook(), io.BytesIO()
    book.active.append([1, "two"])
    book.save(out)
    rows = openpyxl.load_workbook(io.BytesIO(out.getvalue())).active.iter_rows(values_only=True)
    assert list(rows) == [(1, "two")]

def use_sqlalchemy():
    class Base(sa.orm.DeclarativeBase): pass
    class Client(Base):
        __tablename__ = "clients"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String)
    engine = sa.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with sa.orm.Session(engine) as session:
        session.add(Client(name="x"))
        session.commit()
        assert session.scalars(sa.select(Client.name)).all() == ["x"]

def use_scipy():
    assert round(scipy.stats.norm.cdf(1.96), 3) == 0.975
    assert round(scipy.linalg.det([[1.0, 2.0], [3.0, 4.0]]), 6) == -2.0

def use_requests():
    asked = requests.Request("GET", "http://127.0.0.1/", params={"a": "b"}).prepare()
    assert asked.url == "http://127.0.0.1/?a=b"
    assert issubclass(requests.exceptions.ConnectionError, OSError)

USES = [use_pandas, use_numpy, use_matplotlib, use_openpyxl, use_sqlalchemy, use_scipy]
USES.append(use_requests)
lock, barrier, failures = threading.Lock(), threading.Barrier(8), []

def all_of_them(first):
    barrier.wait(30)
    for use in USES[first:] + USES[:first]:
        try:
            use()
        except BaseException:
            import traceback
            failures.append(use.__name__ + ":" + traceback.format_exc())

threads = [
    threading.Thread(target=all_of_them, args=(number * STEP % 7,), daemon=True)
    for number in range(8)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(90)
    assert not thread.is_alive(), "deadlock"
assert not failures, "\\n".join(failures)
for module in (pd, np, matplotlib, plt, openpyxl, requests, scipy, scipy.stats, sa, sa.orm):
    assert type(module) is type(sys) and sys.modules[module.__name__] is module, module
print("right")
"""


@pytest.mark.parametrize("step", [0, 1], ids=["the same first", "each another first"])
def test_seven_packages_used_from_eight_threads_at_once_give_right_results(
    tmp_path: Path, step: int
) -> None:
    assert script(tmp_path, f"STEP = {step}\n{USED_FROM_THREADS}") == "right\n"


def test_submodules_from_imports_and_pickles(tmp_path: Path) -> None:
    out = script(
        tmp_path,
        """
        import pickle
        import numpy as np
        import pandas as pd
        import pandas.io.parsers
        assert "pandas" not in sys.modules and "numpy" not in sys.modules
        from numpy import array
        assert np.array is array and "pandas" not in sys.modules
        from pandas.io.parsers import read_csv
        assert pandas.io.parsers.read_csv is read_csv is pd.read_csv
        frame = pd.DataFrame({"a": array([1, 2])})
        assert pickle.loads(pickle.dumps(frame)).equals(frame)
        assert pickle.loads(pickle.dumps(np.add)) is np.add
        assert pickle.loads(pickle.dumps(pd.DataFrame)) is pd.DataFrame
        assert pickle.loads(pickle.dumps(np.float64(1.5))) == 1.5
        print("right")
        """,
    )
    assert out == "right\n"


def test_a_pickle_that_brings_its_package_fills_the_one_that_was_put_off(tmp_path: Path) -> None:
    written = script(
        tmp_path,
        """
        import pandas as pd
        open("frame.pickle", "wb").write(__import__("pickle").dumps(pd.DataFrame({"a": [1]})))
        import pandas as pd
        print(type(pd))
        """,
    )
    assert written == "<class 'module'>\n"
    out = script(
        tmp_path,
        """
        import pickle
        import pandas as pd
        frame = pickle.load(open("frame.pickle", "rb"))
        assert isinstance(frame, pd.DataFrame)
        assert sys.modules["pandas"] is pd
        print(frame.a.tolist())
        """,
    )
    assert out == "[1]\n"


def test_plotting_does_not_bring_a_pandas_that_nobody_uses(tmp_path: Path) -> None:
    """Matplotlib looks in sys.modules for it."""
    out = script(
        tmp_path,
        """
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        import pandas as pd
        assert "matplotlib.pyplot" not in sys.modules
        plt.plot([1, 2], [3, 4])
        print("pandas" in sys.modules, pd.DataFrame({"a": [1]}).plot().lines)
        """,
    )
    assert out.startswith("False ")


QUESTIONS = """
        import importlib.util, inspect
        import matplotlib, numpy, pandas
        assert importlib.util.find_spec("pandas").origin == pandas.__file__
        assert inspect.getsourcefile(pandas) == pandas.__file__
        inspect.getmodule(dict.get)
"""


@only_quiet_before_3_15
def test_what_tools_ask_of_each_module_loads_none(tmp_path: Path) -> None:
    assert script(tmp_path, QUESTIONS + '        print("pandas" in sys.modules)') == "False\n"


def test_inspect_and_help_and_optional_dependencies(tmp_path: Path) -> None:
    out = script(
        tmp_path,
        QUESTIONS
        + """
        assert "def read_csv" in inspect.getsource(pandas.read_csv)
        assert inspect.getmodule(pandas.DataFrame).__name__.startswith("pandas")
        assert inspect.signature(pandas.read_csv)
        from pandas.compat._optional import import_optional_dependency
        assert import_optional_dependency("matplotlib") is matplotlib
        assert type(matplotlib) is type(sys)
        print("right")
        """,
    )
    assert out == "right\n"


MODULE = '''
"""An app's module.

>>> double(2)
4
>>> table(3).shape
(3, 1)
"""
import unittest
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd


def double(number):
    """
    >>> double(3)
    6
    """
    return 2 * number


def table(rows):
    return pd.DataFrame({"a": np.arange(rows)})


class Test(unittest.TestCase):
    def test_double(self):
        self.assertEqual(double(4), 8)


def test_nothing_is_loaded_by_collecting():
    import sys
    assert "pandas" not in sys.modules and "matplotlib" not in sys.modules
'''


def run_pytest(tmp_path: Path, which: str) -> str:
    (tmp_path / "conftest.py").write_text(INSTALL)
    (tmp_path / "test_app.py").write_text(MODULE)
    return python(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", "test_app.py"),
        *("-k", which, "-W", "error"),
        cwd=tmp_path,
    )


def test_pytest_collects_and_runs_an_app(tmp_path: Path) -> None:
    out = run_pytest(tmp_path, "not nothing")
    assert "3 passed" in out, out


@only_quiet_before_3_15
def test_pytest_collects_an_app_without_loading_what_it_does_not_use(tmp_path: Path) -> None:
    out = run_pytest(tmp_path, "double or nothing")
    assert "3 passed" in out, out


def test_doctest_runs_the_examples_of_an_app(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(MODULE)
    out = script(
        tmp_path,
        """
        import doctest, app
        found = doctest.DocTestFinder().find(app)
        assert "pandas" not in sys.modules
        print(len(found), doctest.testmod(app))
        """,
    )
    assert out == "2 TestResults(failed=0, attempted=3)\n", out
