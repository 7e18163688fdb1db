"""What paths say: splits by the words that others use, classes by folders, and what contradicts itself is refused."""

import pytest

from trainer.data.layout import LayoutError, file_layout, folder_layout, natural_order

TRAIN, VAL, TEST = "train", "validation", "test"


@pytest.mark.parametrize(
    ("paths", "splits", "classes", "held_out"),
    [
        (["a/1", "b/2"], None, ["a", "b"], None),
        (["1", "2"], None, None, None),
        (["train/a/1", "val/a/2"], [TRAIN, VAL], ["a", "a"], VAL),
        (["Training/a/1", "TEST/a/2"], [TRAIN, TEST], ["a", "a"], TEST),
        (["train/1", "dev/2"], [TRAIN, VAL], None, VAL),
        (["train/a/1", "valid/a/2", "test/3"], [TRAIN, VAL, TEST], ["a", "a", ""], VAL),
        (["train/a/deep/1", "eval/b/2"], [TRAIN, TEST], ["a", "b"], TEST),
        (["set/train/a/1", "set/test/b/2"], [TRAIN, TEST], ["a", "b"], TEST),
        (["train/images/a/1", "val/images/b/2"], [TRAIN, VAL], ["a", "b"], VAL),
        (["archive/a/1", "archive/b/2"], None, ["a", "b"], None),
        (["a/1", "a/2"], None, ["a", "a"], None),
        (["train/a/1", "train/b/1"], [TRAIN, TRAIN], ["a", "b"], None),
        (["val/a/1", "test/b/1"], [VAL, TEST], ["a", "b"], None),
        (["train/1", "car/2", "plane/3"], None, ["train", "car", "plane"], None),
    ],
)
def test_folders_are_splits_where_all_are_named_so_and_classes_otherwise(paths, splits, classes, held_out):
    found = folder_layout(paths)
    assert found.splits == (splits and tuple(splits))
    assert found.classes == (classes and tuple(classes))
    assert found.held_out == held_out


def test_a_folder_that_is_passed_over_is_said():
    assert folder_layout(["zip/a/1", "zip/b/1"]).notes == ("everything is in zip/, which is passed over",)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["train/a/1", "val/a/1", "extra/a/1"], "train and val look like splits, 'extra' does not"),
        (["train/a/1", "val/a/1", "logo.png"], "train and val look like splits, 'logo.png' does not"),
        (["a/1", "2.png"], "'2.png' is in no sub-folder"),
        (["train/a/1", "val/2.png"], "'val/2.png' is in no sub-folder"),
    ],
)
def test_folders_that_contradict_each_other_are_refused(paths, said):
    with pytest.raises(LayoutError, match=said):
        folder_layout(paths)


def test_a_seeded_split_takes_folders_as_classes_where_they_are_not_all_splits():
    assert folder_layout(["train/1", "val/1", "extra/1"], seeded=True).classes == ("train", "val", "extra")
    assert folder_layout(["train/a/1", "val/b/1"], seeded=True).classes == ("a", "b")


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["data/train-00000-of-00002.parquet", "data/test-00000-of-00001.parquet"], [TRAIN, TEST]),
        (["default/train/0000.parquet", "default/validation/0000.parquet"], [TRAIN, VAL]),
        (["mnist_train.parquet", "mnist_test.parquet"], [TRAIN, TEST]),
        (["test/train-0.parquet"], [TRAIN]),
        (["latest-0.parquet", "contest.parquet"], None),
        (["a.parquet", "b.parquet"], None),
        (["train.parquet", "more.parquet"], None),
    ],
)
def test_files_are_of_the_split_that_their_name_or_else_their_folder_says(paths, splits):
    assert file_layout(paths).splits == (splits and tuple(splits))


def test_files_of_no_split_beside_files_of_splits_are_refused():
    paths = ["train-0.parquet", "test-0.parquet", "extra-0.parquet"]
    with pytest.raises(LayoutError, match=r"'train-0\.parquet' looks like a file of a split, 'extra-0\.parquet' does"):
        file_layout(paths)
    assert file_layout(paths, seeded=True).splits is None


def test_numbers_in_names_are_numbers():
    names = ["10", "2", "a10b", "a9b", "a9", "01", "1", "", "٣", "b"]
    assert sorted(names, key=natural_order) == ["", "01", "1", "2", "10", "a9", "a9b", "a10b", "b", "٣"]
