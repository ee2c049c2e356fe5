"""Captions find their files, frames are chosen by time, what is missing is said before anything is made."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

import prepare as prepare_command
from pom_jax.data.captioned import open_captioned, read_table, share_out
from pom_jax.data.captioned_pictures import picture_reader
from pom_jax.data.clips import UnusableClip, at_rate
from pom_jax.data.commands import parse_size
from pom_jax.data.pictures import ENDINGS, centre_crop, cover_crop, open_pictures
from pom_jax.errors import InputError


def open_table(path, text):
    path.write_text(text)
    return open_captioned(path, None, ENDINGS, "pictures")


def test_a_table_gives_paths_and_captions_among_other_columns(tmp_path):
    table = tmp_path / "a.csv"
    found = open_table(table, 'id,path,caption\n1,./x.png," a cat,\n asleep "\n2,sub/y.png,\n\n3,z.png\n')
    assert list(found.names) == ["x.png", "sub/y.png", "z.png"]
    assert found.caption(0) == "a cat, asleep"
    assert [found.refusal(index) for index in range(3)] == [None, "no caption", "no caption"]
    assert (found.name, found.folder) == ("a", tmp_path)
    other = open_table(table, 'id,path,caption\n1,x.png,"a dog, asleep"\n2,sub/y.png,\n3,z.png,\n')
    assert other.fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a first line with the columns path,caption; found ''"),
        ("path,label\nx.png,1\n", "found 'path,label'"),
        ("path,caption\n", "has no line but its first"),
        ("path,caption\nx.png,a\n ,b\n", "line 3 lacks its path"),
        (
            "path,caption\nx.png,a cat, asleep\n",
            "line 2 has 3 entries for 2 columns: put captions with commas",
        ),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        open_table(tmp_path / "a.csv", text)


def test_tables_and_texts_that_are_not_utf8_are_refused_or_listed(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"path,caption\nx.png,caf\xe9\n")
    with pytest.raises(InputError, match="is no table in UTF-8"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    (reason,) = [open_captioned(tmp_path, None, ENDINGS, "pictures").refusal(0)]
    assert (reason or "").startswith("its caption cannot be read: 'utf-8' codec")


def test_sources_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no pictures \(.png"):
        open_captioned(tmp_path, None, ENDINGS, "pictures")
    with pytest.raises(InputError, match=r"does not exist: give a folder of pictures, or a .csv"):
        open_captioned(tmp_path / "a", None, ENDINGS, "pictures")
    (tmp_path / "a.csv").write_text("path,caption\nx.png,a\n")
    with pytest.raises(InputError, match="is a table: give the folder of the pictures, or no --captions"):
        open_captioned(tmp_path / "a.csv", tmp_path / "a.csv", ENDINGS, "pictures")


def test_texts_that_are_captions_are_not_counted_among_files_left_out(tmp_path):
    for name in ("x.PNG", "y.jpg", "z.v2.png", "sub/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    for name in ("x", "y", "z.v2", "sub/x", "readme", "sub/y"):
        (tmp_path / f"{name}.txt").write_text(f"a {name}")
    (tmp_path / "notes.md").touch()
    found = open_captioned(tmp_path, None, ENDINGS, "pictures")
    captions = {name: found.caption(index) for index, name in enumerate(found.names)}
    assert captions == {"sub/x.png": "a sub/x", "x.PNG": "a x", "y.jpg": "a y", "z.v2.png": "a z.v2"}
    assert found.others == {".txt": 2, ".md": 1}
    table = tmp_path.parent / f"{tmp_path.name}.csv"
    table.write_text("path,caption\nx.PNG,another\n")
    assert open_captioned(tmp_path, table, ENDINGS, "pictures").others == {".txt": 6, ".md": 1}


def test_captions_of_a_table_go_to_the_files_it_names(tmp_path):
    for name in ("x", "y", "z"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.csv").write_text("path,caption\nz.png,last\ny.png,middle\n")
    found = open_captioned(tmp_path, tmp_path / "a.csv", ENDINGS, "pictures")
    captions = {name: found.caption(index) for index, name in enumerate(found.names)}
    assert captions == {"x.png": "", "y.png": "middle", "z.png": "last"}


def test_several_captions_of_a_file_stay_on_one_side(tmp_path):
    rows = "".join(f"{number % 20}.png,caption {number}\n" for number in range(60))
    found = open_table(tmp_path / "a.csv", f"path,caption\n{rows}")
    sources, pieces, held_out = share_out(found, None, 0.2, 7, 0, "pictures")
    sides = {
        split: np.concatenate([piece.indices for piece in pieces if piece.split == split])
        for split in sources
    }
    assert sorted(np.concatenate(list(sides.values()))) == list(range(60))
    files = {split: {found.names[index] for index in indices} for split, indices in sides.items()}
    assert (len(files["train"]), len(files["test"])) == (16, 4)
    assert not files["train"] & files["test"]
    assert held_out == "0.2 of all"
    assert max(len(piece.indices) for piece in pieces) == 7
    assert sorted(sides["train"]) != list(sides["train"]), "files are mixed"

    again, other = (share_out(found, None, 0.2, 7, seed, "pictures")[1][0].indices for seed in (0, 1))
    np.testing.assert_array_equal(again, pieces[0].indices)
    assert not np.array_equal(other, again)
    held = open_table(tmp_path / "b.csv", "path,caption\nx.png,a\n")
    sources, pieces, _ = share_out(found, held, 0.2, 7, 0, "pictures")
    assert sources == {"train": found, "test": held}
    assert sum(len(piece.indices) for piece in pieces if piece.split == "train") == 60


def frames(*times):
    return [SimpleNamespace(time=time, number=number) for number, time in enumerate(times)]


@pytest.mark.parametrize(
    ("times", "native", "fps", "expected"),
    [
        ([0, 0.1, 0.2, 0.3], 10, 10, [0, 1, 2, 3]),
        ([5, 5.1, 5.2, 5.3], 10, 5, [0, 2]),
        ([0, 1 / 30, 2 / 30, 0.1, 4 / 30, 5 / 30], 30, 12, [0, 2, 5]),
        ([0, 0.1, 0.5, 0.6], 10, 10, [0, 1, 1, 1, 1, 2, 3]),  # what stands still stands still
    ],
)
def test_the_frame_that_is_shown_at_each_moment_is_chosen(times, native, fps, expected):
    assert [frame.number for frame in at_rate(frames(*times), fps, native)] == expected


def test_frames_without_times_and_slower_files_are_refused():
    with pytest.raises(UnusableClip, match="its frames have no times"):
        list(at_rate(frames(None), 8, 8))
    with pytest.raises(UnusableClip, match="too slow: 8 frames a second, --fps=16"):
        list(at_rate(frames(0), 16, 8))


def test_crops_cover_any_shape_from_the_middle():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 255, (90, 130, 3), np.uint8))
    np.testing.assert_array_equal(cover_crop(picture, 20, 20), centre_crop(picture, 20))
    np.testing.assert_array_equal(cover_crop(picture, 90, 50), np.asarray(picture)[:, 40:90])
    np.testing.assert_array_equal(cover_crop(picture, 30, 130), np.asarray(picture)[30:60])
    assert cover_crop(picture, 200, 100).shape == (200, 100, 3)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_a_picture_with_a_caption_stands_upright_and_one_with_a_label_as_adm_has_it(
    tmp_path, orientation, ending
):
    corners = np.kron([[0, 60], [120, 180]], np.ones((32, 32))).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(np.stack([corners] * 3, -1)).save(path, exif=exif, quality=100)
    crop = picture_reader().read(tmp_path, path.name, (64, 64, 3))
    with Image.open(path) as picture:
        np.testing.assert_array_equal(crop, ImageOps.exif_transpose(picture).convert("RGB"))
    if ending != "tif":  # which Pillow turns by itself
        as_stored = open_pictures(tmp_path).crop(0, 64)
        assert bool(np.all(crop == as_stored)) == (orientation in (1, 9))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of Pillow, about the damage
def test_a_picture_whose_exif_is_damaged_is_read_all_the_same(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "camera"
    Image.new("RGB", (32, 32)).save(tmp_path / "a.jpg", exif=exif)
    data = bytearray((tmp_path / "a.jpg").read_bytes())
    first = data.index(b"Exif") + 6
    length = int.from_bytes(data[first - 8 : first - 6])  # from there on
    for place in range(first, first - 8 + length):
        for value in (0, 1, 255):
            damaged = bytes(data[:place] + bytes([value]) + data[place + 1 :])
            (tmp_path / "a.jpg").write_bytes(damaged)
            assert isinstance(picture_reader().read(tmp_path, "a.jpg", (32, 32, 3)), np.ndarray)


def test_sizes_are_height_times_width():
    assert parse_size("128x240") == (128, 240)
    assert parse_size("64") == (64, 64)
    for text in ("", "64x", "64x64x3", "-8x8"):
        with pytest.raises(InputError, match="must be height x width in pixels"):
            parse_size(text)


def arguments(folder, command):
    (folder / "in").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "in" / "x.png")
    (folder / "in" / "a.mp4").touch()
    words = [command, f"--source={folder / 'in'}", f"--out={folder / 'set'}", "--size=8"]
    return [*words, f"--text-encoder={folder}", *[f"--autoencoder={folder}"] * (command == "videos")]


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("videos", "av", "pip install 'pom_jax[video]'"),
        ("captions", "transformers", "pip install 'pom_jax[encoders]'"),
    ],
)
def test_packages_that_are_missing_are_named_with_their_extra(
    command, package, extra, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert prepare_command.main(arguments(tmp_path, command)) == 2
    error = capsys.readouterr().err
    assert f"needs the package {package}" in error
    assert extra in error


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--out={}/in/set", "is in --source="),
        ("--hosts=2", "--hosts=2 goes with --host=I"),
        ("--test-captions=a.csv", "--test-captions=a.csv goes with --test-source=FOLDER"),
        ("--moments=int8", "--moments=int8 is of latents: give --autoencoder=DIR too, or leave it out"),
        ("--size=0", "--size=0 must be at least 1"),
        ("--captions={}/none.csv", "cannot be read: No such file"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flag, message, tmp_path, capsys):
    words = arguments(tmp_path, "captions")
    assert prepare_command.main([*words, flag.format(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not Path(tmp_path / "set").exists()
