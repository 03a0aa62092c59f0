import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def train_arguments(repository):
    """A function: what train_net.py is given to learn 64 px scenes.

    With ``toy`` a RetinaNet has few layers, and no run ends with a report.
    """

    retinanet = [
        "MODEL.FPN.OUT_CHANNELS", "64",
        "MODEL.DENSE.TOWER.CHANNELS", "64",  # two per group: P7 has one cell
    ]  # fmt: skip
    few_layers = [
        "MODEL.BACKBONE.NAME", "build_toy_pyramid",
        "MODEL.DENSE.TOWER.CHANNELS", "32",
        "MODEL.DENSE.TOWER.NUM_CONVS", "1",
    ]  # fmt: skip
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"]

    def build(folder, output, *opts, flags=(), config="scenes_retinanet_resobj_t2", toy=True):
        entries = [
            {"name": f"tiny_{split}", "format": "scenes", "split": split, "root": str(folder),
             "image_size": 64, "num_train": 16, "num_val": 6}
            for split in ("train", "val")
        ]  # fmt: skip
        return [
            "--config-file", str(repository / f"configs/small/{config}.yaml"),
            *flags,
            *(("--import", "tests.toy_backbone") if toy else ()),
            "DATASETS.REGISTER", str(entries),
            "DATASETS.TRAIN", "('tiny_train',)",
            "DATASETS.TEST", "('tiny_val',)",
            *(() if "INPUT.FIXED_SIZE" in opts else sizes),
            *((few_layers if toy else retinanet) if "retinanet" in config else ()),
            *(("SOLVER.STEPS", "()") if "retinanet" in config else ()),
            "TEST.REPORT", str(not toy),
            "SOLVER.IMS_PER_BATCH", "4",
            "SOLVER.MAX_ITER", "8",
            "SOLVER.CHECKPOINT_PERIOD", "2",
            "DATALOADER.NUM_WORKERS", "0",
            "OUTPUT_DIR", str(output),
            *map(str, opts),
        ]  # fmt: skip

    return build


@pytest.fixture
def run(repository, tmp_path, train_arguments, warm_python):
    """A function that starts train_net.py on 64 px scenes, writing to ``tmp_path / "out"``.

    What it prints is in ``tmp_path / "console.txt"``. ``fresh`` starts it as users do.
    """

    def start(*opts, wait=True, fresh=False, spawns=(), **options):
        arguments = train_arguments(tmp_path, tmp_path / "out", *opts, **options)
        command = [sys.executable, str(repository / "train_net.py"), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        # A file, not a pipe: of a run that is not waited for nobody would read it, and it fills.
        log = tmp_path / "console.txt"
        with log.open("w") as file:
            files = {"stdout": file, "stderr": subprocess.STDOUT}
            if fresh:
                process = subprocess.Popen(
                    command, cwd=repository, env=environment, start_new_session=True, **files
                )
            else:
                process = warm_python.start(
                    command, cwd=repository, env=environment, spawns=spawns, **files
                )
        if not wait:
            return process
        process.wait(timeout=400)
        return process.returncode, log.read_text(errors="replace")

    return start


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def scenes_trainer(tiny_options, tmp_path, scenes_folder, clean_catalogs):
    """A function: folder and overrides to a trainer of a tiny detector on 16 scenes."""
    from resobj_d2.config import load_config
    from resobj_d2.engine import Trainer

    entries = [
        {"name": f"tiny_{split}", "format": "scenes", "split": split, "root": str(scenes_folder),
         "image_size": 64, "num_train": 16, "num_val": 5}
        for split in ("train", "val")
    ]  # fmt: skip

    def build(folder, *opts, tiny=True):
        # Without tiny: the network alone, for another detector.
        base = tiny_options if tiny else tiny_options[:6]
        own = ["MODEL.DENSE.NUM_CLASSES", 8] if tiny else []
        options = [
            "OUTPUT_DIR", tmp_path / folder,
            "DATASETS.REGISTER", entries,
            "DATASETS.TRAIN", "('tiny_train',)",
            "DATASETS.TEST", "()",
            "DATALOADER.NUM_WORKERS", 0,
            "INPUT.MIN_SIZE_TRAIN", "(64,)",
            "INPUT.MIN_SIZE_TEST", 64,
            *own,
            "SOLVER.IMS_PER_BATCH", 3,
            "SOLVER.MAX_ITER", 7,
            "SOLVER.STEPS", "()",
            "SOLVER.BASE_LR", 0.001,
            "SOLVER.CHECKPOINT_PERIOD", 2,
        ]  # fmt: skip
        return Trainer(load_config("", [*base, *map(str, [*options, *opts])]))

    return build
