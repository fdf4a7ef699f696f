import fcntl
import gc
import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import hypothesis
import pytest

# Deterministic, quiet, and sized for small machines; children inherit these.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Hundreds of processes start here. Each would compile our modules anew where the environment forbids to keep that.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
gc.set_threshold(20_000)  # of 700: with torch loaded, walking what lives is a tenth of all time
os.fsync = lambda file: None  # no test cuts the power, and thousands of waits for the disk add up to minutes

# Shared machines stall now and then: a slow example is no failure.
hypothesis.settings.register_profile(
    "m4v", deadline=None, max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile("m4v-same", hypothesis.settings.get_profile("m4v"), derandomize=True)
hypothesis.settings.load_profile("m4v")

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
S3_BUCKET = "m4v-tests"
POSTGRES_S = 600  # to start on a machine of many busy processes


@pytest.fixture(scope="session")
def oracles() -> Path:
    """Golden numbers made with the reference implementations (`M4V_ORACLES`)."""
    path = Path(os.environ.get("M4V_ORACLES", REPOSITORY.parent / "shared" / "oracles"))
    if not path.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"golden fixtures are missing at {path}; set M4V_ORACLES")
        pytest.skip(f"golden fixtures are not at {path}; set M4V_ORACLES to run these tests")
    return path


class OracleError(Protocol):
    """Records the largest error against one golden fixture file; the test itself asserts that it is small enough.

    `name` is the file below the oracles (`pyramidflow/` and `.safetensors` may be left out); `tolerance` is shown
    as it is, e.g. `2e-5 / 1e-4` (absolute / relative) or `exact`.
    """

    def __call__(self, name: str, error: float, tolerance: str | float) -> None: ...


@pytest.fixture
def oracle_error(request: pytest.FixtureRequest, oracles: Path) -> OracleError:
    def record(name: str, error: float, tolerance: str | float) -> None:
        path = _golden_file(oracles, name)
        assert not math.isnan(error), f"the error against {name} is not a number"
        shown = tolerance if isinstance(tolerance, str) else f"{tolerance:g}"
        request.node.user_properties.append((GOLDEN, [str(path.relative_to(oracles)), float(error), shown]))

    return record


class OracleClose(Protocol):
    """`torch.testing.assert_close` against (part of) a golden fixture file, recorded as `oracle_error` does.

    Plain numbers and sequences are compared as float64.
    """

    def __call__(self, name: str, found: object, expected: object, *, atol: float, rtol: float) -> None: ...


@pytest.fixture
def oracle_close(oracle_error: OracleError) -> OracleClose:
    def check(name: str, found: object, expected: object, *, atol: float, rtol: float) -> None:
        import torch

        found, expected = (
            u.detach() if isinstance(u, torch.Tensor) else torch.tensor(u, dtype=torch.float64)
            for u in (found, expected)
        )
        same = found.shape == expected.shape
        error = float((found.double() - expected.double()).abs().max()) if same else math.inf
        oracle_error(name, error, "exact" if atol == rtol == 0 else f"{atol:g} / {rtol:g}")
        torch.testing.assert_close(found, expected, atol=atol, rtol=rtol, msg=lambda text: f"{name}: {text}")

    return check


def _golden_file(oracles: Path, name: str) -> Path:
    for below in ("", "pyramidflow"):
        for suffix in ("", ".safetensors", ".json"):
            path = oracles / below / (name + suffix)
            if path.is_file():
                return path
    raise AssertionError(f"no golden fixture is named {name}")


GOLDEN = "golden fixture"


class GoldenTable:
    """Collects what the tests record, from every worker, and prints one line for each golden file at the end."""

    def __init__(self) -> None:
        self.errors: dict[str, tuple[float, str, bool]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for kind, value in report.user_properties:
            if kind != GOLDEN:
                continue
            name, error, tolerance = value  # type: ignore[misc]
            before, shown, failed = self.errors.get(name, (-1.0, tolerance, False))
            if error > before:
                before, shown = error, tolerance
            self.errors[name] = (before, shown, failed or report.failed)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.errors:
            return
        terminalreporter.section("golden fixtures")
        width = max(map(len, self.errors))
        terminalreporter.write_line(f"{'file':{width}}  max error  tolerance (absolute / relative)")
        for name, (error, tolerance, failed) in sorted(self.errors.items()):
            shown = "0" if error == 0 else f"{error:.2e}"
            terminalreporter.write_line(f"{name:{width}}  {shown:>9}  {tolerance}{'  FAILED' if failed else ''}")


# Files of few tests that take long, the longest first. Begun last, one of them would keep a single worker busy while
# the others have nothing to do; xdist by itself begins with the files of many tests.
LONGEST = (
    "e2e/test_micro_pipeline.py", "e2e/test_prefect_deployments.py", "e2e/test_micro_elsewhere.py",
    "training/test_training_resume.py", "pipelines/cli/test_cli_generate.py", "eval/test_eval_generate.py",
    "faults/test_faults_executor.py", "e2e/test_run_killed.py",
    "e2e/test_two_runs_at_once.py", "browser/test_browser_access.py", "browser/test_browser_reviewer.py",
    "pipelines/takedown/test_takedown_apply.py", "pipelines/rerun/test_rerun_verify.py",
    "pipelines/exports/test_exports_mirrors.py", "browser/test_browser_subjects.py",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(GoldenTable(), "golden-table")
    config.option.loadscopereorder = False
    if "not deep" in config.option.markexpr:  # `make test`: the same examples every time; other runs draw new ones
        hypothesis.settings.load_profile("m4v-same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {TESTS / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


class PostgresServer:
    """Makes and drops databases of a PostgreSQL server; `uri` takes a database's name."""

    def __init__(self, uri: Callable[..., str]) -> None:
        self._uri = uri
        self._numbers = itertools.count(1)

    def create(self, template: str = "template1") -> str:
        """URL of a fresh database: empty, or a copy of one that nobody is connected to."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self._uri(name)

    def drop(self, url: str) -> None:
        self.execute(f"DROP DATABASE {urlsplit(url).path.lstrip('/')} WITH (FORCE)")

    def execute(self, *statements: str) -> None:
        import psycopg

        with psycopg.connect(self._uri(), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


class MadeOnce(Protocol):
    """A folder that all workers of a test session share; the first that asks for it has `make` fill it."""

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path: ...


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def shared(name: str, make: Callable[[Path], object]) -> Path:
        place = root / f"shared-{name}"
        place.mkdir(exist_ok=True)
        with (place / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (place / "done").exists():
                for left in {*place.iterdir()} - {place / "lock"}:  # of a worker that failed to make it
                    shutil.rmtree(left, ignore_errors=True)
                make(place)
                (place / "done").touch()
        return place

    return shared


@pytest.fixture(scope="session")
def micro_home(made_once: MadeOnce) -> Path:
    """Home of a finished `m4v run micro --no-prefect`, made once for all workers. Look, do not touch: `micro_copy`.

    Beside it lie `run.json` (what the command said) and `exposure` (what each training step consumed).
    """

    def run(place: Path) -> None:
        command = [sys.executable, "-m", "pipelines.cli.main", "--home", str(place / "home"), "run", "micro"]
        ran = subprocess.run(
            [*command, "--no-prefect", "--json"],
            env={**os.environ, "M4V_EXPOSURE_LOG": str(place / "exposure")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        (place / "run.json").write_text(ran.stdout)

    return made_once("micro", run) / "home"


def copy_home(finished: Path, place: Path) -> Path:
    """A copy of a home at `place`; its ledger names the copied artifacts."""
    from pipelines.ledger import Ledger
    from pipelines.store import ArtifactStore

    shutil.copytree(finished, place, symlinks=True)
    store = ArtifactStore(str(place / "store"))
    with Ledger.open(f"sqlite:///{place / 'ledger.db'}") as ledger:
        for record in store.list():
            ledger.import_artifact(record)
    return place


@pytest.fixture
def micro_copy(micro_home: Path, tmp_path: Path) -> Path:
    """A copy of `micro_home` to do with as one likes."""
    return copy_home(micro_home, tmp_path / "home")


@pytest.fixture(scope="module")
def micro_of_module(micro_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `micro_home` that the tests of one file share."""
    return copy_home(micro_home, tmp_path_factory.mktemp("copied") / "home")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real PostgreSQL server, started once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no XDG_RUNTIME_DIR: it locks in the temporary directory
        import pgserver
        from pgserver import postgres_server as library

    # Not below pytest's own directory: the server runs as a user of its own when tests run as root, and
    # another test session may close that directory to others at any time.
    directory = Path(tempfile.mkdtemp(prefix="m4v-postgres-"))
    with pytest.MonkeyPatch.context() as patch:  # it gives its server ten seconds to start, and pg_ctl itself sixty
        start = library.pg_ctl
        patch.setattr(library, "pg_ctl", lambda *words, **options: start(*words, **{**options, "timeout": POSTGRES_S}))
        patch.setenv("PGCTLTIMEOUT", str(POSTGRES_S))
        process = pgserver.get_server(directory / "data")
    server = PostgresServer(process.get_uri)
    unsafe = [f"ALTER SYSTEM SET {s} = off" for s in ("fsync", "synchronous_commit", "full_page_writes", "autovacuum")]
    server.execute(*unsafe, "SELECT pg_reload_conf()")
    yield server
    os.kill(process.get_pid(), signal.SIGQUIT)  # stop at once: nothing of it is kept
    process.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of a fresh PostgreSQL database."""
    url = postgres_server.create()
    yield url
    postgres_server.drop(url)


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """Name of a PostgreSQL database with the ledger's schema, to copy."""
    from pipelines.ledger import Ledger

    url = postgres_server.create()
    Ledger.open(url).close()
    return urlsplit(url).path.lstrip("/")


@pytest.fixture
def postgres_ledger(postgres_server: PostgresServer, migrated_postgres: str) -> Iterator[str]:
    """URL of a fresh PostgreSQL database with the ledger's schema: a copy is quicker than the migrations."""
    url = postgres_server.create(migrated_postgres)
    yield url
    postgres_server.drop(url)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the ledger's schema, to copy."""
    from pipelines.ledger import Ledger

    path = tmp_path_factory.mktemp("migrated") / "ledger.sqlite"
    Ledger.open(str(path)).close()
    assert [p.name for p in path.parent.iterdir()] == [path.name], "the journal is in the file"
    return path


@pytest.fixture
def sqlite_ledger(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Path of a fresh SQLite file with the ledger's schema: a copy is quicker than the migrations."""
    return str(shutil.copy(migrated_sqlite, tmp_path / "ledger.sqlite"))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Endpoint of an S3 protocol server (moto, over HTTP on loopback); `AWS_*` point to it meanwhile."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"])),
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir(S3_BUCKET)
        yield endpoint
    server.stop()


@pytest.fixture
def s3_root(s3_server: str) -> str:
    """`s3://bucket/prefix` of an empty prefix on the S3 server; child processes inherit the `AWS_*` variables."""
    return f"s3://{S3_BUCKET}/{uuid.uuid4().hex[:12]}"
