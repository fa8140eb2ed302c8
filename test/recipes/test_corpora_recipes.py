"""Every recipe on a small corpus in its corpus's own layout: from disk to scores, unchanged."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from espnet_moe.data.datadir import load_datadir, validate_datadir
from espnet_moe.data.mini_corpus import MiniCorpusOptions, make_mini_corpus
from layouts import LAYOUTS

EGS = Path(__file__).resolve().parents[2] / "egs2"
SIZES = {"size": 12, "dev_size": 4, "test_size": 6}
STEPS = "--max_epoch 1 --num_iters_per_epoch 2 --batch_size 4 --valid_batch_size 4"

# What the corpora are, and what results then have.
RECIPES = {
    "ai4bharat": ([("kathbath", "hi"), ("kathbath", "pa")], {"test_hi", "test_pa"}),
    "commonvoice": ([("commonvoice", "te"), ("commonvoice", "it")], {"test_te", "test_it"}),
    "mls": ([("mls", "it")], {"test_it"}),
    "multilingual": (
        [("kathbath", "hi"), ("commonvoice", "hi"), ("mls", "it"), ("commonvoice", "it")],
        {"kathbath_hi_test", "commonvoice_hi_test", "mls_it_test", "commonvoice_it_test"},
    ),
}
EQUAL = "kathbath:0.5 mls:0.5 commonvoice:0.5"
MORE = {"multilingual": ["--mix", EQUAL, "--mix_by", "utterances"]}
FURTHER = {"mls": "finetune_decoder", "multilingual": "hard joint finetune_full"}
VARIANTS = {"commonvoice": {"release": "17.0"}, "mls": {"audio": "opus"}}


def test_every_recipe_is_here():
    assert {p.parent.name for p in EGS.glob("*/moe1")} == {*RECIPES, "TEMPLATE", "mini"}


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("openai/whisper-small", "small"),
        ("/models/whisper-medium/", "medium"),
        ("espnet/owsm_v3.1_ebf", "medium"),
        ("espnet/owsm_v4_medium_1B", "medium"),
        ("espnet/owsm_v4_small_370M", "small"),
        ("openai/whisper-large-v3-turbo", "large"),
        ("whisper_mini", "mini"),
    ],
)
def test_size_of_a_base(backbone, size, tmp_path):
    script = EGS / "TEMPLATE/moe1/utils/backbone_size.sh"
    conf = tmp_path / "my.conf"
    conf.write_text(f'nj=4\nbackbone="{backbone}"\n')
    for words in (["--nj", "2", "--backbone", backbone], ["--config", conf]):
        done = subprocess.run([script, *words], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"{size}\n", "")


def test_a_base_of_unknown_size():
    script = EGS / "TEMPLATE/moe1/utils/backbone_size.sh"
    done = subprocess.run([script, "--backbone", "x/my_own"], capture_output=True, text=True)
    assert done.stdout == "small\n"
    assert "the size of x/my_own is not known" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mix", "kathbath:0.8 commonvoice:0.2"], "tells some corpora of it, but not all: mls"),
        (["--mix", "katbath:1"], "--mix: katbath is no corpus of --sources"),
        (["--mix", "kathbath:1 kathbath:2"], "--mix: kathbath has two shares"),
        (["--mix", "kathbath=1"], "--mix is of CORPUS:SHARE"),
        (["--further_tests", "kathbath"], "--further_tests is of CORPUS:SET"),
        (["--further_tests", "katbath:test_noisy"], "katbath is no corpus of --sources"),
        (["--experts_from", "exp/none"], "--experts_from exp/none does not exist"),
        (["--mix_replacement", "true"], "--mix_replacement repeats what --mix asks for"),
        (["--mix_by", "days"], "--mix_by is hours or utterances, not 'days'"),
        (["--max_train_hours", "ten"], "--max_train_hours is a number, not 'ten'"),
        (["--test_sets_by", "speaker"], "--test_sets_by is language or corpus, not 'speaker'"),
    ],
)
def test_mistakes(words, message):
    run = EGS / "multilingual/moe1/run.sh"
    done = subprocess.run([run, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize("name", RECIPES)
def test_help(name):
    done = subprocess.run([EGS / name / "moe1/run.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--corpus_dir" in done.stdout and "--max_train_hours" in done.stdout


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_corpus(name, tmp_path):
    """In a copy: who has filled db.sh has corpora."""
    for folder in (f"egs2/{name}", "egs2/TEMPLATE", "egs2/mini/moe1/conf"):
        shutil.copytree(EGS.parent / folder, tmp_path / folder, symlinks=True)
    (tmp_path / "egs2/TEMPLATE/moe1/db.sh").write_text("COMMONVOICE=\n")
    (tmp_path / "egs2/TEMPLATE/moe1/path.sh").write_text("")  # the environment is that of the test
    run = tmp_path / "egs2" / name / "moe1/run.sh"
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(EGS.parent),
    }
    done = subprocess.run([run, "--stop_stage", "1"], capture_output=True, text=True, env=env)
    assert done.returncode == 2, done.stderr
    assert "Give its folder as --corpus_dir, or as " in done.stderr and "db.sh" in done.stderr


@pytest.mark.parametrize("size", ["mini", "small", "medium", "large"])
def test_configurations(size):
    """What training would refuse, or read as text, where nobody trains a large one."""
    from espnet_moe.config import build_options
    from espnet_moe.experts.expert_set import LoRAOptions
    from espnet_moe.model import AugmentOptions, JointOptions
    from espnet_moe.task import MoETask, router_choices

    conf = EGS / "TEMPLATE/moe1/conf"
    expert, router, joint = (
        MoETask.get_parser().parse_args(["--config", str(conf / f"train_{phase}_{size}.yaml")])
        for phase in ("expert", "router", "joint")
    )
    lora = build_options(LoRAOptions, expert.expert_conf, "expert_conf")
    reads = build_options(router_choices.get_class(router.router), router.router_conf, "router")
    assert lora.first_layer == reads.layer  # the router reads what is below the experts
    build_options(AugmentOptions, router.augment_conf, "augment_conf")
    build_options(JointOptions, joint.joint_conf, "joint_conf")
    for args in (expert, router, joint):
        assert isinstance(args.optim_conf["lr"], float)
        steps = args.num_iters_per_epoch * args.max_epoch / args.accum_grad
        assert steps == args.scheduler_conf["total_steps"]
    if size != "mini":
        assert expert.scheduler_conf == {"warmup_steps": 500, "total_steps": 5000}
        assert expert.num_iters_per_epoch / expert.accum_grad == 500
        assert expert.batch_size * expert.accum_grad == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_from_disk_to_scores(name, tmp_path):
    made, sets = RECIPES[name]
    corpora = tmp_path / "corpora"
    for layout, language in made:
        # A recipe of one corpus gets its folder, one of several a folder of folders.
        folder = corpora / layout if name == "multilingual" else corpora
        options = MiniCorpusOptions(
            layout=layout, lang=language, **SIZES, **VARIANTS.get(layout, {})
        )
        make_mini_corpus(options, folder, num_jobs=2)
    languages = list(dict.fromkeys(language for _, language in made))
    few = yaml.safe_load((EGS / "TEMPLATE/moe1/conf/codeswitch.yaml").read_text())
    few["sizes"]["inter"] = 4
    (tmp_path / "codeswitch.yaml").write_text(yaml.safe_dump(few))
    switching = ["--codeswitch_config", tmp_path / "codeswitch.yaml"] if name != "mls" else []
    switching += ["--codeswitch_systems", "" if name == "mls" else "segment"]
    folders = [f"--{n}dir={tmp_path / n}" for n in ("data", "dump", "exp")]
    done = subprocess.run(
        [
            EGS / name / "moe1/run.sh",
            *(word for folder in folders for word in folder.split("=")),
            *("--corpus_dir", corpora, "--langs", " ".join(languages)),
            *("--backbone", "whisper_mini", "--stage", "1", "--stop_stage", "11"),
            *("--train_args", STEPS, "--max_train_hours", "0.005"),
            *("--systems", f"baseline oracle {FURTHER.get(name, 'hard joint')}"),
            *("--inference_config", "conf/decode_greedy.yaml", "--inference_nj", "1"),
            *MORE.get(name, []),
            *switching,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "exp/results.json").read_text())
    scored = {row["set"] for row in results["rows"] if row["system"] == "oracle"}
    assert {s for s in scored if "_cs_" not in s} == sets
    for row in results["rows"]:
        assert row["corpora"]
        assert row["utterances"] == 6 or "_cs_" in row["set"]
    tuned = [row for row in results["rows"] if row["system"].startswith("finetune_")]
    assert len(tuned) == (len(sets) if "finetune" in FURTHER.get(name, "") else 0)
    assert all(row["trainable_params"] > 1e6 for row in tuned)
    for language in languages:
        durations = (tmp_path / f"dump/raw/train_{language}/utt2dur").read_text().split()[1::2]
        assert 0 < sum(map(float, durations)) <= 0.006 * 3600  # by utterances: on the average
        if name == "multilingual":
            ids = (tmp_path / f"dump/raw/train_{language}/text").read_text().splitlines()
            assert 2 * sum(utt.startswith("cv_") for utt in ids) == len(ids) > 0


def commonvoice(release, lang="te"):
    def make(folder):
        options = MiniCorpusOptions(layout="commonvoice", lang=lang, release=release, **SIZES)
        make_mini_corpus(options, folder, num_jobs=2)
        (unpacked,) = folder.glob("cv-corpus-*")
        # What a download of today is called.
        outer = folder / f"1781715680033-{unpacked.name}-{lang}"
        outer.mkdir()
        unpacked.rename(outer / unpacked.name)
        return f"Common Voice {unpacked.name.removeprefix('cv-corpus-')}"

    return make


def mls(audio):
    def make(folder):
        options = MiniCorpusOptions(layout="mls", lang="it", audio=audio, **SIZES)
        make_mini_corpus(options, folder, num_jobs=2)
        return "MLS"

    return make


def ai4bharat(name, into=None):
    def make(folder):
        options = MiniCorpusOptions(layout="kathbath", lang="pa", size=24, dev_size=4, test_size=6)
        if into is None:
            make_mini_corpus(options, folder, num_jobs=2)
        else:
            make_mini_corpus(options, folder.parent / "kathbath", num_jobs=2)
            LAYOUTS[into](folder.parent / "kathbath", folder, "pa")
        return name

    return make


LAID_OUT = {
    "Common Voice 11": ("commonvoice", "hi", commonvoice("11.0", "hi"), []),
    "Common Voice 16.1": ("commonvoice", "te", commonvoice("16.1"), []),
    "Common Voice 17": ("commonvoice", "te", commonvoice("17.0"), []),
    "Common Voice 26": (
        *("commonvoice", "te", commonvoice("26.0")),
        ["--local_data_opts", "--release 26.0 --train_from validated"],
    ),
    "MLS opus": ("mls", "it", mls("opus"), ["--local_data_opts", "--handles 9hr"]),
    "MLS flac": ("mls", "it", mls("flac"), []),
    "Kathbath noisy": (
        *("ai4bharat", "pa", ai4bharat("Kathbath")),
        ["--further_tests", "kathbath:test_noisy kathbath:test_known"],
    ),
    "Kathbath parquet": ("ai4bharat", "pa", ai4bharat("Kathbath of the hub", "kathbath"), []),
    "IndicVoices": (
        *("ai4bharat", "pa", ai4bharat("IndicVoices", "indicvoices")),
        ["--sources", "pa:indicvoices"],
    ),
    "Shrutilipi": (
        *("ai4bharat", "pa", ai4bharat("Shrutilipi", "shrutilipi")),
        ["--sources", "pa:shrutilipi"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAID_OUT)
def test_data_stages_on_every_layout(layout, tmp_path):
    recipe, lang, make, words = LAID_OUT[layout]
    (tmp_path / "corpus").mkdir()
    name = make(tmp_path / "corpus")
    done = subprocess.run(
        [
            *(EGS / recipe / "moe1/run.sh", "--corpus_dir", tmp_path / "corpus"),
            *("--langs", lang, "--stage", "1", "--stop_stage", "4"),
            *(word for n in ("data", "dump", "exp") for word in (f"--{n}dir", tmp_path / n)),
            *words,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    sets = {path.name for path in (tmp_path / "dump/raw").iterdir() if path.is_dir()}
    further = words[1].split() if "--further_tests" in words else []
    wanted = {f"{split}_{lang}" for split in ("train", "dev", "test")}
    wanted |= {entry.replace(":", f"_{lang}_") for entry in further}
    assert wanted <= sets
    for one in sorted(sets):
        validate_datadir(tmp_path / "dump/raw" / one, check_audio=True)
        assert load_datadir(tmp_path / "dump/raw" / one).corpora == (name,)
    stats = json.loads((tmp_path / f"exp/stats/train_{lang}/stats.json").read_text())
    assert stats["utterances"] > 0 and stats["skipped"] == 0


def download(tmp_path: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["local/download.sh", "--dir", str(tmp_path / "corpora"), *words],
        cwd=EGS / "multilingual/moe1",
        env={**os.environ, **env},
        capture_output=True,
        text=True,
    )


def archive(path: Path, *members: str) -> None:
    """An archive with files that hold their own names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))


def test_fetch_mls(tmp_path):
    archive(tmp_path / "there/mls_italian_opus.tar.gz", "mls_italian_opus/metainfo.txt")
    words = ["--corpus", "mls", "--lang", "it", "--mirror", f"file://{tmp_path}/there"]
    for _ in range(2):  # the second call finds all done
        done = download(tmp_path, *words)
        assert done.returncode == 0, done.stderr
        (tmp_path / "there/mls_italian_opus.tar.gz").unlink(missing_ok=True)
    assert (tmp_path / "corpora/mls_italian_opus/metainfo.txt").exists()
    other = download(tmp_path, *words, "--archive", "flac")
    assert other.returncode == 2
    assert "mls_italian.tar.gz could not be fetched" in other.stderr


def test_fetch_one_language_of_kathbath(tmp_path):
    names = ["transcripts_n2w", "train_audio", "valid_audio", "testkn_audio", "testunk_audio"]
    for name in names:
        members = [f"kb_data_clean_m4a/{lang}/{name}.x" for lang in ("hindi", "telugu")]
        archive(tmp_path / f"there/clean/{name}.tar", *members)
    words = ["--corpus", "kathbath", "--mirror", f"file://{tmp_path}/there"]
    done = download(tmp_path, *words, "--lang", "hi")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "corpora/kb_data_clean_m4a"
    assert sorted(p.name for p in folder.glob("hindi/*")) == sorted(f"{n}.x" for n in names)
    assert not (folder / "telugu").exists()
    done = download(tmp_path, *words, "--lang", "te")
    assert done.returncode == 0, done.stderr
    assert len(list(folder.glob("telugu/*"))) == 5


def test_what_no_script_may_fetch(tmp_path):
    done = download(tmp_path, "--corpus", "commonvoice", "--lang", "te", MDC_API_KEY="")
    assert done.returncode == 2
    assert "mozilladatacollective.com" in done.stderr and "MDC_API_KEY" in done.stderr
