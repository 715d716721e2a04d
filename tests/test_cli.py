"""The command line: what it says, and with which status it ends. What the commands do is tested where it is done."""

import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ringworld
from ringworld import cli
from ringworld.cli.evaluate import (
    Captions,
    Evaluate,
    Film,
    Generation,
    MultiNeedle,
    Needle,
    Perplexity,
    Tokenizer,
    VideoNeedle,
    Vqa,
)
from ringworld.cli.generate import Chat, Generate
from ringworld.cli.media import Reconstruct, Tokenize
from ringworld.cli.train import Convert, Train
from ringworld.cli.values import Devices, OfModel
from ringworld.data.tokenized import TokenizedDocuments
from ringworld.errors import UserError
from ringworld.recipes import RECIPES
from ringworld.tokens.images import read_image, write_image
from ringworld.tokens.video import video_info, write_video
from ringworld.weights.tokenizer import save_tokenizer
from ringworld.worlds.world import World
from tokens.small_vqgan import SMALL, draw

MISSING = "ringworld: Missing from ringworld train: RECIPE; see ringworld --help\n"


def run(
    *words: str, typed: str | None = None, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own: JAX's devices cannot be made twice in one."""
    return subprocess.run(
        [sys.executable, "-m", "ringworld", *words],
        capture_output=True,
        text=True,
        timeout=120,
        input=typed,
        cwd=cwd,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100", **environment},
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ringworld {ringworld.__version__}\n"


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_lists_the_commands_with_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert not stop.value.code
    shown = capsys.readouterr().out
    for command in ("demo", "train", "evaluate", "generate", "tokenize", "reconstruct", "chat", "convert"):
        assert re.search(rf"• {command} ", shown)
        assert f"  ringworld {command}" in shown


def test_every_example_of_the_help_is_a_command_line() -> None:
    examples = [
        line.partition("#")[0].strip() for line in cli.DESCRIPTION.splitlines() if line.startswith("  ringworld")
    ]
    assert len(examples) >= 5
    for example in examples:
        assert callable(cli.parse(shlex.split(example)[1:]))


def test_help_does_not_wait_for_jax() -> None:
    code = "import sys, ringworld.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_words_of_the_train_command() -> None:
    words = "train debug --steps 3 --mesh data=1,sequence=8 --devices 8 --out somewhere --seed 4 --data prose"
    assert cli.parse(words.split()) == Train(
        recipe="debug",
        steps=3,
        out=Path("somewhere"),
        seed=4,
        data=Path("prose"),
        compute=Devices(mesh="data=1,sequence=8", devices=8),
    )


def test_the_words_of_the_evaluate_command() -> None:
    grid = "--model m --lengths 512,1024 --depths 5 --rounds 2 --out o"
    asked: dict[str, Any] = {"model": "m", "lengths": (512, 1024), "depths": 5, "rounds": 2, "out": Path("o")}
    needle, multi, perplexity = (
        cli.parse(words.split())
        for words in (
            f"evaluate needle {grid}",
            f"evaluate multi-needle {grid}",
            "evaluate perplexity --model m --out o --length 64",
        )
    )
    assert needle == Evaluate(Needle(**asked))
    assert multi == Evaluate(MultiNeedle(**asked, needles=4, asked=2))
    assert perplexity == Evaluate(Perplexity(model="m", out=Path("o"), length=64))


def test_the_words_for_a_model_that_sees() -> None:
    asked: dict[str, Any] = {"model": "m", "out": Path("o")}
    for words, command in (
        (
            "video-needle --lengths 64,600 --depths 3 --rounds 1 --form when --every 15 --part heldout --seed 4",
            VideoNeedle(
                **asked, lengths=(64, 600), depths=3, rounds=1, form="when", every=15, part="heldout", seed=4
            ),
        ),
        (
            "film --films 3 --frames 32 --scene 8 --things 1,2 --asked 4 --kinds what,passed --every 8",
            Film(
                **asked, films=3, frames=32, scene=(8, 8), things=(1, 2), asked=4, kinds=("what", "passed"), every=8
            ),
        ),
        (
            "vqa --data q.jsonl --fps 2 --max-frames 8 --question-first --no-instructed --bad-share 0.5",
            Vqa(
                **asked, data=Path("q.jsonl"), fps=2.0, max_frames=8, question_first=True, instructed=False,
                bad_share=0.5,
            ),
        ),
        (
            "captions --count 8 --frames 4 --things 1,3 --seed 2 --heldout place",
            Captions(**asked, count=8, frames=4, things=(1, 3), seed=2, heldout="place"),
        ),
        (
            "generation --count 8 --frames 4 --things 1,3 --guidance 1,2.5,4 --temperature 0.5 --seed 2 --batch 4",
            Generation(
                **asked, count=8, frames=4, things=(1, 3), guidance=(1.0, 2.5, 4.0), temperature=0.5, seed=2, batch=4
            ),
        ),
        ("generation --frames 8 --given 3", Generation(**asked, frames=8, given=3)),
        ("perplexity --data codes/ --every 15", Perplexity(**asked, data="codes/", every=15)),
    ):  # fmt: skip
        assert cli.parse(f"evaluate {words} --model m --out o".split()) == Evaluate(command)


class Mute:
    """Answers with one word, and draws nothing on grey, whatever it is asked."""

    fingerprint, context_length, frame_size, tokens_per_frame = "mute", 1024, 32, 17

    def __init__(self, model: object) -> None:
        assert model == "the model"

    def answer(self, conversations: Sequence[object], max_tokens: int) -> list[str]:
        return ["grey"] * len(conversations)

    def draw(self, prompts: Sequence[str], frames: int, brush: object) -> list[np.ndarray]:
        return [np.full((frames, 32, 32, 3), 140, np.uint8)] * len(prompts)

    def go_on(self, films: np.ndarray, frames: int, brush: object) -> list[np.ndarray]:
        return self.draw([""] * len(films), frames, brush)


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Who answers and draws is `Mute`."""
    monkeypatch.setattr(OfModel, "load", lambda self, many_rows: "the model")
    monkeypatch.setattr("ringworld.generation.answering.Answering", Mute)
    monkeypatch.setattr("ringworld.generation.drawing.Drawing", Mute)
    return monkeypatch


@pytest.mark.parametrize(
    ("words", "said", "files"),
    [
        (
            "video-needle --lengths 16 --depths 2 --rounds 1 --form clip",
            r"0\.0% right of 2 answers; see .*/video-needle-clip\.json and \.png\n",
            {"video-needle-clip.json", "video-needle-clip.png"},
        ),
        (
            "film --films 1 --frames 16 --asked 3 --kinds ground",
            r" +seen +held out\nfilms +1 +1\nquestions +3 +3\nall .*\nground .*\nsee .*/film\.json\n",
            {"film.json"},
        ),
        (
            "film --films 1 --minutes 2 --frames 4 --kinds when,what --asked 2",
            r" +seen +held out\nfilms +1 +1\nquestions +2 +2\nall .*\nwhat .*\nwhen .*\nsee .*/film\.json\n",
            {"film.json"},
        ),
        (
            "vqa --data DATA/q.jsonl --bad-share 1",
            r"50\.0% right of 2 answers; 1 pictures and films cannot be read; see .*/vqa\.json\n",
            {"vqa.json"},
        ),
        (
            "captions --count 2",
            r"(?s) +seen +held out\npictures +2 +2\nall +0\.0% +0\.0%\nground .*\nsee .*/captions\.json\n",
            {"captions.json"},
        ),
        (
            "captions --count 1 --frames 3",
            r"(?s) +seen +held out\nfilms +1 +1\nall .*\nmotion .*\nsee .*/captions-film\.json\n",
            {"captions-film.json"},
        ),
        (
            "generation --count 1 --guidance 1,2",
            r"(?s) +guidance 1 +guidance 1 +guidance 2 .*\nguidance 1 is the best .*\nsee .*/generation\.json and .*",
            {"generation.json", "generation", "generation-1.png", "generation-2.png"},
        ),
        (
            "generation --count 1 --frames 4 --given 2",
            r"(?s) +guidance 1 +guidance 1\n.*\nmotion .*\nsee .*/generation-film-given2\.json and .*",
            {"generation-film-given2.json", "generation-film-given2", "generation-film-given2-1.png"},
        ),
    ],
)
def test_what_a_model_sees_and_draws_is_evaluated(
    words: str, said: str, files: set[str], mute: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    write_image(data / "a.png", np.zeros((32, 32, 3), np.uint8))
    lines = [("a.png", "Grey"), ("a.png", "red"), ("nowhere.png", "grey")]
    (data / "q.jsonl").write_text(
        "".join(f'{{"media": "{name}", "question": "?", "answer": "{answer}"}}\n' for name, answer in lines)
    )
    command = f"evaluate {words.replace('DATA', str(data))} --model m --out {out}"
    assert cli.main(command.split()) == 0
    assert re.fullmatch(said, capsys.readouterr().out)
    assert {path.name for path in out.iterdir()} == files


def test_bad_settings_are_one_sentence(mute: object, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(f"evaluate captions --things 1,5 --model m --out {tmp_path / 'out'}".split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("ringworld: count and frames must be 1 or more, and things from 1 to 4")
    assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_films_of_minutes_have_no_scenes(mute: object, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = f"evaluate film --minutes 3 --scene 8 --model m --out {tmp_path / 'out'}"
    assert cli.main(command.split()) == 2
    assert "leave --scene and --things out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "video-needle --lengths 1",
        "film --frames 0",
        "vqa --data nowhere.jsonl",
        "captions --count 0",
        "generation --count 0",
    ],
)
def test_that_a_model_cannot_see_is_said_before_all_else(
    words: str, mute: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def blind(self: Mute, model: object) -> None:
        raise UserError("this model reads and writes text alone")

    mute.setattr(Mute, "__init__", blind)
    assert cli.main(f"evaluate {words} --model m --out {tmp_path / 'out'}".split()) == 2
    assert capsys.readouterr().err == "ringworld: this model reads and writes text alone\n"
    assert not (tmp_path / "out").exists()


def test_the_words_of_the_generate_command() -> None:
    words = ["generate", "text", "--model", "m", "--prompt", "The sea was", "--max-tokens", "32", "--temperature", "0"]
    assert cli.parse(words) == Generate(what="text", model="m", prompt="The sea was", max_tokens=32, temperature=0.0)


def test_the_words_of_the_convert_and_chat_commands() -> None:
    assert cli.parse(["convert", "a.jsonl", "codes", "--fields", "[caption],vision", "--bad-share", "0.1"]) == Convert(
        model="a.jsonl", target=Path("codes"), fields="[caption],vision", bad_share=0.1
    )
    assert cli.parse(["chat", "--model", "m", "--template", "lwm"]) == Chat(model="m", template="lwm")
    timed = "chat --model m --every 10 --resolution 60"
    assert cli.parse(timed.split()) == Chat(model="m", every=10, resolution=60)


def test_lwms_data_become_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "codes"
    good = {"caption": "a cat", "vision": [*range(8192 - 256, 8192)], "fields": "[caption],vision"}
    lines = [good, {**good, "vision": [*range(8192 - 255, 8193)]}, {"caption": "a dog"}, good]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["convert", str(data), str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ringworld: 2 of 4 lines of {data} are malformed ({data}:2: 'vision' has 256 numbers, and")
    assert f"{data}:3: 'fields' must be a spec of fields" in said
    assert said.endswith("more than the 1.00% allowed; mend them or allow a larger bad_share\n")
    assert not out.exists()
    words = ["convert", str(data), str(out), "--bad-share", "0.5"]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == f"2 documents in {out}; 2 left out, see {out / 'bad.jsonl'}\n"
    assert [document.spans[0].text for document in TokenizedDocuments(out)] == ["a cat", "a cat"]
    assert cli.main([*words[:2], str(tmp_path / "texts"), "--fields", "caption"]) == 0
    assert capsys.readouterr().out == f"4 documents in {tmp_path / 'texts'}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("convert smollm2 out --fields caption", "--fields is for a .jsonl of LWM's data, and smollm2 is none"),
        ("convert a.jsonl out --to lwm", "a.jsonl is data, which becomes shards: leave --to lwm out"),
        ("convert a.jsonl out --fields caption", "cannot read a.jsonl: No such file or directory"),
        ("convert a.jsonl out --fields a,,b", "the fields 'a,,b' have '': there must be a name"),
        ("chat --model m --template gpt", "invalid choice 'gpt' for argument '--template'"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_words_for_a_tokenizer_of_frames() -> None:
    nano = {"tokenizer": Path("nano"), "out": Path("o")}
    for words, command in (
        (
            "tokenize in --tokenizer nano --out o --fps 2 --fit pad",
            Tokenize(**nano, input=Path("in"), fps=2, fit="pad"),
        ),
        ("reconstruct a.png --tokenizer nano --out o", Reconstruct(**nano, input=Path("a.png"))),
        (
            "reconstruct a.mp4 --tokenizer nano --out o --fps 2",
            Reconstruct(**nano, input=Path("a.mp4"), fps=2.0),
        ),
        (
            "evaluate tokenizer --tokenizer nano --out o",
            Evaluate(Tokenizer(**nano, data="shapes", part="all")),
        ),
        ("train vqgan-nano --out o --init nano", Train(recipe="vqgan-nano", out=Path("o"), init="nano")),
    ):
        assert cli.parse(words.split()) == command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "Unrecognized options: trian; Available subcommands: demo, train, evaluate, generate"),
        ("tokenize films --tokenizer nano", "Missing from ringworld tokenize: --out DIR"),
        ("tokenize films --tokenizer nano --out o --fit squash", "invalid choice 'squash' for argument '--fit'"),
        ("reconstruct --tokenizer nano --out o.png", "Missing from ringworld reconstruct: INPUT"),
        ("train debug", "Missing from ringworld train: --out DIR"),
        ("train debug --out o --stepz 3", "Unrecognized options: --stepz, 3; Perhaps you meant: --steps N"),
        ("train debug --out o --steps x", "Error parsing --steps: must be a whole number, 0 or more; got 'x'"),
        ("train debug --out o --steps -1", "Error parsing --steps: must be a whole number, 0 or more; got '-1'"),
        ("train debug --out o more", "Unrecognized options: more"),
        ("evaluate", "Missing subcommand: Expected one of {needle, multi-needle, perplexity, video-needle, film, vqa"),
        ("evaluate needle --model m --out o --lengths 1,x", "must be a whole number, 0 or more; got 'x'"),
        ("evaluate film --model m --out o --things 1,2,3", "must be a whole number, or the smallest and the largest"),
        ("evaluate captions --model m --out o --heldout sky", "invalid choice 'sky' for argument '--heldout'"),
        ("evaluate generation --model m --out o --guidance 1,much", "must be a number; got 'much'"),
        (
            "generate text --model m --prompt p --temperature hot",
            "Error parsing --temperature: must be a number; got 'hot'",
        ),
    ],
)
def test_a_bad_command_line_is_one_line_and_status_2(
    words: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("ringworld: ")
    assert said in shown.err
    assert shown.err.endswith("; see ringworld --help\n")
    assert shown.err.count("\n") == 1
    assert not set(shown.err) & set("╭╮╰╯│─|+")
    assert "---" not in shown.err


def test_a_mistake_of_the_user_is_its_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> None:
        raise UserError("no such thing: use another")

    monkeypatch.setattr(cli, "parse", lambda words: command)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "ringworld: no such thing: use another\n"


def test_an_interruption_is_status_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", lambda words: command)
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == "ringworld: interrupted\n"


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise TypeError("ours")

    monkeypatch.setattr(cli, "parse", lambda words: command)
    with pytest.raises(TypeError, match="ours"):
        cli.main(["demo"])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_mistake_in_a_process_of_its_own(encoding: str) -> None:
    done = run("train", "--out", "o", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == MISSING


def test_a_mistake_on_a_terminal_is_the_same_line() -> None:
    reader, terminal = pty.openpty()
    process = subprocess.run(
        [sys.executable, "-m", "ringworld", "train", "--out", "o"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"},
    )
    os.close(terminal)
    assert process.returncode == 2
    assert os.read(reader, 4096).decode().replace("\r\n", "\n") == MISSING
    os.close(reader)


def test_a_missing_model_folder_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = run("generate", "text", "--model", str(tmp_path / "nowhere"), "--prompt", "a")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"ringworld: there is no model {tmp_path / 'nowhere'}")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the debug recipe, a few steps long, on a ring of eight virtual devices."""
    out = tmp_path_factory.mktemp("runs") / "debug"
    words = ["--steps", "2", "--mesh", "data=1,sequence=8", "--devices", "8", "--out", str(out)]
    done = run("train", "debug", *words)
    assert done.returncode == 0, done.stderr
    assert "mesh sequence=8" in done.stdout
    assert done.stdout.endswith(f"report: {out / 'report.html'}\n")
    assert "data:image/png" in (out / "report.html").read_text()
    return out


@pytest.mark.slow
def test_a_trained_model_generates_the_same_from_the_command_line_and_from_python(trained: Path) -> None:
    done = run("generate", "text", "--model", str(trained), "--prompt", "The sea", "--max-tokens", "6")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ringworld.load(trained).generate("The sea", max_tokens=6) + "\n"


@pytest.mark.slow
def test_a_trained_model_is_evaluated(trained: Path, tmp_path: Path) -> None:
    grid = ["--lengths", "128", "--depths", "2", "--rounds", "1", "--haystack", "tiny", "--out", str(tmp_path)]
    done = run("evaluate", "needle", "--model", str(trained), *grid)
    assert done.returncode == 0, done.stderr
    assert "2 questions" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"needle.json", "needle.png"}


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has seen a few pictures."""
    out = tmp_path_factory.mktemp("runs") / "debug-vision"
    done = run("train", "debug-vision", "--steps", "2", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_model_that_sees_draws_and_films_and_talks(seeing: Path, tmp_path: Path) -> None:
    words = ("--model", str(seeing), "--prompt", "a red circle", "--seed", "3")
    picture, film, longer = tmp_path / "a.png", tmp_path / "b.gif", tmp_path / "c.mp4"
    done = run("generate", "image", *words, "--guidance", "2", "--out", str(picture))
    assert (done.returncode, done.stdout) == (0, f"{picture}\n"), done.stderr
    assert read_image(picture).shape == (64, 64, 3)
    done = run("generate", "video", *words, "--frames", "3", "--fps", "2", "--out", str(film))
    assert done.returncode == 0, done.stderr
    assert (video_info(film).frames, video_info(film).seconds) == (3, pytest.approx(1.5))
    done = run("generate", "video", *words, "--frames", "2", "--like", str(picture), "--out", str(longer))
    assert done.returncode == 0, done.stderr
    assert video_info(longer).frames == 2
    lines = f"/image {picture}\nwhat?\n/video {film} 1\nwhat?\n"
    done = run("chat", "--model", str(seeing), "--max-tokens", "3", "--drawings", str(tmp_path), typed=lines)
    assert done.returncode == 0, done.stderr
    assert f"(shown: {picture})" in done.stdout
    assert f"(shown: 2 frames of {film})" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("image --prompt a", "image needs a file to write: name it with --out"),
        ("image --prompt a --out a.png --like b.png", "--like is what a video begins with"),
        ("image --prompt a --out a.xyz", "a.xyz must end in one of .png"),
        ("video --prompt a --out a.mp4 --frames 0", "0 frames were asked for"),
        ("video --prompt a --out a.mp4 --like nowhere.png", "nowhere.png"),
        ("image --prompt a --out a.png --guidance -1", "the guidance (CFG) is -1.0"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(seeing: Path, words: str, said: str, tmp_path: Path) -> None:
    done = run("generate", *words.split(), "--model", str(seeing), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("ringworld: ")
    assert said in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_suggests_the_nearest(tmp_path: Path) -> None:
    done = run("train", "nano-txt", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "did you mean 'nano-text'?" in done.stderr


def test_the_help_names_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    assert [name for name in RECIPES if name not in shown] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mesh", "sequence=3"), "the mesh data=1,fsdp=1,tensor=1,sequence=3 needs 3 devices but there are 4"),
        (("--mesh", "rows=3"), "cannot read the mesh 'rows=3'"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_what_a_run_cannot_do_is_one_sentence(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = run("train", "debug", "--out", str(tmp_path / "run"), "--devices", "4", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("ringworld: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "run").glob("checkpoints/*")) == []


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of frames of 32 pixels that nobody trained."""
    path = tmp_path_factory.mktemp("tokenizers") / "small.safetensors"
    save_tokenizer(path, SMALL, draw(SMALL))
    return path


def test_a_film_is_tokenized_and_reconstructed(small: Path, tmp_path: Path) -> None:
    media, out = tmp_path / "media", tmp_path / "out"
    write_video(media / "film.gif", World().film(0, 3).frames(48, 4), 4)
    (media / "bad.png").write_text("no picture")
    words = ("tokenize", str(media), "--tokenizer", str(small), "--out", str(out))
    done = run(*words)
    assert done.returncode == 2
    assert "1 of 2 documents cannot be read (bad.png: " in done.stderr
    done = run(*words, "--bad-share", "0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 documents with 3 frames in {out}; 1 left out, see {out / 'bad.jsonl'}\n"
    assert [len(document.spans[0].codes) for document in TokenizedDocuments(out)] == [3]
    beside = tmp_path / "beside.gif"
    done = run("reconstruct", str(media / "film.gif"), "--tokenizer", str(small), "--out", str(beside))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"PSNR [\d.]+ dB .*, 12 frames; see .*\n", done.stdout)
    assert video_info(beside).frames == 12


def test_a_tokenizer_is_evaluated(small: Path, tmp_path: Path) -> None:
    done = run("evaluate", "tokenizer", "--tokenizer", str(small), "--frames", "9", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.match(r"PSNR .*, 9 frames, [\d.]+% of them read rightly; see ", done.stdout)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer.png"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tokenize nowhere --tokenizer SMALL --out OUT", "there is no nowhere: name a picture"),
        ("tokenize . --tokenizer nanno --out OUT", "there is no tokenizer nanno: give the folder"),
        ("reconstruct nowhere.png --tokenizer SMALL --out OUT/b.png", "nowhere.png"),
        ("evaluate tokenizer --data nowhere --tokenizer SMALL --out OUT", "there is no nowhere"),
        ("train vqgan-nano --init SMALL --out OUT", "vqgan-nano cannot begin with the weights of"),
        ("train vqgan-lwm --out OUT", "vqgan-lwm trains on your own pictures and films"),
        ("train debug --init nowhere --out OUT", "there is no model nowhere: give a folder"),
        ("train vision-8k --out OUT", "vision-8k trains on pictures, films and texts of your own: name a folder"),
        ("train vision-8k --data . --out OUT", "vision-8k trains on image-text, video-text, text, and there is no"),
        ("train debug --stages 8k --out OUT", "debug has stages of its own and does not take --stages"),
        ("train extend --stages 8k --out OUT", "extend goes on from a trained model"),
    ],
)
def test_what_a_tokenizer_cannot_do_is_one_sentence(words: str, said: str, small: Path, tmp_path: Path) -> None:
    done = run(*words.replace("SMALL", str(small)).replace("OUT", str(tmp_path)).split())
    assert done.returncode == 2
    assert done.stderr.startswith("ringworld: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
