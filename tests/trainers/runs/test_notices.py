"""What the package logs is shown once, wherever standard error goes at the moment."""

import logging

import pytest

from forkgym.trainers.runs.notices import PACKAGE, show_notices


def test_notices_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    show_notices()
    show_notices()
    logging.getLogger("forkgym.tools.sandbox").info("all layers hold")
    logging.getLogger("forkgym.tools.sandbox").debug("a detail")
    logging.getLogger("another.package").info("not ours")
    assert capsys.readouterr().err == "all layers hold\n"


def test_notices_go_where_standard_error_goes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    show_notices()
    other = io.StringIO()
    monkeypatch.setattr(sys, "stderr", other)
    logging.getLogger(PACKAGE).warning("left out 4 rows")
    assert (other.getvalue(), capsys.readouterr().err) == ("left out 4 rows\n", "")
