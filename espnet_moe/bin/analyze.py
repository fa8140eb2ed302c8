r"""Analyse experts and results: numbers in <out>/<name>.json, pictures beside them.

Each analysis reads what the stages have left, and says in its JSON what it asks, how, on how many,
from which papers, and what was not available and why. `<name> --help` has an example of each.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from espnet_moe.bin import cli

if TYPE_CHECKING:
    from espnet_moe.analysis.decodings import Decoded
    from espnet_moe.analysis.record import Analysis

_EXAMPLES = {
    "similarity": r"""How alike experts are: updates, subspaces; with a backbone, frames.

Example:
  python -m espnet_moe.bin.analyze similarity --backbone whisper_mini \
    --experts hi=exp/expert_hi/expert it=exp/expert_it/expert --families conf/families.yaml \
    --data dump/raw/test_hi dump/raw/test_it --out exp/analysis""",
    "spectrum": r"""How many directions of each layer experts use.

Example:
  python -m espnet_moe.bin.analyze spectrum --out exp/analysis \
    --experts hi=exp/expert_hi/expert it=exp/expert_it/expert""",
    "significance": r"""Which differences between decoded systems are more than chance.

Example:
  python -m espnet_moe.bin.analyze significance --exp exp/whisper_mini --data_root dump/raw \
    --inference_tag decode_greedy --out exp/whisper_mini/analysis""",
    "layers": r"""Which layers of experts matter: each switched off, and each alone.

Example:
  python -m espnet_moe.bin.analyze layers --backbone whisper_mini --utterances 50 \
    --experts hi=exp/expert_hi/expert it=exp/expert_it/expert \
    --data dump/raw/test_hi dump/raw/test_it --out exp/analysis""",
    "errors": r"""What kinds of errors systems make: by sound, vocabulary, number, script, in loops.

Example:
  python -m espnet_moe.bin.analyze errors --exp exp/whisper_mini --inference_tag decode_greedy \
    --data_root dump/raw --train hi=dump/raw/train_hi it=dump/raw/train_it --out exp/analysis""",
    "routing": r"""What routers decide: gates, usage, calibration, switches over a spectrogram.

Example:
  python -m espnet_moe.bin.analyze routing --exp exp/whisper_mini --inference_tag decode_greedy \
    --data_root dump/raw --codeswitch_sets test_cs_inter --codeswitch_systems frame segment \
    --out exp/analysis""",
    "transfer": r"""What experts do for other languages than their own.

Each language is given to each expert here (--backbone, --experts, --data), or the decodings of
fixed experts are read (--exp, --inference_tag, --fixed EXPERT=SYSTEM).

Example:
  python -m espnet_moe.bin.analyze transfer --backbone whisper_mini --utterances 40 \
    --experts hi=exp/expert_hi/expert it=exp/expert_it/expert --families conf/families.yaml \
    --data dump/raw/test_hi dump/raw/test_it --out exp/analysis
  python -m espnet_moe.bin.analyze transfer --exp exp/whisper_mini --inference_tag decode_greedy \
    --fixed hi=fixed_hi it=fixed_it --families conf/families.yaml --out exp/analysis""",
    "probing": r"""What linear probes read from encoder layers, with and without the expert.

The data need word timings (words.ctm); with phone timings in IPA (phones.ctm) frames are probed.

Example:
  python -m espnet_moe.bin.analyze probing --backbone whisper_mini --utterances 120 \
    --experts hi=exp/expert_hi/expert it=exp/expert_it/expert \
    --data dump/raw/test_hi dump/raw/test_it --out exp/analysis""",
}


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = cli.parser(__doc__, "analyze")
    names = parser.add_subparsers(dest="name", required=True, metavar="name")
    made = {}
    for name, text in _EXAMPLES.items():
        made[name] = names.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=parser.formatter_class,
            allow_abbrev=False,
        )
        made[name].add_argument("--out", type=Path, required=True, help="folder to write to")
        made[name].add_argument("--seed", type=int, default=0, help="of everything drawn")
    for name in ("similarity", "spectrum", "layers", "probing"):
        made[name].add_argument(
            "--experts", nargs="+", required=True, metavar="NAME=FOLDER", help="of each expert"
        )
    _add_passes(made["similarity"], needed=False, utterances=50)
    _add_families(made["similarity"])
    made["similarity"].add_argument(
        "--max_frames", type=int, default=2000, help="of each language, for CKA"
    )
    made["similarity"].add_argument(
        "--permutations", type=int, default=9999, help="of the correlation test, at most"
    )
    _add_decoded(made["significance"], resamples=10000)
    _add_decoded(made["errors"], resamples=1000)
    made["errors"].add_argument(
        "--train",
        nargs="+",
        default=[],
        metavar="LANGUAGE=FOLDER",
        help="data dirs of the training texts, for words out of the vocabulary",
    )
    _add_decoded(made["routing"], resamples=None)
    for what, text in (("sets", "data dirs in --data_root"), ("systems", "folders in --exp")):
        made["routing"].add_argument(
            f"--codeswitch_{what}", nargs="+", default=[], help=f"{text}, to show in time"
        )
    made["routing"].add_argument(
        "--examples", type=int, default=2, help="utterances shown of each code-switched set"
    )
    _add_passes(made["transfer"], needed=False, utterances=40)
    _add_families(made["transfer"])
    made["transfer"].add_argument(
        "--experts", nargs="+", default=[], metavar="NAME=FOLDER", help="of each expert"
    )
    made["transfer"].add_argument(
        "--wer", type=cli.boolean, default=True, help="decode, besides the loss"
    )
    _add_decoded(made["transfer"], resamples=2000, needed=False)
    made["transfer"].add_argument(
        "--fixed", nargs="+", default=[], metavar="EXPERT=SYSTEM", help="folders in --exp"
    )
    made["transfer"].add_argument("--baseline", default="baseline", help="system of the base alone")
    made["transfer"].add_argument(
        "--curves", type=Path, help="learning curves: language, start, hours, wer between tabs"
    )
    _add_passes(made["probing"], needed=True, utterances=120)
    made["probing"].add_argument("--classes", type=int, default=20, help="words told apart")
    made["probing"].add_argument(
        "--max_tokens", type=int, default=3000, help="words or frames of each language, at most"
    )
    made["probing"].add_argument("--resamples", type=int, default=1000, help="bootstrap draws")
    _add_passes(made["layers"], needed=True, utterances=40)
    made["layers"].add_argument(
        "--wer", type=cli.boolean, default=False, help="decode with each layer off, too"
    )
    made["layers"].add_argument("--resamples", type=int, default=2000, help="bootstrap draws")
    return parser


def _add_decoded(
    parser: argparse.ArgumentParser, resamples: int | None, needed: bool = True
) -> None:
    """Options of analyses that read what systems have decoded."""
    parser.add_argument("--exp", type=Path, required=needed, help="experiment folder")
    parser.add_argument(
        "--data_root", type=Path, default=Path("dump/raw"), help="folder of the data dirs"
    )
    parser.add_argument("--inference_tag", required=needed, help="decode folder of each system")
    parser.add_argument(
        "--systems", nargs="+", default=[], help="folders in --exp; all of results.json without"
    )
    parser.add_argument(
        "--test_sets", nargs="+", default=[], help="data dirs; those of one language without"
    )
    if resamples is not None:
        parser.add_argument("--resamples", type=int, default=resamples, help="bootstrap draws")


def _decoded(args: argparse.Namespace) -> "Decoded":
    from espnet_moe.analysis.decodings import Decoded

    return Decoded(
        args.exp, args.data_root, args.inference_tag, tuple(args.systems), tuple(args.test_sets)
    )


def _add_families(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--families", help="YAML of language families, e.g. conf/families.yaml")


def _add_passes(parser: argparse.ArgumentParser, needed: bool, utterances: int) -> None:
    """Options of analyses that run the backbone."""
    parser.add_argument("--backbone", required=needed, help="folder, file or hub name")
    parser.add_argument("--context", default="variable", help="encoder input: variable or padded")
    parser.add_argument(
        "--data", nargs="+", required=needed, default=[], help="formatted data directories"
    )
    parser.add_argument(
        "--utterances", type=int, default=utterances, help="drawn of each language; 0 for all"
    )
    parser.add_argument("--batch_size", type=int, default=16, help="utterances at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 …")


def main(argv: Sequence[str] | None = None) -> None:
    """Analyse, write, draw."""
    args = get_parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    # After parsing, so that --help and a mistyped option answer at once.
    from espnet_moe.report.analysis_figures import write_analysis_figures

    analysis: Analysis = _ANALYSES[args.name](args)
    content = analysis.write(
        args.out, shlex.join(["python", "-m", "espnet_moe.bin.analyze", *words])
    )
    figures = write_analysis_figures(args.out, content, analysis.arrays)
    print(f"written: {args.out / analysis.name}.json and {len(figures)} pictures")
    for what, why in analysis.not_available.items():
        print(f"not available: {what}: {why}")


def _similarity(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis.similarity import similarity
    from espnet_moe.analysis.updates import parse_folders, read_experts

    folders = parse_folders(args.experts)
    experts = read_experts(folders, at_least=2)
    representations = None
    if args.backbone and args.data:
        from espnet_moe.analysis import passes

        subject = passes.load_subject(args.backbone, args.context, folders, args.device)
        seconds = subject.backbone.max_seconds
        drawn = passes.draw_utterances(args.data, args.utterances, seconds, args.seed)
        representations = {
            language: passes.represent(
                subject,
                passes.make_batches(subject, utterances, args.batch_size),
                args.max_frames,
                args.seed,
            )
            for language, utterances in drawn.items()
        }
    return similarity(experts, args.families, representations, args.permutations, args.seed)


def _spectrum(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis.spectrum import spectrum
    from espnet_moe.analysis.updates import parse_folders, read_experts

    return spectrum(read_experts(parse_folders(args.experts)))


def _significance(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis.significance import significance

    return significance(_decoded(args), args.resamples, args.seed)


def _layers(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis import passes
    from espnet_moe.analysis.layers import layers
    from espnet_moe.analysis.updates import parse_folders, read_experts

    folders = parse_folders(args.experts)
    languages = read_experts(folders).languages
    subject = passes.load_subject(args.backbone, args.context, folders, args.device)
    seconds = subject.backbone.max_seconds
    drawn = passes.draw_utterances(args.data, args.utterances, seconds, args.seed)
    return layers(subject, drawn, languages, args.batch_size, args.wer, args.resamples, args.seed)


def _errors(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis.errors import errors, read_vocabularies

    return errors(_decoded(args), read_vocabularies(args.train), args.resamples, args.seed)


def _routing(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis.routing import Switching, routing

    switching = Switching(
        tuple(args.codeswitch_systems), tuple(args.codeswitch_sets), args.examples
    )
    return routing(_decoded(args), switching, args.seed)


def _transfer(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis import passes
    from espnet_moe.analysis.transfer import read_all, read_curves, run_all, transfer
    from espnet_moe.analysis.updates import parse_folders, read_experts
    from espnet_moe.errors import UserError

    curves = read_curves(args.curves) if args.curves else None
    if args.fixed:
        if not args.exp or not args.inference_tag:
            raise UserError("--fixed needs --exp and --inference_tag: where the decodings are")
        fixed = parse_folders(args.fixed)
        cells, missing = read_all(_decoded(args), fixed, args.baseline)
        languages: dict[str, Sequence[str]] = {expert: (expert,) for expert in fixed}
        prompts = "the expert's own, where it is a language"
    else:
        if not args.backbone or not args.experts or not args.data:
            raise UserError("give --backbone, --experts and --data, or --exp and --fixed")
        folders = parse_folders(args.experts)
        languages, missing = dict(read_experts(folders).languages), {}
        subject = passes.load_subject(args.backbone, args.context, folders, args.device)
        seconds = subject.backbone.max_seconds
        drawn = passes.draw_utterances(args.data, args.utterances, seconds, args.seed)
        cells = run_all(subject, drawn, args.batch_size, args.wer)
        prompts = "of the language itself"
    return transfer(
        *(cells, languages, args.families, curves, prompts, missing, args.resamples, args.seed)
    )


def _probing(args: argparse.Namespace) -> "Analysis":
    from espnet_moe.analysis import passes
    from espnet_moe.analysis.probing import probing, read_timings
    from espnet_moe.analysis.updates import parse_folders, read_experts

    folders = parse_folders(args.experts)
    languages = read_experts(folders).languages
    words, phones = read_timings(args.data)
    subject = passes.load_subject(args.backbone, args.context, folders, args.device)
    seconds = subject.backbone.max_seconds
    drawn = passes.draw_utterances(args.data, args.utterances, seconds, args.seed)
    return probing(
        *(subject, drawn, languages, words, phones, args.classes, args.max_tokens),
        *(args.batch_size, args.resamples, args.seed),
    )


_ANALYSES = {
    "similarity": _similarity,
    "spectrum": _spectrum,
    "significance": _significance,
    "layers": _layers,
    "errors": _errors,
    "routing": _routing,
    "transfer": _transfer,
    "probing": _probing,
}


if __name__ == "__main__":
    cli.run(main)
