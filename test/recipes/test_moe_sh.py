"""moe.sh with a Python that only notes what it is asked: options, stages, command lines."""

import fcntl
import importlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from espnet_moe.tracking import backbone_name

ROOT = Path(__file__).resolve().parents[2]

# Stamps are kept by the real module; every other command line is noted, and makes what is expected.
PYTHON = """#!/usr/bin/env bash
set -e
verb=${2#espnet_moe.bin.}
if [ "$verb" = stage ] || [ "$1" = -c ]; then
    exec $REAL_PYTHON "$@"
fi
if [[ ${3:-} == @* ]]; then
    mapfile -t words <"${3#@}"
    set -- "${@:1:2}" "${words[@]}" "${@:4}"
fi
if [[ ${4:-} == @* ]]; then
    mapfile -t words <"${4#@}"
    set -- "${@:1:3}" "${words[@]}" "${@:5}"
fi
first=${3:-}
if [[ ${3:-} == --names ]]; then
    exec $REAL_PYTHON "$@"
fi
echo "$verb ${*:3}" >>"$LOG"
[[ -z ${FAIL:-} || "$verb ${*:3}" != "$FAIL"* ]] || exit 7
declare -A value
key=verb
while [ $# -gt 0 ]; do
    case $1 in --*) key=${1#--} ;; *) value[$key]+="$1 " ;; esac
    shift
done
datadir() {
    mkdir -p "$1" && echo "u-1 /x.wav" >"$1/wav.scp" && echo "u-1 ciao" >"$1/text"
    local lang
    for lang in hi it; do
        [[ _$(basename "$1")_ != *_${lang}_* ]] || echo "u-1 $lang" >"$1/utt2lang"
    done
}
case $verb in
    format_audio) for dir in ${value[in]}; do datadir "${value[out]% }/$(basename "$dir")"; done ;;
    combine_data) datadir ${value[out]} ;;
    collect_shapes) mkdir -p ${value[out]} && echo u-1 9 >${value[out]% }/speech_shape ;;
    make_codeswitch)
        for kind in inter intra rapid; do
            datadir "${value[out]% }/test_cs_$kind"
            datadir "${value[out]% }/test_cs_${kind}_parts"
        done
        ;;
    embed)
        for dir in ${value[data]}; do
            mkdir -p "${value[out]% }/$(basename "$dir")"
            echo {} >"${value[out]% }/$(basename "$dir")/embeddings.json"
        done
        ;;
    assign_experts)
        out=${value[out]% }
        names=$(basename -a ${value[train]} | sed 's/train_//')
        [ "${value[experts_by]}" = "language " ] || names="c0 c1"
        for name in $names router joint; do
            for split in train dev; do
                datadir "$out/data/${split}_$name"
                stats=$out/stats/${split}_$name
                mkdir -p "$stats" && echo u-1 9 >"$stats/speech_shape"
            done
        done
        echo u-1 c0:1 >"$out/utt2experts"
        printf '{"experts": ["%s"]}' "$(echo $names | sed 's/ /", "/g')" >"$out/experts.json"
        ;;
    train)
        out=${value[output_dir]% }
        case ${value[phase]} in
            expert*) folders=expert ;;
            router*) folders=router ;;
            joint*) folders="router $(printf 'expert_%s ' ${value[experts]})" ;;
            finetune*) folders=backbone ;;
        esac
        for folder in $folders; do
            mkdir -p "$out/$folder"
            echo {} | tee "$out/$folder"/{expert,router,finetuned}.json >/dev/null
        done
        ;;
    decode)
        for dir in ${value[data]}; do
            share=${value[out]% }/$(basename "$dir")/logdir/output.${value[place]%%/*}
            mkdir -p "$share"
            [ "${value[job]}" != "1 " ] || echo "u-1 ciao" >"$share/text"
        done
        mkdir -p ${value[out]% }/logdir
        echo {} >"${value[out]% }/logdir/output.${value[place]%%/*}.json"
        ;;
    analyze) mkdir -p ${value[out]} && echo {} >"${value[out]% }/$first.json" ;;
    pack)
        [ "$first" = model ] && mkdir -p "$(dirname ${value[out]})" && touch ${value[out]}
        [ "$first" != hub ] || { mkdir -p ${value[out]} && touch ${value[out]% }/README.md; }
        ;;
    report) mkdir -p ${value[exp]% }/report && touch ${value[exp]% }/report/index.html ;;
    score)
        echo "the table"
        touch ${value[exp]% }/{results.json,RESULTS.md,results.manifest.json}
        ;;
esac
"""

DATA = """#!/usr/bin/env bash
echo "data.sh $*" >>"$LOG"
for corpus in commonvoice kathbath; do
    for split in train dev test; do
        mkdir -p data/${corpus}_{hi,it}_$split
        echo "u-1 /x.wav" | tee data/${corpus}_{hi,it}_$split/wav.scp >/dev/null
    done
done
"""

OPTIONS = [
    "--langs",
    "hi it",
    "--sources",
    "hi:commonvoice,kathbath it:commonvoice",
    "--backbone",
    "hub/name",
]


class Recipe:
    """A recipe beside a copy of the template, and calls of it."""

    def __init__(self, folder: Path) -> None:
        template = folder / "egs2/TEMPLATE/moe1"
        shutil.copytree(ROOT / "egs2/TEMPLATE/moe1", template)
        self.folder = folder / "egs2/toy/moe1"
        self.log = folder / "log"
        self.always = ["--skip_analysis", "true"]
        for name in ("moe.sh", "utils", "path.sh", "cmd.sh"):
            self.write(name, None).symlink_to(template / name)
        self.write("local/data.sh", DATA)
        self.write("conf/train_expert.yaml", "rank: 8\n")
        for name in (
            *("decode_greedy", "assign_language", "assign_kmeans", "codeswitch"),
            *("train_utterance", "train_frame", "train_joint"),
        ):
            self.write(f"conf/{name}.yaml", f"# {name}\n")
        self.python = self.write("bin/python3", PYTHON)
        setup = folder / "tools/setup.sh"
        setup.parent.mkdir()
        setup.write_text("#!/bin/sh\n")
        setup.chmod(0o755)

    def write(self, name: str, text: str | None) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is not None:
            path.write_text(text)
            path.chmod(0o755)
        return path

    def run(self, *words: str, fail: str = "") -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        real = ROOT / "tools/venv/bin/python"
        env = os.environ | {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "REAL_PYTHON": str(real if real.exists() else "python"),
            "LOG": str(self.log),
            "FAIL": fail,
        }
        # From another folder: the recipe finds its own.
        return subprocess.run(
            ["bash", self.folder / "moe.sh", *OPTIONS, *self.always, *words],
            env=env,
            cwd=self.folder.parents[2],
            capture_output=True,
            text=True,
        )

    def did(self) -> list[str]:
        """The verbs that ran, sorted: jobs side by side have no order."""
        return sorted(line.split()[0] for line in self.log.read_text().splitlines())

    def line(self, *parts: str) -> str:
        """The one command line that holds these parts."""
        (line,) = [x for x in self.log.read_text().splitlines() if all(p in f"{x} " for p in parts)]
        return line


ALL = sorted(
    ["data.sh"]
    + ["format_audio"] * 2
    + ["combine_data"] * 6
    + ["collect_shapes"] * 4
    + ["embed"] * 2
    + ["assign_experts"]
    + ["train"] * 2
    + ["decode"] * 4
    + ["score"]
)
MIXTURE = [
    *("--codeswitch_config", "conf/codeswitch.yaml", "--routers", "utterance frame"),
    *("--joint_config", "conf/train_joint.yaml", "--embedding_layer", "2"),
    *("--systems", "baseline oracle hard joint", "--codeswitch_systems", "oracle frame segment"),
    *("--inference_nj", "1", "--ngpu", "0"),
]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path)


def test_analyses_and_the_report(recipe: Recipe) -> None:
    recipe.always = []
    assert recipe.run(*MIXTURE, fail="analyze layers").returncode == 2
    told = "the report is not complete: exp/name/report/index.html tells what is missing"
    assert told in recipe.run(*MIXTURE, fail="analyze layers").stderr
    assert recipe.did() == ["analyze", "report"]  # the others are not made again
    done = recipe.run(*MIXTURE)
    assert done.returncode == 0, done.stderr
    assert recipe.did() == ["analyze", "report"]
    assert recipe.run(*MIXTURE).returncode == 0
    assert recipe.did() == []
    (recipe.folder / "exp/name/.done/stage12_routing.json").unlink()
    recipe.run(*MIXTURE, "--analyses", "routing errors", "--analysis_utterances", "7")
    line = recipe.line("analyze routing ")
    assert "--codeswitch_systems oracle frame segment" in line and "--utterances" not in line
    assert "--systems baseline oracle hard joint" in line
    (recipe.folder / "exp/name/.done/stage12_transfer.json").unlink()
    recipe.run(*MIXTURE, "--analyses", "transfer", "--analysis_utterances", "7")
    line = recipe.line("analyze transfer ")
    assert "--experts hi=exp/name/expert_hi/expert it=exp/name/expert_it/expert" in line
    assert "--data dump/raw/test_hi dump/raw/test_it" in line and "--utterances 7" in line


def test_command_lines_are_those_of_the_commands(recipe: Recipe) -> None:
    """The Python of these tests takes any words: the real parsers must take them, too."""
    recipe.always = []
    words = [*MIXTURE, "--licence", "conf/decode_greedy.yaml", "--hf_repo", "me/it"]
    assert recipe.run(*words).returncode == 0
    parsed = set()
    for line in recipe.log.read_text().splitlines():
        verb, *given = line.split()
        if verb not in ("data.sh", "train"):  # ESPnet's parser has tests of its own
            module = importlib.import_module(f"espnet_moe.bin.{verb}")
            module.get_parser().parse_args(given)
            parsed.add(verb)
    assert parsed >= {"decode", "score", "analyze", "report", "pack", "upload", "embed"}


def test_packages(recipe: Recipe) -> None:
    words = [*MIXTURE, "--licence", "conf/decode_greedy.yaml"]
    done = recipe.run(*words)
    assert done.returncode == 0, done.stderr
    line = recipe.line("pack model ")
    assert "--experts hi=exp/name/expert_hi/expert it=exp/name/expert_it/expert" in line
    assert "--router exp/name/utterance/router" in line and "--strategy hard" in line
    assert "--out exp/name/packed/hard.zip" in line
    assert recipe.run(*words).returncode == 0
    assert recipe.did() == []
    done = recipe.run(*words, "--hf_repo", "me/it", "--packed_system", "joint")
    assert done.returncode == 0, done.stderr
    assert "--strategy soft" in recipe.line("pack model ")
    assert "--name me/it" in recipe.line("pack hub ")
    assert "--name me/it --upload false" in recipe.line("upload ")
    recipe.run(*words, "--hf_repo", "me/it", "--packed_system", "joint", "--upload", "true")
    assert recipe.did() == ["upload"] and "--upload true" in recipe.line("upload ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--further_tests", "kathbath:test_noisy"], "the oracle of clusters knows no --further"),
        (["--experts_from", "."], "--experts_from is for experts by language"),
        (
            ["--licence", "moe.sh", "--packed_system", "oracle"],
            "the oracle of clusters cannot be packed",
        ),
    ],
)
def test_what_clusters_cannot(recipe: Recipe, words: list[str], message: str) -> None:
    done = recipe.run(*MIXTURE, "--experts_by", "kmeans", *words)
    assert done.returncode == 2 and message in done.stderr
    assert recipe.did() == []


def test_packages_of_languages_and_of_clusters_lie_side_by_side(recipe: Recipe) -> None:
    words = [*MIXTURE, "--licence", "moe.sh"]
    assert recipe.run(*words).returncode == 0
    assert recipe.run(*words, "--experts_by", "kmeans").returncode == 0
    packed = {path.name for path in (recipe.folder / "exp/name/packed").iterdir()}
    assert packed == {"hard.zip", "hard_kmeans.zip"}


def test_experts_that_start_from_another(recipe: Recipe) -> None:
    recipe.write("other/expert/expert.json", "{}\n")
    words = ["--init_expert", "other/expert", "--stop_stage", "8"]
    assert recipe.run(*words).returncode == 0
    assert "--experts it --init_experts it=other/expert --b" in recipe.line(
        "train ", "--experts it "
    )
    assert recipe.run(*words).returncode == 0 and recipe.did() == []
    # Experts of another start are others: those who have it changed, too.
    recipe.write("other/expert/expert.json", "{ }\n")
    assert recipe.run(*words).returncode == 0 and recipe.did() == ["train"] * 2
    refused = recipe.run("--init_expert", "none", "--experts_from", ".")
    assert refused.returncode == 2
    assert "--init_expert none holds no expert" in refused.stderr
    assert "--experts_from does without: give one" in refused.stderr


def test_experts_do_not_start_from_what_they_replace(recipe: Recipe) -> None:
    assert recipe.run("--stop_stage", "8").returncode == 0
    expert = "exp/name/expert_hi/expert"
    for folder in (expert, f"./exp/../{expert}/", recipe.folder / expert):
        words = ["--stop_stage", "8", "--init_expert", str(folder)]
        refused = recipe.run(*words)
        assert refused.returncode == 2 and "give another --expdir" in refused.stderr
        assert (recipe.folder / expert / "expert.json").is_file() and recipe.did() == []
    assert recipe.run(*words, "--expdir", "exp/from_hi").returncode == 0
    # A folder whose name only begins alike is another.
    assert recipe.run(*words, "--expdir", "exp/na").returncode == 0


def test_learning_curves_of_the_grid_are_analysed(recipe: Recipe) -> None:
    recipe.always = []
    assert recipe.run(*MIXTURE).returncode == 0
    assert "--curves" not in recipe.line("analyze transfer")
    recipe.write("exp/grid/transfer/curves_name.tsv", "language\tstart\thours\twer\n")
    recipe.write("exp/grid/transfer/curves_other.tsv", "language\tstart\thours\twer\n")
    assert recipe.run(*MIXTURE).returncode == 0
    assert "--curves exp/grid/transfer/curves_name.tsv" in recipe.line("analyze transfer")
    assert "analyze" in recipe.did() and "train" not in recipe.did()


def test_curves_are_looked_for_where_the_grid_writes_them(recipe: Recipe) -> None:
    assert recipe.run().returncode == 0
    shutil.copytree(recipe.folder / "exp/name", recipe.folder / "exp/other")
    curves = recipe.write("exp/grid/transfer/curves_other.tsv", "language\tstart\thours\twer\n")
    recipe.always = ["--stage", "12", "--stop_stage", "12", "--analyses", "transfer"]
    for backbone in ("hub/other", "x/other.pt", "other.zip", "x/other/"):
        assert curves.name == f"curves_{backbone_name(backbone)}.tsv"  # that of bin.grid
        shutil.rmtree(recipe.folder / "exp/other/.done")  # so that each is analysed
        assert recipe.run("--backbone", backbone).returncode == 0
        assert "--curves exp/grid/transfer/curves_other.tsv" in recipe.line("analyze transfer")


def test_times_of_words_or_phones_are_probed(recipe: Recipe) -> None:
    assert recipe.run().returncode == 0
    recipe.always = ["--stage", "12", "--stop_stage", "12", "--analyses", "probing"]
    assert recipe.run().returncode == 0 and recipe.did() == []
    for name in ("words", "phones"):
        path = recipe.write(f"dump/raw/test_it/{name}.ctm", "u-1 1 0 1 a\n")
        assert recipe.run().returncode == 0 and recipe.did() == ["analyze"], name
        path.unlink()


def test_an_analysis_that_fails_leaves_nothing_old(recipe: Recipe) -> None:
    recipe.always = []
    assert recipe.run(*MIXTURE).returncode == 0
    assert (recipe.folder / "exp/name/analysis/layers.json").exists()
    other = ["--analysis_utterances", "7"]
    assert recipe.run(*MIXTURE, *other, fail="analyze layers").returncode == 2
    assert not (recipe.folder / "exp/name/analysis/layers.json").exists()


def test_sets_of_several_languages_have_no_base(recipe: Recipe) -> None:
    recipe.write("conf/train_finetune.yaml", "optim: adamw\n")
    words = ["--finetune_config", "conf/train_finetune.yaml"]
    assert recipe.run(*words, "--stop_stage", "9").returncode == 0
    mixed = recipe.folder / "dump/raw/test_hi/utt2lang"
    mixed.write_text("u-1 hi\nu-2 it\n")
    done = recipe.run(*words, "--systems", "baseline finetune_full")
    assert done.returncode == 2
    assert "finetune_full cannot decode test_hi, whose languages are hi it" in done.stderr
    assert "decode" not in recipe.did()


def test_bases_to_compare_with(recipe: Recipe) -> None:
    recipe.write("conf/train_finetune.yaml", "optim: adamw\n")
    systems = ["--systems", "baseline finetune_decoder", "--test_sets_by", "corpus"]
    done = recipe.run("--finetune_config", "conf/train_finetune.yaml", *systems)
    assert done.returncode == 0, done.stderr
    assert "part=decoder" in recipe.line("--phase finetune", "train_it ")
    line = recipe.line("--backbone exp/name/finetune_decoder_hi/backbone", "--place 1/4")
    assert "--data dump/raw/commonvoice_hi_test dump/raw/kathbath_hi_test --" in line
    line = recipe.line("--backbone exp/name/finetune_decoder_it/backbone", "--place 4/4")
    assert "--data dump/raw/commonvoice_it_test --" in line


def test_a_language_is_read_once_whatever_others_are_asked_for(recipe: Recipe) -> None:
    """As in a grid over languages, where reading a corpus again for each experiment takes hours."""
    read = []
    for langs in ("hi", "hi it", "it", "hi"):
        done = recipe.run("--stop_stage", "1", "--langs", langs)
        assert done.returncode == 0, done.stderr
        line = recipe.log.read_text()  # of this run
        read.append(line.partition("--langs ")[2].partition(" --")[0])
    assert read == ["hi", "it", "", ""]


def test_data_is_waited_for_by_those_who_make_it_alone(recipe: Recipe) -> None:
    """A job that trains or decodes does not wait for another run's corpora."""
    (recipe.folder / "data").mkdir()
    with open(recipe.folder / "data/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = recipe.run("--stage", "4", "--stop_stage", "4")
        assert "input missing" in done.stderr and "waiting" not in done.stdout


def test_the_whole_path_and_again(recipe: Recipe) -> None:
    done = recipe.run("--ngpu", "0", "--inference_nj", "2", "--train_args", "--max_epoch 4")
    assert done.returncode == 0, done.stderr
    assert recipe.did() == ALL
    assert "the table" in done.stdout
    combine = recipe.line("combine_data", "train_hi ")
    assert "--in dump/raw/commonvoice_hi_train dump/raw/kathbath_hi_train --out" in combine
    train = recipe.line("train ", "--experts it ")
    for part in (
        "--config conf/train_expert.yaml --phase expert --experts it",
        "--backbone_conf path=hub/name",
        "--train_dir exp/name/assign_language/data/train_it",
        "--train_stats exp/name/assign_language/stats/train_it",
        "--valid_dir exp/name/assign_language/data/dev_it",
        "--valid_stats exp/name/assign_language/stats/dev_it",
        "--ngpu 0",
        "--output_dir exp/name/expert_it --max_epoch 4",
    ):
        assert part in train
    oracle = recipe.line("decode", "--system oracle", "--job 2 ")
    assert "--experts hi=exp/name/expert_hi/expert it=exp/name/expert_it/expert --data" in oracle
    assert "--data dump/raw/test_hi dump/raw/test_it --config conf/decode_greedy.yaml" in oracle
    assert "--out exp/name/oracle/decode_greedy --job 2 --num_jobs 2" in oracle
    assert "--experts" not in recipe.line("decode", "--system baseline", "--job 1 ")
    score = recipe.line("score")
    assert (
        "--test_sets test_hi test_it --systems baseline oracle --inference_tag decode_gr" in score
    )
    assert (
        recipe.folder / "exp/name/oracle/decode_greedy/test_it/text"
    ).read_text() == "u-1 ciao\n"
    assert (recipe.folder / "exp/name/expert_hi/train.log").exists()

    again = recipe.run("--ngpu", "0", "--train_args", "--max_epoch 4")
    assert again.returncode == 0, again.stderr
    assert recipe.did() == []
    assert again.stdout.count("skipped: done, nothing has changed") == 16
    assert "the table" in again.stdout

    # Another option of the training: experts anew (the old ones are kept), and what follows.
    changed = recipe.run("--ngpu", "0")
    assert changed.returncode == 0, changed.stderr
    assert recipe.did() == ["train"] * 2
    assert (recipe.folder / "exp/name/expert_hi.old/expert/expert.json").exists()


def test_only_what_a_new_language_needs(recipe: Recipe) -> None:
    assert recipe.run("--langs", "hi").returncode == 0
    assert recipe.run().returncode == 0
    assert recipe.did() == sorted(
        ["data.sh", "format_audio", "embed", "assign_experts", "train", "score"]
        + ["combine_data"] * 3
        + ["collect_shapes"] * 2
        + ["decode"] * 4
    )


def test_the_mixture(recipe: Recipe) -> None:
    done = recipe.run(*MIXTURE)
    assert done.returncode == 0, done.stderr
    assert recipe.did() == sorted(
        # decode: a job for each of six systems, where ALL has two jobs for two
        [*ALL, "make_codeswitch", *["train"] * 3, *["decode"] * 2]
    )
    router = recipe.line("train ", "--phase router", "utterance.yaml")
    for part in (
        "--experts hi it --languages hi it --backbone_conf",
        "--train_dir exp/name/assign_language/data/train_router",
        "--output_dir exp/name/utterance",
    ):
        assert part in router
    joint = recipe.line("train ", "--phase joint")
    for part in (
        "--init_router exp/name/utterance/router",
        "--init_experts hi=exp/name/expert_hi/expert it=exp/name/expert_it/expert",
        "--valid_dir exp/name/assign_language/data/dev_joint",
    ):
        assert part in joint
    experts = "--experts hi=exp/name/expert_hi/expert it=exp/name/expert_it/expert"
    assert f"--system hard {experts} --router exp/name/utterance/router" in recipe.line(
        "--system hard"
    )
    segment = recipe.line("--system segment")
    assert f"{experts} --router exp/name/utterance/router --data dump/raw/test_cs_inter" in segment
    assert "--router exp/name/frame/router" in recipe.line("--system frame")
    assert "test_hi" not in segment
    oracle = recipe.line("--system oracle")
    assert "--router" not in oracle
    assert "test_hi dump/raw/test_it dump/raw/test_cs_inter" in oracle
    assert (
        "--system soft --experts hi=exp/name/joint/expert_hi it=exp/name/joint/expert_it "
        "--router exp/name/joint/router" in recipe.line("--out exp/name/joint/")
    )
    score = recipe.line("score")
    assert "--systems baseline oracle hard joint --codeswitch_sets test_cs_inter" in score
    assert "--codeswitch_systems oracle frame segment" in score
    again = recipe.run(*MIXTURE)
    assert again.returncode == 0, again.stderr
    assert recipe.did() == []


def test_clusters_are_of_the_layer_below_the_experts(recipe: Recipe) -> None:
    recipe.write("conf/deep.yaml", "expert_conf:\n  where: both\n  first_layer: 12 # of 24\n")
    done = recipe.run("--train_config", "conf/deep.yaml", "--stop_stage", "5")
    assert done.returncode == 0, done.stderr
    assert "--layer 12" in recipe.line("embed ", "train_hi")
    assert recipe.run("--stop_stage", "5").returncode == 0
    assert "--layer 0" in recipe.line("embed ", "train_hi")


def test_data_dirs_of_ones_own(recipe: Recipe) -> None:
    for split in ("train", "dev", "test"):
        recipe.write(f"data/mine_hi_{split}/wav.scp", "u-1 /x.wav\n")
    done = recipe.run("--langs", "hi", "--sources", "hi:mine", "--stage", "2")
    assert done.returncode == 0, done.stderr
    assert "--in data/mine_hi_train data/mine_hi_dev data/mine_hi_test" in recipe.line("format_au")
    assert "--in dump/raw/mine_hi_train" in recipe.line("combine_data", "dump/raw/train_hi")
    assert "score" in recipe.did()


def test_one_language_needs_no_router(recipe: Recipe) -> None:
    done = recipe.run(*MIXTURE, "--langs", "hi", "--licence", "moe.sh")
    assert done.returncode == 0, done.stderr
    assert "hi alone needs no router and no joint training; its systems are baseline oracle" in (
        done.stdout + done.stderr
    )
    assert recipe.did().count("train") == 1  # its expert
    assert "--systems baseline oracle --inference_tag" in recipe.line("score")
    assert "oracle" in recipe.line("pack ")
    refused = recipe.run(*MIXTURE, "--langs", "hi", "--systems", "hard soft")
    assert refused.returncode == 2
    assert "hi alone needs no router; there are baseline, oracle" in refused.stderr


def test_clusters_have_experts_of_their_own(recipe: Recipe) -> None:
    assert recipe.run(*MIXTURE).returncode == 0
    done = recipe.run(*MIXTURE, "--experts_by", "kmeans")
    assert done.returncode == 0, done.stderr
    assert recipe.did() == sorted(
        ["embed", "assign_experts", *["train"] * 5, *["decode"] * 5, "score"]  # the baseline stays
    )
    assign = recipe.line("assign_experts")
    assert "--experts_by kmeans --config conf/assign_kmeans.yaml" in assign
    assert "--embeddings exp/name/embeddings --layer 2" in assign
    # An oracle of clusters needs those of the code-switched sets too.
    assert "--test dump/raw/test_hi dump/raw/test_it dump/raw/test_cs_inter" in assign
    assert "--train dump/raw/train_hi dump/raw/train_it --dev dump/raw/dev_hi" in assign
    oracle = recipe.line("--system oracle")
    assert (
        "--experts c0=exp/name/expert_kmeans_c0/expert c1=exp/name/expert_kmeans_c1/expert"
        in oracle
    )
    assert "--utt2experts exp/name/assign_kmeans/utt2experts" in oracle
    assert "--systems baseline oracle_kmeans hard_kmeans joint_kmeans" in recipe.line("score")


def test_other_test_sets_in_between_are_noticed(recipe: Recipe) -> None:
    """The folder of a system serves every selection; what one left there is not another's."""
    assert recipe.run().returncode == 0
    only = ("--stage", "10", "--stop_stage", "10")
    assert recipe.run(*only, "--test_sets", "test_hi").returncode == 0
    assert recipe.did() == ["decode"] * 4
    assert recipe.run(*only).returncode == 0
    assert recipe.did() == ["decode"] * 4
    assert recipe.run(*only).returncode == 0
    assert recipe.did() == []


def test_another_family_tree_is_another_decoding(recipe: Recipe) -> None:
    recipe.write("conf/families.yaml", "A: [hi]\nB: [it]\n")
    recipe.write("conf/decode_greedy.yaml", "routing: {tree: conf/families.yaml}\n")
    words = [*MIXTURE, "--systems", "hard hierarchical", "--codeswitch_systems", ""]
    assert recipe.run(*words).returncode == 0
    recipe.write("conf/families.yaml", "A: [hi, it]\n")
    assert recipe.run(*words).returncode == 0
    assert recipe.did() == ["decode"]
    assert "--system hierarchical" in recipe.line("decode ")


def test_sets_that_the_configuration_leaves_out(recipe: Recipe) -> None:
    recipe.write("conf/codeswitch.yaml", "sizes: {intra: 0, rapid: 0}\n")
    done = recipe.run(*MIXTURE)
    assert done.returncode == 0, done.stderr
    segment = recipe.line("--system segment")
    assert "test_cs_inter_parts" in segment
    assert "test_cs_rapid" not in segment


def test_experts_of_another_tag_have_a_joint_model_of_their_own(recipe: Recipe) -> None:
    assert recipe.run(*MIXTURE).returncode == 0
    assert recipe.run(*MIXTURE, "--experts_tag", "big").returncode == 0
    assert "--output_dir exp/name/joint_big" in recipe.line("train ", "--phase joint")
    assert "hi=exp/name/joint_big/expert_hi" in recipe.line("--out exp/name/joint_big/")
    assert recipe.run(*MIXTURE).returncode == 0
    assert recipe.did() == ["score"]  # what was there before is there still


def test_a_check_that_breaks_is_no_work(recipe: Recipe) -> None:
    assert recipe.run("--stop_stage", "8").returncode == 0
    shutil.rmtree(recipe.folder / "exp/name/.done")
    (recipe.folder / "exp/name/.done").write_text("a file where a folder should be")
    done = recipe.run("--stage", "8", "--stop_stage", "8")
    assert done.returncode not in (0, 4)
    assert recipe.did() == []
    assert (recipe.folder / "exp/name/expert_hi").exists()


def test_a_failed_system_does_not_undo_the_others(recipe: Recipe) -> None:
    (recipe.folder / "conf/decode_greedy.yaml").write_text("# once\n")
    assert recipe.run("--stop_stage", "9").returncode == 0
    failed = recipe.run(
        "--stage",
        "10",
        "--stop_stage",
        "10",
        fail="decode --backbone hub/name --context variable --system oracle",
    )
    assert failed.returncode == 1
    assert (recipe.folder / "exp/name/baseline/decode_greedy/test_it/text").exists()
    assert recipe.run("--stage", "10", "--stop_stage", "10").returncode == 0
    assert recipe.did() == ["decode"] * 2


def test_failed_expert_alone_is_trained_again(recipe: Recipe) -> None:
    failed = recipe.run("--stop_stage", "8", fail="train")
    assert failed.returncode == 1
    assert "run.pl: 2 / 2 failed, log is in exp/name/expert_*/train.log" in failed.stderr
    (recipe.folder / "exp/name/expert_hi/checkpoint.pth").write_text("half")
    done = recipe.run("--stage", "8", "--stop_stage", "8")
    assert recipe.did() == ["train"] * 2
    assert "begun earlier" in done.stdout
    assert (recipe.folder / "exp/name/expert_hi/checkpoint.pth").exists()


def test_decoding_that_loses_utterances_is_an_error(recipe: Recipe) -> None:
    assert recipe.run("--stop_stage", "9").returncode == 0
    (recipe.folder / "dump/raw/test_it/text").write_text("u-1 ciao\nu-2 no\n")
    done = recipe.run("--stage", "10", "--stop_stage", "10")
    assert done.returncode == 1
    assert "exp/name/baseline/decode_greedy/test_it/text" in done.stderr
    assert "differ in length" in done.stderr


def test_choice_of_stages(recipe: Recipe) -> None:
    assert recipe.run("--stop_stage", "4", "--skip_stages", "3 4").returncode == 0
    assert recipe.did() == ["data.sh", "format_audio", "format_audio"]
    early = recipe.run("--stage", "10", "--stop_stage", "11")
    assert early.returncode == 2
    assert (
        "input missing: dump/raw/test_hi, dump/raw/test_it; run the stages before" in early.stderr
    )


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--stage", "16", "--stop-stage", "17"], ["has the stages 1 2 3 4 5 6 7 8 9 10 11 12"]),
        (["--licence", "none"], ["--licence none does not exist"]),
        (["--licence", "moe.sh"], ["--packed_system hard needs a router"]),
        (["--hf_repo", "me/it"], ["--hf_repo needs --licence"]),
        (["--analyses", "layer"], ["--analyses: 'layer' is none of similarity spectrum"]),
        (["--analysis_utterances", "few"], ["--analysis_utterances is a number, not 'few'"]),
        (["--systems", "baseline finetune_full"], ["finetune_full needs --finetune_config"]),
        (["--systems", "hard best"], ["'best' is none of", "hard needs a router: --routers"]),
        (
            ["--systems", "joint", "--routers", "x"],
            ["joint needs --joint_config", "train_x.yaml does"],
        ),
        (["--experts_by", "dbscan"], ["--experts_by is language or one of kmeans"]),
        (["--codeswitch_systems", "frame"], ["needs sets to decode: --codeswitch_config"]),
        (["--stage", "2", "--stop_stage", "1"], ["there is no stage to run"]),
        (["--stage", "all"], ["stage 'all' is not a number"]),
        (["--stages", "1"], ["--stages is unknown", "--stop_stage"]),
        (["--langs", "hi ta", "--fs", "8k"], ["names no corpus for ta", "--fs is 16k"]),
        (["--backbone", ""], ["--backbone is needed"]),
        (["--gpu_inference", "maybe", "--ngpu", "x"], ["--gpu_inference is true or false"]),
    ],
)
def test_mistakes(recipe: Recipe, words: list[str], messages: list[str]) -> None:
    done = recipe.run(*words)
    assert done.returncode == 2
    assert recipe.did() == []
    assert all(message in done.stderr for message in messages), done.stderr


RECIPES = sorted(path.parent for path in ROOT.glob("egs2/*/*/run.sh"))


@pytest.mark.parametrize("recipe_folder", RECIPES, ids=lambda p: "-".join(p.parts[-2:]))
def test_every_recipe_is_whole(recipe_folder: Path) -> None:
    scripts = [p for p in recipe_folder.rglob("*.sh") if p.is_file()]
    for script in scripts:
        done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    dangling = [p for p in recipe_folder.rglob("*") if p.is_symlink() and not p.exists()]
    assert dangling == []
    assert os.access(recipe_folder / "run.sh", os.X_OK)
    usage = subprocess.run([recipe_folder / "run.sh", "--help"], capture_output=True, text=True)
    assert usage.returncode == 0
    assert "General:" in usage.stdout
    if recipe_folder.name.startswith("moe"):
        for name in ("moe.sh", "utils", "path.sh", "cmd.sh", "local/data.sh", "conf"):
            assert (recipe_folder / name).exists(), f"{recipe_folder} has no {name}"


def test_recipes_are_listed() -> None:
    assert ROOT / "egs2/mini/moe1" in RECIPES
