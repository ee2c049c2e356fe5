"""eval.py for video: protocols, their report and files, from a workdir to the numbers; features of files."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.moving_digits import get_config
from pom_jax import models
from pom_jax.data import Records, read_manifest
from pom_jax.data import moving_digits as data
from pom_jax.errors import InputError
from pom_jax.evaluation import moving_digits as scores
from pom_jax.evaluation import video_pictures, video_protocols
from pom_jax.evaluation.evaluate_video import evaluate_workdirs
from pom_jax.evaluation.frechet import frechet_distance
from pom_jax.evaluation.video_features import compare_features, read_features
from pom_jax.evaluation.video_protocols import HeldOut, Run, follow
from pom_jax.evaluation.video_report import lost, table
from pom_jax.training import checkpoint
from pom_jax.training.config import keep_config

ROOT = Path(__file__).parents[1]
SIZE, FRAMES, CLIPS = 16, 4, 120


@pytest.fixture(scope="module")
def reference():
    return scores.fit("validation")


def held_out(told):
    shown = data.draw("validation", CLIPS, SIZE - data.SIDE)
    labels = data.digit_images("validation")[1][shown.digit]
    captions = "digit" if told else "direction"
    prompts = [data.caption(int(a), int(b), captions) for a, b in zip(labels, shown.direction, strict=True)]
    return HeldOut("validation", prompts, labels, shown, SIZE, told)


def copier(held):
    """A run that shows the true clips, and moves what it is given by the true paths."""

    def draw(prompts, frames, joint, given):
        if given is None:
            return held.clips(frames)
        paths = data.path(held.shown.start, held.shown.direction, frames, SIZE - data.SIDE)
        shifts = (paths - paths[:, :1]).tolist()
        moved = (
            [np.roll(clip[0], shift, (0, 1)) for shift in own]
            for clip, own in zip(given, shifts, strict=True)
        )
        return np.array(list(moved))

    return Run("copier", FRAMES, True, draw)


def test_the_memory_of_a_perfect_model_comes_from_the_frame_that_is_given(reference):
    held = held_out(told=False)
    found = follow("memory", [copier(held)], held, reference, say=lambda _: None)
    names = ["copier", "copier, swapped", "copier, blank", "frozen", "real"]
    assert [column.name for column in found.columns] == names
    ours, swapped, blank, frozen, real = found.columns
    for name in real.scores.clips:
        assert ours.scores.mean(name) == pytest.approx(real.scores.mean(name), abs=1e-6)
    assert real.scores.mean("true_frame")[0] == pytest.approx(1)
    assert lost(ours, "recognised", found) == 0
    assert swapped.scores.mean("recognised")[0] < 0.25
    assert abs(swapped.scores.mean("identity")[0]) < 0.1
    assert blank.scores.mean("recognised")[0] == blank.scores.mean("identity")[0] == 0
    assert frozen.scores.mean("direction")[0] == 0
    assert frozen.scores.mean("recognised") == real.scores.mean("recognised")
    # Pictures show what was really given.
    assert (blank.clips[:, 0] == -1).all()
    assert [row[0] for row in table(found)][:5] == [
        "", "recognised ↑", "recognised ↑, first", "recognised ↑, 16th", "recognised, points lost ↓"
    ]  # fmt: skip


def test_text_is_drawn_both_ways_and_length_from_frames_where_captions_do_not_tell_the_digit(reference):
    held = held_out(told=True)
    found = follow("text", [copier(held)], held, reference, say=lambda _: None)
    assert [column.name for column in found.columns] == ["copier, streamed", "copier, joint", "real"]
    assert found.columns[0].scores.clips["recognised"].shape == (CLIPS, FRAMES)
    assert "true_frame" not in found.columns[0].scores.clips
    found = follow("length", [copier(held)], held, reference, say=lambda _: None)
    assert found.columns[0].scores.frechet.shape == (8 * FRAMES,)
    assert [part.name for part in found.parts] == ["first 4", "last 4"]
    held = held_out(told=False)
    found = follow("length", [copier(held)], held, reference, say=lambda _: None)
    assert np.isnan(found.columns[0].scores.frechet[0])
    assert found.columns[0].scores.mean("on_path", found.parts[1].frames) == (1, 0)


def test_what_a_protocol_does_not_allow_is_said(reference):
    told, untold = held_out(told=True), held_out(told=False)
    whole = copier(told)._replace(streams=False)
    for name, run, held, message in [
        ("memory", copier(told), told, "captions tell the digit.*--captions=direction"),
        ("text", copier(untold), untold, "captions do not tell the digit.*--protocol=memory"),
        ("length", whole, told, "copier draws all frames at once"),
    ]:
        with pytest.raises(InputError, match=f"--protocol={name}: .*{message}"):
            follow(name, [run], held, reference)
    assert video_protocols.fitting([whole], told) == ["text"]
    with pytest.raises(
        InputError, match=r"no protocol fits: text, the captions do not tell.*; memory, .* at once"
    ):
        video_protocols.fitting([whole], untold)
    assert video_protocols.fitting([copier(untold)], untold) == ["memory", "length"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "clips"
    data.prepare(out, size=12, frames=3, clips=20)
    return out


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, folder):
    return make_run(tmp_path_factory.mktemp("run"), folder)


def make_run(place, folder):
    """What a run of train.py leaves, as far as scoring looks at it."""
    config, manifest = get_config(), read_manifest(folder)
    config.model.update({"frames": 3, "frame_height": 12, "frame_width": 12, "width": 8, "depth": 1})
    config.model.update({"num_heads": 1, "text_width": 8, "reads": ("all",), "phase_periods": ()})
    config.model.vocabulary = len(manifest.words)
    config.data.dir = str(folder)
    config.sampling.update({"steps": 2, "later_steps": 1})
    network = models.build(config.model)
    shapes = jax.eval_shape(lambda: models.init(network, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    keep_config(place, config, manifest.digest, manifest.words)
    checkpoints = checkpoint.Checkpoints(place, keep_last=1, keep_best=0)
    checkpoints.save(7, {"params": params, "ema": [params]})
    checkpoints.close()
    return place


def test_a_workdir_is_scored_from_end_to_end(workdir, tmp_path):
    said = []
    report = evaluate_workdirs(
        [workdir],
        ["text", "length"],
        split="validation",
        num=30,
        guidance=1.0,
        later_guidance=1.0,
        say=said.append,
    )
    assert "[1/2] text: drawing 30 clips of 3 frames, streamed: moving_digits" in said
    assert [found.protocol for found in report.found] == ["text", "length"]
    for words in (
        "30 of split validation, seed 0",
        "euler, 2 and later 1 steps, guidance 1, EMA 0.999 of step 7",
        "scikit-learn",
    ):
        assert words in report.protocol_line()
    assert checkpoint.load_config(workdir).data.digest in report.protocol_line()
    for shown in (report.text(), report.markdown()):
        assert "In short, moving_digits, streamed: recognised" in shown
        assert "nan" not in shown
        assert "recognised, points lost ↓" in shown
        assert shown.index("direction ↑, first step") < shown.index("the real held-out clips")

    written = video_pictures.save(report, tmp_path / "eval", "video_validation")
    assert {"video_validation.json", "video_validation_by_frame.png", "video_validation_text_strip.png"} <= {
        *written
    }
    assert len(written) == 8
    assert all((tmp_path / "eval" / name).stat().st_size > 500 for name in written)
    for protocols in (["text"], ["length"], ["text", "length"]):  # and no report overwrites another's files
        part = report._replace(found=[found for found in report.found if found.protocol in protocols])
        own = video_pictures.save(part, tmp_path / "eval", "_".join(["video_validation", *protocols]))
        assert not {*own} & {*written}
        assert sum("strip" in name for name in own) == len(protocols)
        written += own
    content = json.loads((tmp_path / "eval/video_validation.json").read_text())
    column = content["scores"]["text"]["columns"]["real"]
    assert column["by_frame"]["direction"] == [None, 1.0, 1.0]
    assert column["parts"]["all frames"]["direction"] == {"mean": 1.0, "standard_error": 0.0}
    assert column["parts"]["all frames"]["recognised"]["mean"] > 0.9
    with pytest.raises(InputError, match="cannot be written"):
        video_pictures.save(report, tmp_path / "eval/video_validation.md", "x")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"protocols": ["txt"]}, "--protocol = 'txt' is unknown. Did you mean 'text'"),
        ({"protocols": ["memory"]}, "the captions tell the digit"),
        ({"split": "train"}, "--split = 'train' is unknown"),
        ({"num": 1}, "--num=1: split test has clips to draw 2 to 1,000 by"),
        ({"num": 1001}, "2 to 1,000"),
        ({"guidance": -1.0}, "guidance must be"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"seed": -1}, "seed=-1"),
        ({"ema": 3}, "--ema=3"),
        ({"step": 8}, "8.*7"),
        ({"data": "nowhere"}, "nowhere does not exist"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(workdir, settings, words):
    with pytest.raises(InputError, match=words):
        evaluate_workdirs([workdir], **{"num": 10} | settings)


def test_clips_that_are_too_few_to_swap_first_frames_are_refused(tmp_path):
    data.prepare(tmp_path / "untold", size=12, frames=3, clips=1, captions="direction")
    run = make_run(tmp_path / "run", tmp_path / "untold")
    directions = Records(tmp_path / "untold", "test").gather(range(20))["direction"]
    needed = next(n for n in range(4, 20) if 1 not in np.bincount(directions[:n]))
    assert needed > 4
    with pytest.raises(
        InputError, match=f"--num=4: memory swaps .* direction alone; give at least {needed}$"
    ):
        evaluate_workdirs([run], ["memory"], num=4)
    found = evaluate_workdirs([run], ["memory"], num=needed, say=lambda _: None).found[0]
    columns = {column.name.partition(", ")[2]: column.clips[:, 0] for column in found.columns}
    assert (columns["swapped"] != columns[""]).any((1, 2, 3)).all()


def test_runs_and_data_that_do_not_go_together_are_refused(workdir, digits_dir, tmp_path):
    with pytest.raises(InputError, match="a run is given twice"):
        evaluate_workdirs([workdir, workdir], num=10)
    with pytest.raises(
        InputError, match=r"holds digits, and the scores of video are of moving-digits.*--features"
    ):
        evaluate_workdirs([workdir], num=10, data=digits_dir)
    data.prepare(tmp_path / "larger", size=13, frames=2, clips=1)
    with pytest.raises(InputError, match=r"draws frames of \(12, 12, 1\).*\(13, 13, 1\)"):
        evaluate_workdirs([workdir], num=10, data=tmp_path / "larger")
    data.prepare(tmp_path / "untold", size=12, frames=2, clips=1, captions="direction")
    with pytest.raises(InputError, match="only runs of the same captions compare"):
        evaluate_workdirs([workdir], num=10, data=tmp_path / "untold")


def test_features_in_files_have_the_distance_of_their_gaussians(tmp_path):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(300, 6)), rng.normal(size=(200, 6)) * 2 + 1
    np.save(tmp_path / "first.npy", first)
    np.savez(tmp_path / "second.npz", names=np.zeros(3), features=second)
    drawn, real = (read_features(tmp_path / name) for name in ("first.npy", "second.npz"))
    distance, notes = compare_features(drawn, real)
    assert distance == pytest.approx(frechet_distance(first, second))
    assert notes == ["it falls with the number of clips, here 300 against 200"]
    np.save(tmp_path / "few.npy", first[:6])
    assert (
        "6 clips give no full covariance of 6 features"
        in compare_features(read_features(tmp_path / "few.npy"), real)[1][0]
    )
    np.save(tmp_path / "wide.npy", rng.normal(size=(9, 7)))
    with pytest.raises(InputError, match="both must come from one network"):
        compare_features(read_features(tmp_path / "wide.npy"), real)


def test_files_without_features_are_refused(tmp_path):
    (tmp_path / "text.npz").write_text("nothing")
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 2)), b=np.zeros((3, 2)))
    np.save(tmp_path / "flat.npy", np.arange(3.0))
    np.save(tmp_path / "bad.npy", np.array([[1.0, np.nan], [2, 3]]))
    np.save(tmp_path / "same.npy", np.ones((4, 2)))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    for name, message in {
        "none.npz": "is no .npy or .npz",
        "text.npz": "is no .npy or .npz",
        "objects.npy": "is no .npy or .npz",
        "two.npz": "holds a, b; name the features",
        "flat.npy": r"features are numbers \[N, F\]",
        "bad.npy": "1 of 2 clips are not finite",
        "same.npy": "all 4 clips have the same features",
    }.items():
        with pytest.raises(InputError, match=message):
            read_features(tmp_path / name)


def test_eval_takes_the_flags_of_video_and_no_others(workdir, tmp_path):
    for arguments, words in [
        ([f"--workdir={workdir}", "--reference=x", "--seeds=1"], "video goes without --reference, --seeds"),
        (["--features=a.npy"], "goes with --real_features=FILE"),
        ([f"--workdir={workdir},"], f"--workdir={workdir},: a name is missing before or after a comma"),
    ]:  # fmt: skip
        done = run_eval(arguments, tmp_path)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(40, 3)))
    done = run_eval([f"--features={tmp_path}/a.npy", f"--real_features={tmp_path}/a.npy"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Fréchet distance of features: 0.0000\nnote: both files are the same" in done.stdout
    assert json.loads((tmp_path / "eval/feature_scores.json").read_text())["frechet"] == pytest.approx(
        0, abs=1e-9
    )


def run_eval(arguments, home):
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(home)}
    command = [sys.executable, str(ROOT / "eval.py"), *arguments]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120, env=environment)
