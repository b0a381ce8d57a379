"""One dataclass = flags = JSON; what is mistyped is refused with what was meant."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from reid.commands.flags import Parser, add_flags, given_flags
from reid.config import Config
from reid.errors import InputError
from reid.profiles import PROFILES, from_flags, profile, run_name

ROOT = Path(__file__).resolve().parent.parent


def parse(script, *argv):
    parser = Parser()
    add_flags(parser, script)
    return given_flags(parser.parse_args(argv))


def test_published_defaults():
    c = profile("paper")
    assert (c.batch_size, c.batch_sample, c.epochs, c.lr, c.base_lr, c.margin) == (64, 4, 80, 1e-2, 1e-3, 1.2)
    assert (c.decay_schedule, c.staircase_decay_multiply_factor, c.momentum) == ((40, 60), 0.1, 0.9)
    assert (c.weight_decay, c.num_workers, c.split, c.h, c.w) == (5e-4, 4, 0, 384, 128)
    assert (c.dataset_type, c.dataset_path, c.exp_dir) == (("market1501",), "./datasets", "./logs")
    assert (c.steps_per_log, c.print_freq, c.train_set) == (100, 10, "trainval")


def test_flags_become_values():
    given = parse("train", "--stripes", "6", "2", "--lr", "0.5", "--gpus", "0", "--resume", "--relation", "none")
    assert given == {"stripes": (6, 2), "lr": 0.5, "gpus": (0,), "resume": "newest", "relation": "none"}
    assert from_flags(given).stripes == (6, 2)
    assert parse("train", "--combine_trainval") == {"train_set": "trainval"}
    assert parse("train", "--no-combine_trainval") == {"train_set": "train"}
    assert parse("evaluate", "--weights", "a.pth") == {"pretrained_weights_dir": "a.pth"}
    assert from_flags(parse("train", "--profile", "demo", "--h", "96")).h == 96


@pytest.mark.parametrize("name", list(PROFILES))
def test_json_round_trip(name):
    config = profile(name)
    rooms = json.loads(json.dumps(config.to_json()))
    assert Config.from_json(rooms, "x") == config
    assert sum(map(len, rooms.values())) == len(fields(Config))
    with pytest.raises(InputError, match=r"x: unknown configuration field 'colour'"):
        Config.from_json({**rooms, "other": {"colour": 1}}, "x")
    with pytest.raises(InputError, match=r"x: --epochs 'many' has the wrong type"):
        Config.from_json({"training": {"epochs": "many"}}, "x")


def test_run_names():
    assert run_name(profile("paper")) == "paper"
    assert run_name(Config(stripes=(6,), relation="none")) == "stripes-6_relation-none"
    assert run_name(Config(seed=1)) == "seed-1"
    assert run_name(Config(seed=1, name="mine")) == "mine"
    assert run_name(Config(dataset_type=("dukemtmc",), num_workers=0)) == "paper"


@pytest.mark.slow
@pytest.mark.parametrize("argv, words", [
    (["--bach_size", "8"], "did you mean --batch_size?"),
    (["--batch", "8"], "unknown argument '--batch'"),
    (["--lr", "fast"], "--lr"),
    (["--relation", "one_vs_rests"], "did you mean one_vs_rest?"),
    (["--backbone", "vgg"], "choose from resnet50"),
    (["--stripes", "1"], "--stripes 1 is too small; the minimum is 2"),
    (["--stripes", "6", "6"], "twice"),
    (["--batch_size", "66"], "--batch_size 66 is not a multiple of --batch_sample 4; use --batch_size 68"),
    (["--epochs", "0"], "--epochs 0 is too small"),
    (["--lr", "nan"], "--lr nan"),
    (["--profile", "dem"], "did you mean demo?"),
    (["--h", "288"], "--h 192"),
])  # fmt: skip
def test_mistakes_at_the_command_line(argv, words):
    done = subprocess.run([sys.executable, "train.py", *argv], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_help_names_every_flag(script):
    done = subprocess.run([sys.executable, f"{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    mentioned = set(re.findall(r"--[a-z_]+", done.stdout))
    assert {"--" + f.name for f in fields(Config) if script in f.metadata["scripts"]} <= mentioned
