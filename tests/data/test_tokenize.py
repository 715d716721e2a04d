import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from ringworld.data import tokenize as job
from ringworld.data.tokenize import tokenize
from ringworld.data.tokenized import (
    MarkSpan,
    TextSpan,
    TokenizedDocument,
    TokenizedDocuments,
    VisionSpan,
    from_record,
    to_record,
    write_shard,
)
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh, named_sharding
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.images import read_image, write_image
from ringworld.tokens.video import write_video
from tokens.small_vqgan import SMALL, draw


@pytest.fixture(scope="module")
def tokenizer() -> FrameTokenizer:
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    return FrameTokenizer(jax.device_put(draw(SMALL), named_sharding(mesh, ())), SMALL, mesh, batch=8)


def noise(seed: int) -> np.ndarray:
    """A frame in 64 colours, so that a GIF loses nothing of it."""
    return np.random.default_rng(seed).integers(0, 4, (32, 32, 3), np.uint8) * 85


@pytest.fixture
def media(tmp_path) -> Path:
    folder = tmp_path / "media"
    for number in range(5):
        write_image(folder / f"picture-{number}.png", noise(number))
    write_video(folder / "film.gif", map(noise, range(100, 112)), 4)
    lines = [
        {"spans": [{"text": "two:"}, {"image": "picture-0.png"}, {"image": "picture-1.png", "trained": False}]},
        {"spans": [{"text": "a film", "trained": True}, {"video": "film.gif", "fps": 2}]},
    ]
    (folder / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def equal(one: TokenizedDocument, other: TokenizedDocument) -> bool:
    return to_record(one) == to_record(other)


def test_records_come_back():
    codes = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.int32) * 2000
    document = TokenizedDocument(
        "a.mp4", (TextSpan("\u00e9", 0.5), VisionSpan(codes, 2.0), VisionSpan(codes[:1], trained=False))
    )
    again = from_record(to_record(document))
    assert again.spans[0] == document.spans[0]
    np.testing.assert_array_equal(again.spans[1].codes, codes)
    assert (again.source, again.spans[1].fps, again.spans[2].fps, again.spans[2].trained) == ("a.mp4", 2.0, None, False)
    roles = TokenizedDocument(
        "b", (TextSpan("a", role="user"), VisionSpan(codes, role="assistant"), MarkSpan("eos", 0.5))
    )
    text, vision, mark = from_record(to_record(roles)).spans
    assert (text, mark, vision.role, vision.trained) == (roles.spans[0], roles.spans[2], "assistant", None)
    for wrong in (b"", b"\xc1", b"\x81\xa1a\x01", to_record(document)[:-3]):
        with pytest.raises(ValueError, match="not a tokenised document"):
            from_record(wrong)
    with pytest.raises(ValueError, match="codes must be 0 to 65535"):
        to_record(TokenizedDocument("a", (VisionSpan(np.full((1, 1, 1), 2**16, np.int32)),)))


def test_a_folder_becomes_documents(media, tmp_path, tokenizer):
    done: list[tuple[int, int, int]] = []
    out = tmp_path / "out"
    summary = tokenize(media, tokenizer, out, fingerprint="x", fps=1.0, progress=lambda *n: done.append(n))
    documents = list(TokenizedDocuments(out))
    assert [document.source for document in documents] == [
        "film.gif", "more.jsonl:1", "more.jsonl:2", *(f"picture-{n}.png" for n in range(5)),
    ]  # fmt: skip
    assert (summary.documents, summary.frames, summary.bad) == (8, 3 + 2 + 6 + 5, ())
    assert done == sorted(done)
    assert (done[0], done[-1]) == ((0, 8, 1), (8, 8, 16))
    film, two, clip = documents[0].spans[0], documents[1].spans, documents[2].spans
    np.testing.assert_array_equal(film.codes, tokenizer.encode(np.stack([noise(n) for n in (100, 104, 108)])))
    assert film.fps == 1.0
    assert two[0] == TextSpan("two:")
    np.testing.assert_array_equal(two[2].codes[0], tokenizer.encode(noise(1)[None])[0])
    assert (two[1].trained, two[2].trained, two[1].fps) == (None, False, None)
    assert (clip[0].trained, len(clip[1].codes), clip[1].fps) == (True, 6, 2)
    np.testing.assert_array_equal(documents[-1].spans[0].codes[0], tokenizer.encode(noise(4)[None])[0])


def test_conversations_keep_who_says_and_shows_what(tmp_path, tokenizer):
    write_image(tmp_path / "media" / "a.png", noise(0))
    answer = {"role": "assistant", "content": [{"text": "Here: "}, {"image": "a.png"}]}
    line = {"messages": [{"role": "user", "content": "Draw noise."}, answer]}
    bad = {"messages": [{"role": "user", "content": "Draw noise."}]}
    (tmp_path / "media" / "b.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(bad))
    summary = tokenize(tmp_path / "media" / "b.jsonl", tokenizer, tmp_path / "out", fingerprint="x", bad_share=0.5)
    (document,) = TokenizedDocuments(tmp_path / "out")
    assert document.spans[:2] == (TextSpan("Draw noise.", role="user"), TextSpan("Here: ", role="assistant"))
    assert (document.spans[2].role, document.spans[2].trained) == ("assistant", None)
    np.testing.assert_array_equal(document.spans[2].codes, tokenizer.encode(noise(0)[None]))
    assert summary.bad == (
        ("b.jsonl:2", 'not a raw document ("messages" must have an answer, what an assistant says or shows)'),
    )


def test_many_shards_hold_the_same_as_one(media, tmp_path, tokenizer, monkeypatch):
    tokenize(media, tokenizer, tmp_path / "one", fingerprint="x")
    monkeypatch.setattr(job, "SHARD", 3)
    tokenize(media, tokenizer, tmp_path / "three", fingerprint="x", workers=1)
    one, three = (TokenizedDocuments(tmp_path / name) for name in ("one", "three"))
    assert (len(one.paths), len(three.paths)) == (1, 3)
    assert all(map(equal, one, three))
    assert equal(one[7], three[7])
    with pytest.raises(IndexError):
        three[8]


def test_what_is_done_is_not_done_again(media, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(job, "SHARD", 3)
    out = tmp_path / "out"
    tokenize(media, tokenizer, out, fingerprint="x")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    (out / "documents-00001.array_record").unlink()
    made: list[str] = []
    shard = job._shard
    monkeypatch.setattr(job, "_shard", lambda some, *rest: made.append(some[0].source) or shard(some, *rest))
    tokenize(media, tokenizer, out, fingerprint="x")
    assert made == ["picture-0.png"]
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    assert [name for name in sorted(before) if before[name] != after[name]] == ["documents-00001.array_record"]
    for change, says in [({"fingerprint": "y"}, "its tokenizer was 'x' and is 'y' now"), ({"fps": 2.0}, "its fps was")]:
        with pytest.raises(UserError, match=f"holds another job's documents: {says}"):
            tokenize(media, tokenizer, out, **({"fingerprint": "x"} | change))
    write_image(media / "picture-9.png", noise(9))
    with pytest.raises(UserError, match="its documents was 8 and is 9 now"):
        tokenize(media, tokenizer, out, fingerprint="x")


def test_bad_files_are_listed_and_stop_the_job_beyond_a_share(media, tmp_path, tokenizer):
    whole = (media / "film.gif").read_bytes()
    (media / "film.gif").write_bytes(whole[: len(whole) // 2])
    (media / "picture-2.png").write_text("no picture")
    out = tmp_path / "out"
    says = r"3 of 8 documents cannot be read \(film\.gif: .*film\.gif.*: more than the 1\.00%"
    with pytest.raises(UserError, match=says):
        tokenize(media, tokenizer, out, fingerprint="x")
    summary = tokenize(media, tokenizer, out, fingerprint="x", bad_share=0.5)
    assert [source for source, _ in summary.bad] == ["film.gif", "more.jsonl:2", "picture-2.png"]
    assert [document.source for document in TokenizedDocuments(out)] == [
        "more.jsonl:1", "picture-0.png", "picture-1.png", "picture-3.png", "picture-4.png",
    ]  # fmt: skip
    listed = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert [line["source"] for line in listed] == ["film.gif", "more.jsonl:2", "picture-2.png"]
    assert "picture-2.png" in listed[2]["reason"]


def test_what_is_impossible_is_said_at_once(media, tmp_path, tokenizer):
    for asked, says in [({"fps": -1.0}, "fps must be 0.001 to 1000"), ({"bad_share": 2.0}, "bad_share must be 0 to 1")]:
        with pytest.raises(UserError, match=says):
            tokenize(media, tokenizer, tmp_path / "out", fingerprint="x", **asked)
    assert not (tmp_path / "out").exists()


def test_a_long_film_is_not_held(media, tmp_path, tokenizer, monkeypatch):
    """However long: what is read ahead is bounded."""
    read, encoded, most = 0, 0, 0

    def frames(span, size, fit):
        nonlocal read, most
        for number in range(400):
            read += 1
            most = max(most, read - encoded)
            yield noise(number % 7)

    encode = FrameTokenizer.encode

    def counting(self, some):
        nonlocal encoded
        encoded += len(some)
        return encode(self, some)

    monkeypatch.setattr(job, "_read", frames)
    monkeypatch.setattr(FrameTokenizer, "encode", counting)
    tokenize(media / "film.gif", tokenizer, tmp_path / "out", fingerprint="x")
    assert read == 400
    assert most <= job._AHEAD + 2 * tokenizer.batch + 2


def test_damaged_shards_are_said(tmp_path):
    with pytest.raises(UserError, match="no tokenised documents in"):
        TokenizedDocuments(tmp_path)
    (tmp_path / "documents-00000.array_record").write_bytes(b"not a shard")
    with pytest.raises(UserError, match=r"cannot read .*documents-00000"):
        TokenizedDocuments(tmp_path)


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    document = TokenizedDocument("a", (TextSpan("b"),))
    path = tmp_path / "documents-00000.array_record"
    write_shard(path, [document])
    before = path.read_bytes()
    monkeypatch.setattr("ringworld.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_shard(path, [document, document])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


PROGRAM = """
import sys
from pathlib import Path
from ringworld.mesh import use_cpu_devices
use_cpu_devices(1)
import jax
from data import test_tokenize as this
this.job.SHARD = 1
mesh = this.build_mesh(this.MeshShape())
own = this.FrameTokenizer(jax.device_put(this.draw(this.SMALL)), this.SMALL, mesh, 8)
this.tokenize(Path(sys.argv[1]), own, Path(sys.argv[2]), fingerprint="x")
"""


def test_a_job_killed_at_any_moment_goes_on(media, tmp_path, tokenizer, monkeypatch):
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": "tests", "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, media, out], env=environment)
    while process.poll() is None and len(list(out.glob("*.array_record"))) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    monkeypatch.setattr(job, "SHARD", 1)
    tokenize(media, tokenizer, out, fingerprint="x")
    tokenize(media, tokenizer, tmp_path / "whole", fingerprint="x")
    assert all(map(equal, TokenizedDocuments(out), TokenizedDocuments(tmp_path / "whole")))
    assert len(TokenizedDocuments(out)) == 8
    np.testing.assert_array_equal(read_image(media / "picture-0.png"), noise(0))


def test_a_full_disk_is_one_sentence_and_what_was_done_stays(media, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(job, "SHARD", 3)
    out = tmp_path / "out"
    written: list[Path] = []

    class Full(ArrayRecordWriter):
        def __init__(self, path: str, options: str) -> None:
            written.append(Path(path))
            super().__init__(path, options)

        def write(self, record: bytes) -> None:
            if len(written) == 2:
                raise RuntimeError("write() failed: No space left on device; writing a file; at byte 5")
            super().write(record)

    monkeypatch.setattr("ringworld.data.tokenized.ArrayRecordWriter", Full)
    says = (
        r"cannot write .*documents-00001\.array_record: write\(\) failed: No space left on device; the same job goes on"
    )
    with pytest.raises(UserError, match=says):
        tokenize(media, tokenizer, out, fingerprint="x")
    assert [path.name for path in sorted(out.glob("*.array_record"))] == ["documents-00000.array_record"]
    assert not list(out.glob(".documents*"))
    assert tokenize(media, tokenizer, out, fingerprint="x").documents == 8
