"""A folder for results: a new or an empty one, or the same again."""

import pytest

from trainer import files
from trainer.errors import InputError


@pytest.mark.parametrize(
    ("held", "own", "refused"),
    [
        ([], (), False),
        (["a.txt"], (), True),
        (["a.txt"], ("blocks",), True),
        (["a.txt", "blocks"], ("blocks", "evaluation.json"), False),
    ],
)
def test_results_go_to_a_new_or_an_empty_folder_or_where_they_went_before(tmp_path, held, own, refused):
    out = tmp_path / "deep" / "out"
    if held:
        out.mkdir(parents=True)
    for name in held:
        (out / name).touch()
    if refused:
        with pytest.raises(InputError, match=r"--out .*out: holds a\.txt; allowed: a new or an empty folder"):
            files.check_output(out, "--out", own)
    else:
        files.check_output(out, "--out", own)
        assert out.is_dir()


def test_a_folder_for_results_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--out .*: Not a directory; allowed: a new or an empty folder"):
        files.check_output(tmp_path / "file" / "out", "--out", ())
