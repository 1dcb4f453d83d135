"""Text files to token ids: what an editor adds is dropped, what is not text is refused."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bilateral_export.errors import UserError
from bilateral_export.preprocessing import BytesPreprocessing, ListOpsPreprocessing
from bilateral_serving.client.inputs.files import expression, prepare, read_text, text_bytes

EXPRESSION = "[MAX 2 [MIN 4 7 ] 0 ]"


@given(st.text(min_size=1, max_size=20).filter(lambda text: text[0] != "\ufeff"))
def test_a_text_is_its_bytes_with_or_without_a_byte_order_mark(text: str) -> None:
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 1
    for content in (text.encode(), text.encode("utf-8-sig")):
        np.testing.assert_array_equal(text_bytes(content, 100), ids)


def test_it_is_no_part_of_an_expression_or_a_file_either(tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        expression(EXPRESSION.encode("utf-8-sig"), 20), expression(EXPRESSION.encode(), 20)
    )
    path = tmp_path / "text.txt"
    path.write_bytes("One.\r\nTwo.".encode("utf-8-sig"))
    assert read_text(path) == "One.\nTwo."


def test_a_text_may_be_cut_inside_a_character() -> None:
    assert len(text_bytes("\u00e9\u00e9".encode(), 3)) == 3


@pytest.mark.parametrize("text", ["<p>good &amp; bad</p>", 'a,"b, c",d\n1,2,3', "{}", "\x00"])
def test_markup_and_tables_are_text(text: str) -> None:
    assert len(text_bytes(text.encode(), 100)) == len(text)


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    ["caf\u00e9".encode("latin-1"), "good".encode("utf-16"), "good".encode("utf-32"), picture()],
    ids=["Latin-1", "UTF-16", "UTF-32", "PNG"],
)
def test_what_is_not_utf_8_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_bytes(content)
    for how in (BytesPreprocessing(length=50), ListOpsPreprocessing(length=50)):
        with pytest.raises(UserError, match="is not UTF-8 text: byte"):
            prepare([content], how, "m")
        with pytest.raises(UserError, match=r"f\.txt is not UTF-8 text: byte"):
            prepare([tmp_path / "f.txt"], how, "m")
    with pytest.raises(UserError, match=r"f\.txt is not UTF-8 text: byte"):
        read_text(tmp_path / "f.txt")


@pytest.mark.parametrize("content", [b"", codecs.BOM_UTF8])
def test_nothing_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        text_bytes(content, 5)


@pytest.mark.parametrize("content", ["<b>[MAX 1 2 ]</b>", "[MAX 1 2 ],2", "[MAX 1 2 ]\t2"])
def test_an_expression_is_an_expression_only(content: str) -> None:
    with pytest.raises(UserError, match="is not a ListOps expression"):
        expression(content.encode(), 20)
