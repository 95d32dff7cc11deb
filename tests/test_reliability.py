"""Runs that are killed, starved of disk, or not alone: nothing is lost or damaged."""

import contextlib
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import MNIST_HandwritingRecognition as mnist

HERE = Path(__file__).parent
COMMAND = [sys.executable, mnist.__file__, "--data", str(HERE / "mnist_subset.npz")]
COMMAND += ["--limit", "600", "--epochs", "5", "--batch-size", "32", "--seed", "3"]


def run(outputs, seconds=None, **options):
    """Run the script as a user does; SIGKILL it after `seconds`. None if killed."""
    command = [*COMMAND, "--outputs", str(outputs)]
    try:
        return subprocess.run(
            command,
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
            **options,
        )
    except subprocess.TimeoutExpired:
        return None


def check_whole(outputs):
    """Every file under its final name is complete, and metrics.json is of its model."""
    for path in outputs.iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".keras":
            assert zipfile.ZipFile(path).testzip() is None
        elif path.suffix == ".csv":
            assert path.read_text().endswith("\n")
        else:
            assert path.name in ("metrics.json", ".unfinished")
    if (outputs / "metrics.json").exists():
        metrics = json.loads((outputs / "metrics.json").read_text())
        model = mnist.keras.saving.load_model(outputs / "model.keras")
        assert mnist.digest_weights(model) == metrics["weights_sha256"]


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The outputs of a run that nothing disturbed."""
    outputs = tmp_path_factory.mktemp("uninterrupted")
    assert mnist.main([*COMMAND[2:], "--outputs", str(outputs)]) == 0
    return outputs


def metrics_of(outputs):
    return json.loads((outputs / "metrics.json").read_text())


def same_result(outputs, reference):
    """Whether the two runs agree on the weights, all figures, and the history."""
    one, other = metrics_of(outputs), metrics_of(reference)
    for metrics in (one, other):
        del metrics["seconds"], metrics["images_per_second"]
    histories = [
        [line.rsplit(",", 1)[0] for line in (o / "history.csv").read_text().split("\n")]
        for o in (outputs, reference)
    ]
    return one == other and histories[0] == histories[1]


# ---- One run that is killed and started again, as a program ---------------------


def test_a_killed_run_leaves_nothing_half_done_and_says_that_it_goes_on(resuming):
    resumed = resuming.result()
    assert set(resumed.left) == {".unfinished"}
    said = "Data: .*\nGoing on with an unfinished run, after its epoch 5.\n"
    assert re.fullmatch(said, resumed.stderr)
    assert resumed.stdout.startswith("Test set of ")
    assert resumed.code == 0
    assert [file.name for file in resumed.folder.iterdir()] == ["here"]


def test_a_killed_run_ends_with_the_files_of_another_process(resuming, trained):
    outputs = resuming.result().folder / "here"
    assert same_result(outputs, trained.folder)
    names = [
        sorted(file.name for file in o.iterdir()) for o in (outputs, trained.folder)
    ]
    assert names[0] == names[1]


# ---- Many runs, cut off in many ways --------------------------------------------


def kill_until_done(outputs, kills, latest):
    """Kill runs at random moments; check after each; let the last one finish."""
    chance = random.Random(kills)
    for _ in range(kills):
        run(outputs, seconds=chance.uniform(3, latest))
        check_whole(outputs)
    assert run(outputs).returncode == 0
    check_whole(outputs)


@pytest.mark.slow
def test_killed_runs_end_with_the_same_result(outputs, uninterrupted):
    shutil.copytree(uninterrupted, outputs)
    kill_until_done(outputs, kills=2, latest=10)
    assert same_result(outputs, uninterrupted)
    assert not (outputs / ".unfinished").exists()


@pytest.mark.slow
def test_twenty_killed_runs(outputs, uninterrupted):
    kill_until_done(outputs, kills=20, latest=12)
    assert same_result(outputs, uninterrupted)


# The script, with a signal at each line it prints, where Python drops all exceptions.
IN_A_DESTRUCTOR = """
import builtins, runpy, signal, sys

class Signal:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def print_and_signal(*words, show=print, **options):
    show(*words, **options)
    Signal()

builtins.print = print_and_signal
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_signal_is_not_lost_where_an_exception_would_be(outputs):
    """TensorFlow's C++ drops one in every few dozen that come while a run starts."""
    command = [sys.executable, "-c", IN_A_DESTRUCTOR, *COMMAND[1:]]
    command += ["--outputs", str(outputs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 143
    data, nothing, said = done.stderr.splitlines()
    assert data.startswith("Data: ")
    assert nothing == ""
    assert said.startswith("Interrupted: the same command goes on from")


@contextlib.contextmanager
def started(*arguments):
    """A run of the script, which is killed if it doesn't end."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, mnist.__file__, *map(str, arguments)]
    with subprocess.Popen(command, **pipes) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            process.kill()


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_interrupt_says_how_to_go_on(outputs, number, code, uninterrupted):
    with started(*COMMAND[2:], "--outputs", outputs) as process:
        for line in process.stderr:
            if line.startswith("epoch 1"):
                process.send_signal(number)
                break
        said = process.stderr.read()
        process.wait()
    assert process.returncode == code
    assert "goes on from" in said
    assert "Traceback" not in said
    again = run(outputs)
    assert "Going on with" in again.stderr
    assert again.returncode == 0
    assert same_result(outputs, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.5, 2.5, 3, 3.5, 4])
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_interrupt_while_starting_is_one_line(outputs, number, code, seconds):
    with started(*COMMAND[2:], "--outputs", outputs) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=seconds)
        process.send_signal(number)
        said = process.stderr.read()
        process.wait()
    if process.returncode != -number:  # Python itself had not yet started.
        assert process.returncode == code
        assert "Interrupted: " in said.splitlines()[-1]
        assert "Traceback" not in said


@pytest.mark.slow
def test_interrupted_reading_has_printed_what_it_read(tmp_path, uninterrupted):
    (tmp_path / "digits").mkdir()
    image = Image.new("L", (28, 28))
    image.paste(255, (13, 5, 15, 23))
    for i in range(2000):
        image.save(tmp_path / "digits" / f"{i}.png")
    new, network = tmp_path / "new", uninterrupted / "model.keras"
    arguments = ["--predict", tmp_path / "digits", "--model", network, "--outputs", new]
    with started(*arguments) as process:
        lines = [process.stdout.readline() for _ in range(1 + 256)]
        process.send_signal(signal.SIGINT)
        rows, said = process.stdout.read(), process.stderr.read()
        process.wait()
    assert process.returncode == 130
    assert said.endswith("\nInterrupted.\n")
    lines += rows.splitlines(keepends=True)
    assert len(lines) < 2001
    assert len(lines) % 256 == 1  # A header, and all of each portion.
    assert all(line.count("\t") == 4 and line.endswith("\n") for line in lines)
    assert list(new.iterdir()) == []


@pytest.mark.slow
def test_a_reader_that_stops_early_ends_a_run_quietly(outputs):
    """As `| head -1` does. The results are there before the first line is."""
    command = [*COMMAND, "--epochs", "1", "--outputs", str(outputs)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == -signal.SIGPIPE
    assert said.splitlines()[-1].startswith("epoch 1")
    check_whole(outputs)
    assert (outputs / "metrics.json").exists()


@pytest.mark.slow
def test_changed_settings_start_afresh_and_say_why(outputs):
    run_epochs(outputs, kill_after="epoch 1")
    said = run_epochs(outputs, "--seed", "4", kill_after="epoch 1")
    assert "Starting afresh: the unfinished run had another seed." in said


@pytest.mark.slow
def test_damaged_state_is_noticed_and_not_used(outputs, uninterrupted):
    run_epochs(outputs, kill_after="epoch 2")
    state = outputs / ".unfinished" / mnist.STATE
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    again = run(outputs)
    assert "is damaged" in again.stderr
    assert again.returncode == 0
    assert same_result(outputs, uninterrupted)


def run_epochs(outputs, *arguments, kill_after):
    """Run until a line starts with `kill_after`, and kill; return what was said."""
    command = [*COMMAND, "--outputs", str(outputs), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(kill_after):
            break
    process.kill()
    process.wait()
    return said


@contextlib.contextmanager
def little_room(folder, earlier, room):
    """Copy `earlier` to a disk with no more than `room` kilobytes left.

    Only root may mount one. For others no file may be larger than `room`, or 100.
    """
    folder.mkdir()
    size = f"size={1300 + room}k"  # The earlier results take a little less than 1,300.
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    outputs = shutil.copytree(earlier, folder / "outputs")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if not mounted:
            limit = max(room, 100) * 1024
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        yield outputs, "disk" if mounted else "limit on the size of files"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_disk_that_fills_up_anywhere_keeps_the_earlier_results(
    uninterrupted, tmp_path, capsys
):
    """With room for less or more of a run: for none of its state, or for all."""
    codes = []
    for room in (0, 600, 1250, 1350, 1450, 1600, 1750, 1900, 2050, 4000):
        with little_room(tmp_path / str(room), uninterrupted, room) as (outputs, kind):
            before = {path.name: path.read_bytes() for path in outputs.iterdir()}
            more = ["--epochs", "1", "--outputs", str(outputs)]
            codes.append(mnist.main([*COMMAND[2:], *more]))
            check_whole(outputs)
            files = {p.name: p.read_bytes() for p in outputs.iterdir() if p.is_file()}
        said = capsys.readouterr().err
        if codes[-1]:
            assert files == before
            assert said.splitlines()[-1].startswith("error: ")
    assert codes == sorted(codes, reverse=True)
    assert set(codes) == {0, 1}
    with capsys.disabled():
        print(f" (what was full: a {kind})", end="")


def test_a_second_run_on_the_same_outputs_is_refused(outputs, capsys):
    with mnist.workplace(outputs):
        assert mnist.main([*COMMAND[2:], "--outputs", str(outputs)]) == 2
    assert "another run" in capsys.readouterr().err


def test_a_lock_whose_folder_another_run_removes_is_no_lock(outputs, monkeypatch):
    """A run ends, and a third one starts, between the opening and the locking."""

    def lock(file, how, really=mnist.fcntl.flock):
        shutil.rmtree(outputs / ".unfinished")
        if third_starts:
            (outputs / ".unfinished").mkdir()
            (outputs / ".unfinished" / "lock").touch()
        really(file, how)

    monkeypatch.setattr(mnist.fcntl, "flock", lock)
    for third_starts in (False, True):
        with pytest.raises(mnist.InputError), mnist.workplace(outputs):
            pytest.fail("two runs in one folder")


def test_outputs_that_name_a_file_are_refused_before_training(outputs, capsys):
    outputs.write_text("mine")
    assert mnist.main([*COMMAND[2:], "--outputs", str(outputs)]) == 2
    assert "epoch 1" not in capsys.readouterr().err
    assert outputs.read_text() == "mine"


@pytest.mark.slow
def test_data_from_another_place_goes_on(outputs, uninterrupted, tmp_path):
    """A first run fetches the data, the next one reads the same from the cache."""
    run_epochs(outputs, kill_after="epoch 2")
    copy = shutil.copy(HERE / "mnist_subset.npz", tmp_path / "copy.npz")
    said = run_epochs(outputs, "--data", str(copy), kill_after="epoch 5")
    assert "Going on with" in said
