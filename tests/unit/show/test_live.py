"""What is drawn while a response is written: the same on every kind of terminal, deaf to what tokens say, and cheap."""

from __future__ import annotations

import io
import math
import os
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tl_l2norm as l2
from tests.builders import NASTY, make_trace
from tl_l2norm import cli
from tl_l2norm.core.errors import InputError
from tl_l2norm.recording.token_stream import TokenStep
from tl_l2norm.show import live as live_module
from tl_l2norm.show.following import RunningScale, sparkline
from tl_l2norm.show.live import watch
from tl_l2norm.show.notebook import NotebookView
from tl_l2norm.show.terminal import TerminalView
from tl_l2norm.show.tokens import norm_text
from tl_l2norm.text.inert import inert

HOSTILE = (*NASTY, "\x1b]0;title\x07", "\x1b[2J\x1b[1;1H", "\x9b31m", "\r", "\b" * 5, "\x1b7", "\ud800", "數學🧠", "\u2028")
ESCAPES = re.compile(r"\x1b(?:\[[\d;]*[mG]|7|8)")
"""All that a view may say to a terminal: colours, a column, and to keep and take back the cursor's place."""


def steps(texts: Sequence[str], *, segment: str = "think", fires: Sequence[int] = ()) -> list[TokenStep]:
    """A response with rising norms at two layers, the second a late one; its last token isn't read back."""
    event = {"intervention": "ALRR", "fired": True}
    made = []
    for i, text in enumerate(texts):
        read = i + 1 < len(texts)
        made.append(
            TokenStep(
                token=i,
                token_text=text,
                text="".join(texts[: i + 1]),
                position=2 + i,
                segment=segment,
                l2_norms=torch.tensor([1.0, 10.0 + i]) if read else None,
                is_sink=torch.tensor([False, False]) if read else None,
                late_l2_norm=10.0 + i if read else math.nan,
                events=(event,) * (i in fires),
                finish_reason=None if read else "stop",
            )
        )
    return made


class Response(list[TokenStep]):
    """Stands in for a stream."""

    def __init__(self, given: Sequence[TokenStep], prompt: str = "Ask\x1b[5m this") -> None:
        super().__init__(given)
        self.prompt, self.layers, self.late_layers = prompt, (0, 1), (1,)
        self.trace = make_trace(["a", "b"], norms=[[1.0, 1.0], [10.0, 12.0]], prompt_len=2)
        self.log = SimpleNamespace(names=("ALRR",))
        self.completion = SimpleNamespace(finish_reason="stop")
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Screen(io.StringIO):
    """A terminal of these columns, or a file."""

    encoding = "utf-8"

    def __init__(self, *, tty: bool = True) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    def lines(self) -> list[str]:
        """What a reader sees: a terminal, as far as `ESCAPES` go."""
        rows: list[dict[int, str]] = [{}]
        column = kept = 0
        for part in re.split(rf"({ESCAPES.pattern}|\n)", self.getvalue()):
            if part == "\n":
                rows.append({})
                column = 0
            elif part == "\x1b7":
                kept = column
            elif part == "\x1b8":
                column = kept
            elif part.endswith("G") and part.startswith("\x1b"):
                column = int(part[2:-1]) - 1
            elif not part.startswith("\x1b"):
                for character in part:
                    rows[-1][column] = character
                    column += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        return ["".join(row.get(i, " ") for i in range(max(row, default=-1) + 1)).rstrip() for row in rows]


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORFGBG", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("TERM", "xterm-256color"), ("COLORTERM", "truecolor"), ("COLUMNS", "64"), ("LINES", "40")):
        monkeypatch.setenv(name, value)


def drawn(texts: Sequence[str], *, tty: bool = True, title: str = "", **options: Any) -> Screen:
    screen = Screen(tty=tty)
    assert watch(Response(steps(texts, **options)), TerminalView(screen), title=title)  # type: ignore[arg-type]
    return screen


LONG = tuple(f"word{i} " for i in range(40))


@pytest.mark.parametrize(
    "texts", [LONG, HOSTILE, ("x" * 150, "\n", "b"), ("數學" * 40, "🧠")], ids=["long", "hostile", "x", "wide"]
)
def test_a_terminal_shows_at_the_end_what_a_file_gets(texts: Sequence[str]) -> None:
    screen, file = drawn(texts), drawn(texts, tty=False)
    assert "\x1b" in screen.getvalue() and "\x1b" not in file.getvalue()
    seen, written = ([line for line in own.lines() if "tokens/s" not in line] for own in (screen, file))
    if "".join(texts).isascii():  # where cells are columns
        margins = [line for line in written if re.search("[▁-█]$", line)]
        assert len(margins) >= 2 and max(map(len, written)) <= 63
    assert seen == written


@pytest.mark.parametrize("tty", [True, False])
def test_nothing_that_a_token_says_reaches_the_terminal(tty: bool) -> None:
    text = drawn(HOSTILE, tty=tty, title="\x1b[8m hidden").getvalue()
    left = ESCAPES.sub("", text) if tty else text
    odd = {c for c in left if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")}
    assert odd == set() and inert("\x1b]0;title\x07") in left and "␛[5m" in left and "␛[8m" in left
    assert not re.search(r"\x1b\[[\d;]*[^\d;mG]", text)


def test_colours_are_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "48;2;" in drawn(LONG).getvalue()
    monkeypatch.setenv("COLORTERM", "")
    assert "48;5;" in drawn(LONG).getvalue() and "48;2;" not in drawn(LONG).getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    without = drawn(LONG, segment="answer", fires=[3]).getvalue()
    assert not re.search(r"[34]8;", without) and "\x1b[1mword1 " in without and "\x1b[1;4mword3 " in without
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in drawn(LONG).getvalue()


@pytest.mark.parametrize("background", ["", "0;15"])
def test_text_on_a_colour_has_contrast_and_more_norm_more_colour(background: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLORFGBG", background)
    pairs = re.findall(r"38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m", drawn(LONG).getvalue())
    assert len(pairs) > 20

    def light(rgb: Sequence[str]) -> float:
        r, g, b = (((int(c) / 255 + 0.055) / 1.055) ** 2.4 if int(c) > 10 else int(c) / 255 / 12.92 for c in rgb)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    contrasts = [sorted((light(pair[:3]) + 0.05, light(pair[3:]) + 0.05)) for pair in pairs]
    assert min(high / low for low, high in contrasts) > 4.5


def test_an_ascii_terminal_gets_ascii() -> None:
    screen = Screen(tty=False)
    screen.encoding = "ascii"
    watch(Response(steps(("naïve", "\n", "🧠", "end"))), TerminalView(screen))  # type: ignore[arg-type]
    assert screen.getvalue().isascii() and r"na\xefve" in screen.getvalue()


def test_a_scale_bears_a_spike_and_a_sparkline_keeps_it() -> None:
    scale = RunningScale()
    assert math.isnan(scale.ends[0]) and scale.place(3.0) == 0.0 and math.isnan(scale.place(math.nan))
    for value in [*map(float, range(100)), 1e9, math.nan]:
        scale.add(value)
    assert scale.place(-5.0) == 0 and scale.place(1e9) == 1 and scale.place(50.0) == pytest.approx(0.5, abs=0.02)
    assert sparkline([0.0, 0.5, 1.0, math.nan], 10) == "▁▅█ "
    assert sparkline([0.0] * 50 + [1.0] + [0.0] * 49, 10) == "▁▁▁▁▁█▁▁▁▁"


class Interrupted(Response):
    def __iter__(self) -> Any:
        yield from list.__iter__(self)
        raise KeyboardInterrupt


@pytest.mark.parametrize("view", [lambda: TerminalView(Screen()), lambda: NotebookView()], ids=["terminal", "notebook"])
def test_an_interruption_ends_what_is_drawn(view: Any, shown: list[str]) -> None:
    response, where = Interrupted(steps(LONG)[:5]), view()
    assert not watch(response, where) and response.closed  # type: ignore[arg-type]
    text = where._file.getvalue() if isinstance(where, TerminalView) else shown[-1]
    assert "5 tokens, interrupted" in text and "late norm (layers 1): mean 12, 10 to 14" in text


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """HTML of everything that a notebook was shown."""
    pages: list[str] = []

    def note(bundle: dict[str, str], **_: Any) -> Any:
        pages.append(bundle["text/html"])
        return SimpleNamespace(update=note)

    monkeypatch.setattr("IPython.display.display", note)
    return pages


def test_a_notebook_shows_text_curve_and_outcome_and_nothing_that_a_token_says(shown: list[str]) -> None:
    watch(Response(steps(HOSTILE, fires=[2]), prompt="<b>\n\x1b"), NotebookView(), title="<i>")  # type: ignore[arg-type]
    root = ET.fromstring(shown[-1])
    assert {element.tag for element in root.iter()} == {"div", "span", "strong", "svg", "polyline"}
    text = "".join(root.itertext())
    assert all(inert(token) in text for token in HOSTILE) and "<b>" in text and "ALRR: 1 states changed" in text
    assert "text-decoration:underline" in shown[-1] and len(shown) < 5, "quick tokens are drawn together"
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in text if c != "\n")
    shown.clear()
    watch(Response(steps(LONG * 50)), NotebookView())  # type: ignore[arg-type]
    assert len(shown[-1]) < 200_000 and shown[-1].count("<polyline") == 1


def test_live_is_the_response_of_generate(
    model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "in_notebook", lambda: False)
    prompt = l2.chat_prompt(model.tokenizer, "mod 10: 7A-3", mode="think")
    tokens = l2.live(model, prompt, max_new_tokens=12, temperature=1.0, seed=2, layer=-1)
    (truth,) = l2.generate(model, prompt, max_new_tokens=12, temperature=1.0, seed=2, progress=False)
    assert tokens.completion.tokens == truth.tokens and torch.equal(tokens.trace.l2_norms, truth.trace.l2_norms)
    written = capsys.readouterr().out
    assert "norm (layer 11)" in written and "\x1b" not in written
    with pytest.raises(InputError, match="layer 12 is not among those of the model: 0-11"):
        l2.live(model, prompt, layer=12)


@pytest.fixture(scope="module")
def model() -> Any:
    return l2.load_model("tiny-reasoner")


def test_a_real_terminal_is_known_and_drawn_in() -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as file:
        watch(Response(steps(("a ", "b ", "c"))), TerminalView(file))  # type: ignore[arg-type]
        file.flush()
        written = ""
        while "ALRR" not in written:
            written += os.read(master, 65536).decode()
    os.close(master)
    assert "\x1b7" in written and "3 tokens, it stopped" in written


def test_the_command_draws_with_and_without_and_keeps_both(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_load", lambda options: model)
    places = ["--out", str(tmp_path / "kept"), "--page", str(tmp_path / "thought.html")]
    assert cli.main(["live", "mod 10: 7A-3", "--suppress", "--max-new-tokens", "12", *places]) == 0
    written, kept = capsys.readouterr().out, l2.load_traces(tmp_path / "kept")
    assert [trace.labels["arm"].partition(" ")[0] for trace in kept] == ["plain", "Suppression"]
    assert kept[1].provenance.interventions and not kept[0].provenance.interventions
    assert written.count("mod 10: 7A-3") == 1 and "(arm 'high'), thresholds of the plain response" in written
    page = (tmp_path / "thought.html").read_text(encoding="utf-8")
    static = page[page.index("<l2-explorer") :]
    for trace in kept:
        assert f"norm {norm_text(float(trace.l2_norms[-1, 9]))}, position 9" in static
    assert "Suppression at layer" in static, "what was suppressed is said"
    assert re.search(r"the same tokens as without: the first \d+ of \d+", written)
    monkeypatch.setattr(cli, "_load", lambda options: pytest.fail("a model was loaded"))
    for arguments, says in (
        (["--arms", "lrs"], "no arm of lrs intervenes by itself"),
        (["--arms", "alrr", "--arm", "nope"], "no arm that intervenes by itself 'nope'"),
        (["--arm", "high"], "give --arms too"),
        (["--out", __file__], "--out is a file"),
        (["--page", str(tmp_path)], "--page is a folder"),
        (["--page", f"{__file__}/thought.html"], "the folder of --page is a file"),
        (["--out", f"{__file__}/kept"], "is a file, and nothing can be kept in it"),
    ):
        assert cli.main(["live", "Ask", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_a_prompt_that_is_no_text_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "_load", lambda options: pytest.fail("a model was loaded"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert cli.main(["live"]) == 2
    assert "the prompt on standard input isn't utf-8" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_terminal_of_a_column_is_drawn_in(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    file = io.StringIO()
    response = Response(steps(["ab", "數", "c"]))
    watch(response, TerminalView(file), title="t")
    lines = file.getvalue().splitlines()
    assert {"ab", "數", "c"} <= set(lines)


def test_a_script_is_no_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="this is no notebook: display='terminal'"):
        watch(Response(steps(["a", "b"])), NotebookView())
