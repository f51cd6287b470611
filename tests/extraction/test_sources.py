"""Sources of images: folders, files, patterns, lists and shards."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_faces import EXPECTED, interrupt, names_and_faces, run, table, write_image

from facezoo.extraction.sources import list_images, read_stored

pytestmark = pytest.mark.usefixtures("_fake_faces")


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_tar(folder, path):
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, arcname=file.name)
            info = tarfile.TarInfo(f"{file.stem}.json")
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
    return path


IMAGES = {
    "binary": lambda file: file.read_bytes(),
    "struct": lambda file: {"bytes": file.read_bytes(), "path": None},
    "paths": lambda file: {"bytes": None, "path": f"{file.parent.name}/{file.name}"},
    "string": lambda file: f"{file.parent.name}/{file.name}",
    "binary_view": lambda file: file.read_bytes(),
    "dictionary": lambda file: f"{file.parent.name}/{file.name}",
}


def write_shard(folder, path, kind="binary", names=True, group=5):
    files = sorted(folder.iterdir())
    images = pa.array([IMAGES[kind](file) for file in files])
    if kind == "binary_view":
        images = images.cast(pa.binary_view())
    if kind == "dictionary":
        images = images.dictionary_encode()
    columns = {"image": images}
    if names:
        columns["file"] = [file.name for file in files]
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def rows_of(path):
    """Return the keys and the faces of the rows of a shard."""
    return [(name.rpartition("::")[2], face) for name, face in names_and_faces(path)]


# --- files -------------------------------------------------------------------------------------


def test_folders_are_searched_by_suffix_in_sorted_order(tmp_path):
    touch(tmp_path, "b/2.JPG", "a/1.png", "c.jpeg", "notes.txt", ".hidden.png", ".cache/x.png")
    assert list_images(tmp_path).names == ["a/1.png", "b/2.JPG", "c.jpeg"]
    assert list_images(tmp_path, recursive=False).names == ["c.jpeg"]


def test_files_are_named_as_given_and_listed_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "images/b.png", "images/a")
    source = ["images/b.png", "images", "images/a"]
    assert list_images(source).names == ["images/a", "images/b.png"]


def test_a_source_that_does_not_exist_is_an_error(folder, tmp_path, tiny, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run([folder, tmp_path / "nowhere"], tmp_path / "f.csv", tiny)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no images in .*pattern such as 'folder/\*\.mp4'"):
        run(tmp_path / "empty", tmp_path / "f.csv", tiny)
    (tmp_path / "empty" / "a.cr2").touch()
    with pytest.raises(ValueError, match=r"no images in .*empty'; skipped 1 files .*\(1 \.cr2\)"):
        run(tmp_path / "empty", tmp_path / "f.csv", tiny)
    monkeypatch.chdir(folder)
    for source in ("", ["", "000.png"]):
        with pytest.raises(FileNotFoundError, match="the name of a source is empty"):
            list_images(source)
    assert "000.png" in list_images(".").names


def test_a_pattern_names_the_files_that_match(folder):
    names = list_images(str(folder / "00[1-3].*")).names
    assert names == [str(folder / f"00{n}.png") for n in (1, 2, 3)]
    deep = list_images(str(folder.parent / "**" / "01*.png")).names
    assert deep == [str(folder / f"01{n}.png") for n in range(3)]
    with pytest.raises(FileNotFoundError, match="no file matches the pattern"):
        list_images(str(folder / "*.gif"))


def test_a_pattern_follows_links_and_finds_each_file_once(tmp_path, monkeypatch):
    images = tmp_path / "images"
    touch(tmp_path, "images/deep/a.png", "other/b.png")
    (images / "deep" / "up").symlink_to(images)
    (images / "other").symlink_to(tmp_path / "other")
    names = list_images(str(images / "**" / "*.png")).names
    assert names == [str(images / name) for name in ("deep/a.png", "other/b.png")]
    monkeypatch.chdir(images)
    assert list_images("**/*.png").names == ["deep/a.png", "other/b.png"]


def test_a_folder_from_a_pattern_or_list_is_named_in_full(folder):
    (folder.parent / "list.txt").write_text("images\n")
    names = [str(folder / name) for name in list_images(folder).names]
    assert list_images(str(folder.parent / "image*")).names == names
    assert list_images(folder.parent / "list.txt").names == names


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    touch(tmp_path, "a[1].png", "a1.png")
    assert list_images(tmp_path / "a[1].png").names == [str(tmp_path / "a[1].png")]


def test_a_list_has_paths_and_patterns_relative_to_itself(folder):
    (folder.parent / "list.txt").write_text("images/002.png\n\nimages/01*.png\n")
    text = b"\xef\xbb\xbfimages/002.png\r\n\r\nimages/01*.png\r\n"
    (folder.parent / "windows.txt").write_bytes(text)
    names = [str(folder / f"{n}.png") for n in ("002", "010", "011", "012")]
    assert list_images(folder.parent / "list.txt").names == names
    assert list_images(folder.parent / "windows.txt").names == names


def test_a_list_can_have_unusual_names_and_be_in_a_folder_with_brackets(tmp_path):
    names = [f"a{sign}b.png" for sign in ("\x0b", "\x1c", "\x85", "\u2028")]
    touch(tmp_path, *names)
    (tmp_path / "list.txt").write_bytes("\r\n".join(names).encode())
    assert list_images(tmp_path / "list.txt").names == sorted(str(tmp_path / n) for n in names)
    for name in ("set[1]", "set1"):
        touch(tmp_path, f"{name}/{name}.png")
        (tmp_path / name / "list.txt").write_text("*.png\nset*.png\n")
    for name in ("set[1]", "set1"):
        found = list_images(tmp_path / name / "list.txt").names
        assert found == [str(tmp_path / name / f"{name}.png")]


# --- shards ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", *IMAGES])
def test_shards_give_the_rows_of_their_files(folder, tmp_path, tiny, kind):
    shard = tmp_path / ("shard.tar" if kind == "tar" else "shard.parquet")
    if kind == "tar":
        write_tar(folder, shard)
    else:
        write_shard(folder, shard, kind)
    run(folder, tmp_path / "files.parquet", tiny)
    run(shard, tmp_path / "shards.parquet", tiny)
    expected = [(f"{shard}::{name}", face) for name, face in EXPECTED]
    assert names_and_faces(tmp_path / "shards.parquet") == expected
    left, right = (table(tmp_path / f"{name}.parquet") for name in ("files", "shards"))
    for one, other in zip(left, right, strict=True):
        assert {**one, "file": ""} == {**other, "file": ""}


def test_links_in_a_tar_file_are_followed(folder, tmp_path, tiny):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, to in (("x/c.png", "../b.png"), ("x/gone.png", "nowhere.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            archive.addfile(info)
        archive.add(folder / "002.png", arcname="./x/a.png")
        info = tarfile.TarInfo("b.png")  # tar stores a hard link like this
        info.type, info.linkname = tarfile.LNKTYPE, "./x/a.png"
        archive.addfile(info)
    report = run(tmp_path / "s.tar", tmp_path / "f.parquet", tiny)
    assert [name.partition("::")[2] for name, _ in report.unreadable] == ["x/gone.png"]
    faces = [face for name, face in EXPECTED if name == "002.png"]
    expected = [(name, face) for name in ("x/c.png", "./x/a.png", "b.png") for face in faces]
    assert rows_of(tmp_path / "f.parquet") == expected


def test_an_output_does_not_replace_an_input(folder, tmp_path, tiny, monkeypatch):
    shard = write_shard(folder, tmp_path / "shard.parquet")
    before = shard.read_bytes()
    monkeypatch.chdir(tmp_path)
    for source in ("shard.parquet", "*.parquet", [folder, shard]):
        with pytest.raises(ValueError, match="is one of the inputs"):
            run(source, f"../{tmp_path.name}/shard.parquet", tiny, overwrite=True)
    assert shard.read_bytes() == before


def test_rows_without_names_are_numbered(folder, tmp_path):
    shard = write_shard(folder, tmp_path / "s.parquet", names=False)
    assert list_images(shard).names == [f"{shard}::{n:08d}" for n in range(13)]


def test_several_shards_are_read_in_the_order_of_their_names(folder, tmp_path, tiny, monkeypatch):
    for name in "ba":
        write_shard(folder, tmp_path / f"{name}.parquet")
    output, whole = tmp_path / "out" / "f.parquet", tmp_path / "out" / "whole.parquet"
    pattern = str(tmp_path / "?.parquet")
    interrupt(pattern, output, tiny, monkeypatch, call=6)
    run(pattern, output, tiny)
    run(pattern, whole, tiny)
    assert output.read_bytes() == whole.read_bytes()
    keys = [f"{tmp_path / name}.parquet::{file}" for name in "ab" for file, _ in EXPECTED]
    assert [row["file"] for row in table(output)] == keys


def test_a_shard_that_changes_is_noticed(folder, tmp_path, tiny, monkeypatch):
    shard = write_tar(folder, tmp_path / "s.tar")
    interrupt(shard, tmp_path / "f.csv", tiny, monkeypatch)
    os.utime(shard, (1, 1))
    with pytest.raises(FileExistsError, match="was replaced since"):
        run(shard, tmp_path / "f.csv", tiny)
    assert len(list_images(shard).names) == 13
    (folder / "000.png").unlink()
    write_tar(folder, shard)
    assert len(list_images(shard).names) == 12
    with pytest.raises(OSError, match=r"has no image '000\.png' any more"):
        read_stored(shard, "000.png")


# --- damage ------------------------------------------------------------------------------------


def test_a_broken_image_in_a_shard_is_reported(folder, tmp_path, tiny):
    (folder / "003.png").write_bytes(b"not an image")
    report = run(write_tar(folder, tmp_path / "s.tar"), tmp_path / "f.csv", tiny)
    assert [name for name, _ in report.unreadable] == [f"{tmp_path / 's.tar'}::003.png"]


def test_a_file_that_is_not_a_shard_is_an_error(tmp_path):
    for name in ("x.tar", "x.parquet"):
        (tmp_path / name).write_bytes(b"rubbish" * 100)
        with pytest.raises(ValueError, match=r"is not an? (uncompressed tar|Parquet) file"):
            list_images(tmp_path / name)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(ValueError, match=r"needs a column 'image' .* got \['text'\]"):
        list_images(tmp_path / "y.parquet")
    pq.write_table(pa.table({"image": [[1, 2]]}), tmp_path / "z.parquet")
    with pytest.raises(ValueError, match=r"needs a column 'image' .* got a column of list<"):
        list_images(tmp_path / "z.parquet")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match="no images in the shards"):
        list_images(tmp_path / "empty.tar")


def test_a_shard_with_wrong_paths_gets_a_warning_that_names_the_first(folder, tmp_path, tiny):
    (tmp_path / "elsewhere").mkdir()
    shard = write_shard(folder, tmp_path / "elsewhere/s.parquet", kind="paths")
    missing = tmp_path / "elsewhere" / folder.name / "000.png"
    reason = f"there is no such file: {missing}; paths in s.parquet are relative to its folder"
    count = len(list(folder.iterdir()))
    with pytest.warns(UserWarning, match=f"none of the {count} images can be read; .*000.png"):
        report = run(shard, tmp_path / "f.parquet", tiny)
    assert report.none_readable
    assert report.rows == 0
    assert report.unreadable[0][1] == reason


def test_a_damaged_row_group_loses_only_its_own_images(folder, tmp_path, tiny):
    shard = write_shard(folder, tmp_path / "s.parquet")
    content = bytearray(shard.read_bytes())
    column = pq.ParquetFile(shard).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    shard.write_bytes(content)
    report = run(shard, tmp_path / "f.parquet", tiny)
    lost = [f"{n:03d}.png" for n in range(5, 10)]
    assert [name.rpartition("::")[2] for name, _ in report.unreadable] == lost
    assert all(reason.startswith("row group 1 is damaged") for _, reason in report.unreadable)
    assert rows_of(tmp_path / "f.parquet") == [row for row in EXPECTED if row[0] not in lost]


@pytest.mark.parametrize(("at", "damage"), [(0, bytes(512)), (148, b"7777777\0")])
def test_data_after_a_broken_header_of_a_tar_file_is_reported(folder, tmp_path, tiny, at, damage):
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w", format=tarfile.GNU_FORMAT) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    content = bytearray(shard.read_bytes())
    header = content.index(b"003.png\0")
    content[header + at : header + at + len(damage)] = damage
    shard.write_bytes(content)
    report = run(shard, tmp_path / "f.parquet", tiny)
    ((name, reason),) = report.unreadable
    assert name == str(shard)
    assert reason.startswith(f"has more data after its end at byte {header}: it is damaged")
    assert rows_of(tmp_path / "f.parquet") == [row for row in EXPECTED if row[0] < "003.png"]


def test_broken_shards_among_images_are_reported(folder, tmp_path, tiny):
    write_tar(folder, tmp_path / "cut.tar")
    content = (tmp_path / "cut.tar").read_bytes()
    end = content.index((folder / "003.png").read_bytes()[:60]) + 100
    (tmp_path / "cut.tar").write_bytes(content[:end])
    for name in ("x.tar", "y.parquet"):
        (tmp_path / name).write_bytes(b"rubbish" * 100)
    shards = [str(tmp_path / name) for name in ("cut.tar", "x.tar", "y.parquet")]
    report = run([*shards, folder / "000.png"], tmp_path / "f.parquet", tiny)
    assert [name for name, _ in report.unreadable] == [f"{shards[0]}::003.png", *shards]
    texts = ["is cut off", "is not an uncompressed tar file", "is not a Parquet file"]
    for (_, reason), text in zip(report.unreadable[1:], texts, strict=True):
        assert reason.startswith(text)
    assert report.rows == 1 + 0 + 2 + 1


def test_a_path_in_a_shard_that_does_not_exist_is_reported(folder, tmp_path, tiny):
    shard = write_shard(folder, tmp_path / "s.parquet", "paths")
    (folder / "000.png").unlink()
    report = run(shard, tmp_path / "f.csv", tiny)
    ((name, reason),) = report.unreadable
    assert Path(name).name == "s.parquet::000.png"
    assert "no such file" in reason


def test_images_of_a_folder_next_to_files_keep_their_full_names(folder, tmp_path, tiny):
    write_image(tmp_path / "z.png", 1)
    names = list_images([folder, tmp_path / "z.png"]).names
    assert names[0] == str(folder / "000.png")
    assert names[-1] == str(tmp_path / "z.png")
