"""Extraction from patterns, lists and shards, by several checkpoints at once, and joined files."""
# ruff: noqa: F811 (fixtures of another file)

import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_extraction import (  # noqa: F401
    EXPECTED,
    _stand_ins,
    fake_find_faces,
    folder,
    go,
    interrupted,
    model,
    names_and_faces,
    table,
    tiny_model,
    write_folder,
)

from facezoo.cli.main import main
from facezoo.errors import UnsupportedError
from facezoo.extraction import extract_each, join_files, resume, shards, sources, stages, writers


def columns_but(name, path):
    return [{key: value for key, value in row.items() if key != name} for row in table(path)]


def write_tar(folder, path):
    with tarfile.open(path, "w") as archive:
        for number, file in enumerate(sorted(folder.iterdir())):
            archive.add(file, arcname=file.name)
            info = tarfile.TarInfo(f"{file.stem}.json")
            info.size = 2
            archive.addfile(info, io.BytesIO(b"{}"))
            assert number < 100
    return path


def write_table(folder, path, as_struct=False, names=True, group=5):
    files = sorted(folder.iterdir())
    images = [file.read_bytes() for file in files]
    rows = {"image": [{"bytes": image, "path": None} for image in images] if as_struct else images}
    if names:
        rows["file"] = [file.name for file in files]
    pq.write_table(pa.table(rows), path, row_group_size=group)
    return path


def extract_all(given, output, models, **options):
    options = {"batch_size": 2, "progress": False, **options}
    return extract_each(given, dict(zip(output, models, strict=True)), **options)


# --- sources -----------------------------------------------------------------------------------


def test_two_models_cannot_have_one_output(folder, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = {"f.npz": model, tmp_path / "f.npz": model}
    with pytest.raises(ValueError, match=r"f\.npz is named twice"):
        extract_each(folder, outputs, progress=False)
    assert not (tmp_path / "f.npz.parts").exists()


def test_a_pattern_stands_for_what_it_matches(folder):
    pattern = str(folder / "00[1-3].*")
    names = sources.list_photos(pattern).names
    assert names == [str(folder / f"00{n}.png") for n in (1, 2, 3)]
    deep = sources.list_photos(str(folder.parent / "**" / "01*.png")).names
    assert deep == [str(folder / f"01{n}.png") for n in range(3)]
    with pytest.raises(FileNotFoundError, match="nothing matches the pattern"):
        sources.list_photos(str(folder / "*.gif"))


def test_a_pattern_follows_links_but_not_in_circles(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "deep" / "a.png").touch()
    (photos / "deep" / "up").symlink_to(photos)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "b.png").touch()
    (photos / "beside").symlink_to(tmp_path / "beside")
    once = ["beside/b.png", "deep/a.png"]
    names = sources.list_photos(str(photos / "**" / "*.png")).names
    assert names == [str(photos / name) for name in once]
    monkeypatch.chdir(photos)
    assert sources.list_photos("**/*.png").names == once
    through = sources.list_photos("deep/up/**/*.png").names
    assert through == [f"deep/up/{name}" for name in once]


def test_only_the_end_of_a_line_ends_a_name_in_a_list(tmp_path):
    names = [f"a{sign}b.png" for sign in ("\x0b", "\x1c", "\x85", "\u2028")]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_bytes("\r\n".join(names).encode())
    found = sources.list_photos(tmp_path / "list.txt").names
    assert found == sorted(str(tmp_path / name) for name in names)


def test_a_pattern_in_a_list_is_looked_for_in_the_folder_of_the_list_whatever_that_is_called(
    tmp_path,
):
    for name in ("set[1]", "set1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
        (tmp_path / name / "list.txt").write_text("*.png\nset*.png\n")
    for name in ("set[1]", "set1"):
        names = sources.list_photos(tmp_path / name / "list.txt").names
        assert names == [str(tmp_path / name / f"{name}.png")]


@pytest.mark.parametrize("pattern", ["photos/**/*.png", "photos/*/*.png", "ph*/closed/*", "**"])
def test_a_folder_that_cannot_be_listed_is_not_empty_to_a_pattern(
    pattern, folder, tmp_path, monkeypatch
):
    def refusing(path=".", scandir=os.scandir):
        if os.fspath(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    closed = folder / "closed"
    closed.mkdir()
    (closed / "000.png").touch()
    assert str(closed / "000.png") in sources.list_photos(str(folder.parent / pattern)).names
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="closed"):
        sources.list_photos(str(folder.parent / pattern))


def test_a_folder_that_a_pattern_or_a_list_stands_for_is_named_in_full_even_if_it_is_alone(folder):
    (folder.parent / "list.txt").write_text("photos\n")
    named = [str(folder / name) for name in sources.list_photos(folder).names]
    assert sources.list_photos(str(folder.parent / "photo*")).names == named
    assert sources.list_photos(folder.parent / "list.txt").names == named


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].png").touch()
    (tmp_path / "a1.png").touch()
    assert sources.list_photos(tmp_path / "a[1].png").names == [str(tmp_path / "a[1].png")]


def test_an_empty_name_is_not_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for given in ("", ["", "000.png"]):
        with pytest.raises(FileNotFoundError, match="an empty name"):
            sources.list_photos(given)
    assert "000.png" in sources.list_photos(".").names


def test_a_list_names_paths_relative_to_itself(folder):
    (folder.parent / "list.txt").write_text("photos/002.png\n\nphotos/01*.png\n")
    names = sources.list_photos(folder.parent / "list.txt").names
    (folder.parent / "windows.txt").write_bytes(
        b"\xef\xbb\xbfphotos/002.png\r\n\r\nphotos/01*.png\r\n"
    )
    assert sources.list_photos(folder.parent / "windows.txt").names == names
    assert names == [str(folder / f"{n}.png") for n in ("002", "010", "011", "012")]


@pytest.mark.parametrize("kind", ["tar", "table", "struct"])
def test_shards_give_the_rows_of_their_files(folder, tmp_path, model, kind):
    suffix = "tar" if kind == "tar" else "parquet"
    shard = tmp_path / f"shard.{suffix}"
    if kind == "tar":
        write_tar(folder, shard)
    else:
        write_table(folder, shard, as_struct=kind == "struct")
    go(folder, tmp_path / "files.parquet", model)
    go(shard, tmp_path / "shards.parquet", model)
    assert names_and_faces(tmp_path / "shards.parquet") == [
        (f"{shard}::{name}", face) for name, face in EXPECTED
    ]
    left, right = (columns_but("file", tmp_path / f"{n}.parquet") for n in ("files", "shards"))
    assert left == right


def test_links_in_a_tar_file_are_photographs_like_those_in_a_folder(folder, tmp_path, model):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, to in (("x/c.png", "../b.png"), ("x/gone.png", "nowhere.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            archive.addfile(info)
        archive.add(folder / "002.png", arcname="./x/a.png")
        info = tarfile.TarInfo("b.png")  # what tar makes of a second name of the same file
        info.type, info.linkname = tarfile.LNKTYPE, "./x/a.png"
        archive.addfile(info)
    (report,) = extract_all(tmp_path / "s.tar", [tmp_path / "f.parquet"], [model])
    assert [name.partition("::")[2] for name, _ in report.unreadable] == ["x/gone.png"]
    rows = [
        (name.partition("::")[2], face) for name, face in names_and_faces(tmp_path / "f.parquet")
    ]
    faces = [face for name, face in EXPECTED if name == "002.png"]
    assert rows == [(name, face) for name in ("x/c.png", "./x/a.png", "b.png") for face in faces]


def test_a_shard_is_not_replaced_by_its_own_features(folder, tmp_path, model, monkeypatch):
    shard = write_table(folder, tmp_path / "shard.parquet")
    before = shard.read_bytes()
    monkeypatch.chdir(tmp_path)
    for given in ("shard.parquet", "*.parquet", [folder, shard]):
        with pytest.raises(ValueError, match="is among what is to be read"):
            extract_all(given, ["../" + tmp_path.name + "/shard.parquet"], [model], overwrite=True)
    assert shard.read_bytes() == before


def test_rows_without_names_are_numbered_in_their_order(folder, tmp_path):
    shard = write_table(folder, tmp_path / "s.parquet", names=False)
    assert sources.list_photos(shard).names == [f"{shard}::{n:08d}" for n in range(13)]


def test_several_shards_are_read_in_the_order_of_their_names(folder, tmp_path, model, monkeypatch):
    for name in "ba":
        write_table(folder, tmp_path / f"{name}.parquet")
    output, whole = tmp_path / "out" / "f.parquet", tmp_path / "out" / "whole.parquet"
    output.parent.mkdir()
    pattern = str(tmp_path / "?.parquet")
    interrupted(pattern, output, model, monkeypatch, call=6)
    go(pattern, output, model)
    go(pattern, whole, model)
    assert output.read_bytes() == whole.read_bytes()
    keys = [f"{tmp_path / name}.parquet::{file}" for name in "ab" for file, _ in EXPECTED]
    assert [row["file"] for row in table(output)] == keys


def test_a_shard_that_was_replaced_does_not_continue_a_run(folder, tmp_path, model, monkeypatch):
    shard = write_tar(folder, tmp_path / "s.tar")
    interrupted(shard, tmp_path / "f.csv", model, monkeypatch)
    os.utime(shard, (1, 1))
    with pytest.raises(FileExistsError, match="was replaced since"):
        go(shard, tmp_path / "f.csv", model)


def test_an_image_in_a_shard_that_is_none_is_reported(folder, tmp_path, model):
    (folder / "003.png").write_bytes(b"no image")
    report = go(write_tar(folder, tmp_path / "s.tar"), tmp_path / "f.csv", model)
    assert [name for name, _ in report.unreadable] == [f"{tmp_path / 's.tar'}::003.png"]


def test_what_is_no_shard_is_refused(tmp_path):
    for name in ("x.tar", "x.parquet"):
        (tmp_path / name).write_bytes(b"rubbish" * 100)
        with pytest.raises(ValueError, match=r"is no (uncompressed tar|Parquet) file"):
            sources.list_photos(tmp_path / name)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "y.parquet")
    with pytest.raises(ValueError, match="needs a column 'image'"):
        sources.list_photos(tmp_path / "y.parquet")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(ValueError, match="no photographs in the shards"):
        sources.list_photos(tmp_path / "empty.tar")


def test_a_damaged_row_group_costs_its_own_photographs(folder, tmp_path, model):
    shard = write_table(folder, tmp_path / "s.parquet")
    content = bytearray(shard.read_bytes())
    column = pq.ParquetFile(shard).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 20] = b"\xff" * 20
    shard.write_bytes(content)
    report = go(shard, tmp_path / "f.parquet", model)
    hurt = [f"{n:03d}.png" for n in range(5, 10)]
    assert [name.rpartition("::")[2] for name, _ in report.unreadable] == hurt
    assert all(reason.startswith("row group 1 is damaged") for _, reason in report.unreadable)
    kept = [row for row in EXPECTED if row[0] not in hurt]
    rows = names_and_faces(tmp_path / "f.parquet")
    assert [(name.rpartition("::")[2], face) for name, face in rows] == kept


@pytest.mark.parametrize(("at", "damage"), [(0, bytes(512)), (148, b"7777777\0")])
def test_what_follows_a_broken_header_of_a_tar_file_is_reported(
    folder, tmp_path, model, at, damage
):
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w", format=tarfile.GNU_FORMAT) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    content = bytearray(shard.read_bytes())
    header = content.index(b"003.png\0")
    content[header + at : header + at + len(damage)] = damage
    shard.write_bytes(content)
    report = go(shard, tmp_path / "f.parquet", model)
    ((name, reason),) = report.unreadable
    assert name == str(shard)
    assert reason.startswith(f"goes on where it ends, at byte {header}: it is damaged")
    rows = names_and_faces(tmp_path / "f.parquet")
    assert [(name.rpartition("::")[2], face) for name, face in rows] == [
        row for row in EXPECTED if row[0] < "003.png"
    ]


def test_a_broken_shard_beside_photographs_is_reported(folder, tmp_path, model):
    write_tar(folder, tmp_path / "cut.tar")
    content = (tmp_path / "cut.tar").read_bytes()
    end = content.index((folder / "003.png").read_bytes()[:60]) + 100
    (tmp_path / "cut.tar").write_bytes(content[:end])
    for name in ("x.tar", "y.parquet"):
        (tmp_path / name).write_bytes(b"rubbish" * 100)
    given = [tmp_path / name for name in ("cut.tar", "x.tar", "y.parquet")]
    report = go([*given, folder / "000.png"], tmp_path / "f.parquet", model)
    assert [name for name, _ in report.unreadable] == [
        f"{given[0]}::003.png",
        *map(str, given),
    ]
    words = ["is cut off", "is no uncompressed tar file", "is no Parquet file"]
    for (_, reason), word in zip(report.unreadable[1:], words, strict=True):
        assert reason.startswith(word)
    assert report.rows == 1 + 0 + 2 + 1


def test_a_shard_that_changes_is_indexed_anew(folder, tmp_path):
    shard = write_tar(folder, tmp_path / "s.tar")
    assert len(shards.keys_of(shard)) == 13
    (folder / "000.png").unlink()
    write_tar(folder, shard)
    assert len(shards.keys_of(shard)) == 12
    with pytest.raises(OSError, match="no longer holds"):
        shards.read_stored(shard, "000.png")


# --- several checkpoints -----------------------------------------------------------------------


def test_two_checkpoints_in_one_pass_write_what_each_writes_alone(
    folder, tmp_path, model, monkeypatch
):
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return fake_find_faces(*arguments, **options)

    monkeypatch.setattr(stages, "find_faces", counted)
    models = [model, tiny_model(seed=1)]
    both = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    reports = extract_all(folder, both, models)
    assert len(calls) == 7  # batches of two of 13 photographs
    assert [report.output for report in reports] == both
    for path, alone in zip(both, models, strict=True):
        go(folder, tmp_path / "alone.parquet", alone, overwrite=True)
        assert path.read_bytes() == (tmp_path / "alone.parquet").read_bytes()


def test_a_kill_between_two_checkpoints_loses_and_repeats_nothing(
    folder, tmp_path, model, monkeypatch
):
    models = [model, tiny_model(seed=1)]
    whole = [tmp_path / "whole_a.npz", tmp_path / "whole_b.npz"]
    extract_all(folder, whole, models)
    both = [tmp_path / "a.npz", tmp_path / "b.npz"]
    append, calls = resume.Parts.append, []

    def killed(self, block):
        calls.append(1)
        if len(calls) >= 4:  # the second block of the second checkpoint, and all that follows
            raise KeyboardInterrupt
        append(self, block)

    with monkeypatch.context() as patch:
        patch.setattr(resume.Parts, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_all(folder, both, models)
    reports = extract_all(folder, both, models)
    assert [report.resumed for report in reports] == [8, 4]
    for path, wanted in zip(both, whole, strict=True):
        assert path.read_bytes() == wanted.read_bytes()


def test_a_kill_between_two_removals_takes_the_complete_output_as_done(
    folder, tmp_path, model, monkeypatch
):
    models = [model, tiny_model(seed=1)]
    both = [tmp_path / "a.npz", tmp_path / "b.npz"]
    (folder / "002.png").write_bytes(b"no image")
    remove = resume.Parts.remove

    def killed(self):
        if self.folder == resume.folder_of(both[1]):
            raise KeyboardInterrupt
        remove(self)

    with monkeypatch.context() as patch:
        patch.setattr(resume.Parts, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            extract_all(folder, both, models)
    before = [path.read_bytes() for path in both]
    with pytest.raises(FileExistsError, match=r"a\.npz is there already"):
        extract_all(folder, both, [tiny_model(seed=2), models[1]])
    for report in extract_all(folder, both, models):
        assert (report.images, report.resumed, len(report.unreadable)) == (13, 13, 1)
        assert (report.rows, report.without_face) == (len(EXPECTED) - 2, 4)
    assert [path.read_bytes() for path in both] == before
    assert not list(tmp_path.glob("*.parts*"))


def test_a_complete_output_of_another_pass_is_not_replaced_unasked(
    folder, tmp_path, model, monkeypatch
):
    both = [tmp_path / "a.npz", tmp_path / "b.npz"]
    go(folder, both[0], model)
    interrupted(folder, both[1], model, monkeypatch)
    with pytest.raises(FileExistsError, match=r"a\.npz is there already"):
        extract_all(folder, both, [model, model])


def test_a_block_less_its_first_photographs_keeps_the_rest(folder, tmp_path, model):
    plan = stages.plan_for(model, ["identity"], "all", "skip")
    loaded = sources.load_ahead(folder, [f"{n:03d}.png" for n in range(5)], workers=1, ahead=2)
    (block,) = stages.work(list(loaded), [plan], stages.Clock(exact=False), 2)
    rest = resume.without_first(block, 2)
    assert (rest.names, rest.without_face) == (["002.png", "003.png", "004.png"], [])
    assert rest.rows["photo"].tolist() == [0, 0, 1, 2]
    assert resume.without_first(block, 0) is block


def test_every_checkpoint_must_have_the_embeddings(folder, tmp_path, model):
    bare = model.__class__("test_resnet", 8, pose_backbone=None, decoder_size=None)
    options = {"what": ["pose"], "progress": False}
    with pytest.raises(UnsupportedError, match="pose"):
        extract_each(folder, {tmp_path / "a.npz": model, tmp_path / "b.npz": bare}, **options)
    with pytest.raises(ValueError, match="no output"):
        extract_each(folder, {})


def test_the_command_line_writes_a_file_per_checkpoint_and_joins(folder, tmp_path, model, capsys):
    model.save_pretrained(tmp_path / "one")
    tiny_model(seed=1).save_pretrained(tmp_path / "two")
    words = ["extract", str(folder / "00*.png"), "-o", str(tmp_path / "f.parquet")]
    models = ["--model", str(tmp_path / "one"), "--model", str(tmp_path / "two")]
    assert main([*words, *models, "--device", "cpu"]) == 0
    one, two = sorted(tmp_path.glob("f.*.parquet"))
    assert (one.name, two.name) == ("f.one.parquet", "f.two.parquet")
    again = tmp_path / "again.parquet"
    again.write_bytes(one.read_bytes())
    assert main(["join", str(one), str(again), "-o", str(tmp_path / "new" / "j.parquet")]) == 0
    assert "18 rows from 2 files" in capsys.readouterr().out
    assert main(["join", str(one), str(two), "-o", str(tmp_path / "k.parquet")]) == 1
    assert "has checkpoint" in capsys.readouterr().err
    assert main([*words, *models[:2], *models[:2]]) == 1
    assert "two of the models have one name" in capsys.readouterr().err


# --- joining -----------------------------------------------------------------------------------


def test_joined_files_hold_the_rows_of_all(folder, tmp_path, model):
    other = write_folder(tmp_path / "more", [2, 1])
    go(folder, tmp_path / "a.parquet", model)
    go(other, tmp_path / "b.parquet", model)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert join_files(files, tmp_path / "all.parquet") == len(EXPECTED) + 3
    assert table(tmp_path / "all.parquet") == [row for file in files for row in table(file)]
    with pytest.raises(FileExistsError, match="--overwrite"):
        join_files(files, tmp_path / "all.parquet")
    assert join_files(files[:1], tmp_path / "all.parquet", overwrite=True) == len(EXPECTED)


def test_columns_are_joined_by_their_names_whatever_the_versions(
    folder, tmp_path, model, monkeypatch
):
    own = dict(writers.VERSIONS)
    go(folder, tmp_path / "a.parquet", model)
    monkeypatch.setitem(writers.VERSIONS, "torch", "1.2.3")
    go(folder, tmp_path / "b.parquet", model, what=["identity", "expression"])
    said = json.loads(pq.read_schema(tmp_path / "b.parquet").metadata[b"facezoo"])
    assert said["versions"]["torch"] == "1.2.3"
    assert said["versions"].keys() == {"facezoo", "torch", "numpy"}
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    join_files(files, tmp_path / "all.parquet")
    assert pq.read_schema(tmp_path / "all.parquet").names == pq.read_schema(files[0]).names
    both = json.loads(pq.read_schema(tmp_path / "all.parquet").metadata[b"facezoo"])
    assert both["versions"] == {**own, "torch": f"{own['torch']}, 1.2.3"}
    rows = table(tmp_path / "all.parquet")
    assert rows[: len(EXPECTED)] == rows[len(EXPECTED) :]


def test_a_file_twice_and_other_formats_are_not_joined(folder, tmp_path, model):
    go(folder, tmp_path / "a.parquet", model)
    twice = [tmp_path / "a.parquet", folder / ".." / "a.parquet"]
    with pytest.raises(ValueError, match="is named twice"):
        join_files(twice, tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"must end in \.parquet, got .*week\.csv"):
        join_files(twice[:1], tmp_path / "week.csv")
    assert not (tmp_path / "week.csv").exists()


def test_files_of_another_fingerprint_are_not_joined(folder, tmp_path, model, monkeypatch):
    go(folder, tmp_path / "a.parquet", model)
    monkeypatch.setattr(stages, "fingerprint", lambda preprocessing, jpeg: "fedcba9876543210")
    go(folder, tmp_path / "b.parquet", model)
    with pytest.raises(ValueError, match="has fingerprint 'fedcba9876543210' and"):
        join_files([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "c.parquet")
    assert not (tmp_path / "c.parquet").exists()


def test_files_that_extraction_did_not_write_are_not_joined(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"rubbish" * 10)
    with pytest.raises(ValueError, match="not written by facezoo extract"):
        join_files([tmp_path / "x.parquet"], tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="is no Parquet file"):
        join_files([tmp_path / "y.parquet"], tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="no file to join"):
        join_files([], tmp_path / "c.parquet")
