"""The wheel carries the three import names, and nothing lands beside the package."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from what git tracks or would track, as a release would."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(str.strip, listed.splitlines()):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    result = subprocess.run(
        [*command, "--outdir", str(out), str(source)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_every_room_under_one_name(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}

    assert {n for n in top if not n.endswith(".dist-info")} == {"flower_ext"}
    for folder in ("strategies", "clients"):
        for source in (ROOT / folder).rglob("*.py"):
            inside = source.relative_to(ROOT).as_posix()
            assert f"flower_ext/{inside}" in names
    for source in (ROOT / "flower_ext").rglob("*.py"):
        assert source.relative_to(ROOT).as_posix() in names
    assert "flower_ext/py.typed" in names
    for part in ("page.html", "page.css", "page.js"):
        assert f"flower_ext/report/{part}" in names


def test_the_wheel_carries_the_default_pair(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    for file in ("draft/model.safetensors", "draft/config.json"):
        assert f"flower_ext/models/default/{file}" in names
    for file in ("target/model.safetensors", "target/config.json"):
        assert f"flower_ext/models/default/{file}" in names
    assert "flower_ext/models/default/tokenizer/tokenizer.json" in names


def test_the_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import flower_ext.strategies, flower_ext.clients, flower_ext.coding as c;"
        "print(flower_ext.strategies.__file__, c.decode)"
    )

    # -S -E keeps the editable install out; only the dependencies are added back.
    site = next(p for p in sys.path if p.endswith("site-packages"))
    run = subprocess.run(
        [
            *(sys.executable, "-S", "-E", "-W", "ignore", "-c"),
            f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {site!r}]; {code}",
        ],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(str(tmp_path))
