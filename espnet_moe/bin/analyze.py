r"""Analyse experts and results: numbers in <out>/<name>.json, pictures beside them.

Each analysis reads what the stages have left, and says in its JSON what it asks, how, on how many,
from which papers, and what was not available and why. `<name> --help` has an example of each.
"""

import argparse
import inspect
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from espnet_moe.bin import cli
from espnet_moe.errors import UserError

if TYPE_CHECKING:
    from espnet_moe.analysis.decodings import DecodedSets
    from espnet_moe.analysis.passes import Subject
    from espnet_moe.analysis.record import Analysis
    from espnet_moe.data.utterance import Utterance


class _Command(NamedTuple):
    """An analysis of the command line; the docstring of ``run`` is its help."""

    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], "Analysis"]


def get_parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    parser = cli.parser(__doc__, "analyze")
    names = parser.add_subparsers(dest="name", required=True, metavar="name")
    for name, command in _COMMANDS.items():
        text = inspect.cleandoc(command.run.__doc__ or "")
        own = names.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=parser.formatter_class,
            allow_abbrev=False,
        )
        own.add_argument("--out", type=Path, required=True, help="folder to write to")
        own.add_argument("--seed", type=number, default=0, help="of everything drawn")
        command.options(own)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Analyse, write, draw."""
    args = get_parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    # After parsing, so that --help and a mistyped option answer at once.
    from espnet_moe.report.analysis_figures import write_analysis_figures

    analysis = _COMMANDS[args.name].run(args)
    command = shlex.join(["python", "-m", "espnet_moe.bin.analyze", *words])
    content = analysis.write(args.out, command)
    figures = write_analysis_figures(args.out, content, analysis.arrays)
    print(f"written: {args.out / analysis.name}.json and {len(figures)} pictures")
    for what, why in analysis.not_available.items():
        print(f"not available: {what}: {why}")


def count(value: str) -> int:
    """Parse a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: For anything else.
    """
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"'{value}' is no whole number above 0")
    return int(value)


def number(value: str) -> int:
    """Parse a whole number from 0 on.

    Raises:
        argparse.ArgumentTypeError: For anything else.
    """
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"'{value}' is no whole number from 0 on")
    return int(value)


def _add_experts(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    parser.add_argument(
        "--experts",
        nargs="+",
        required=needed,
        default=[],
        metavar="NAME=FOLDER",
        help="of each expert",
    )


def _add_families(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--families", help="YAML of language families, e.g. conf/families.yaml")


def _families(args: argparse.Namespace) -> str | None:
    """The family tree; a file that was named but cannot be read is an error, not a gap."""
    from espnet_moe.routing.families import load_families

    if args.families:
        load_families(args.families)
    return args.families


def _add_resamples(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--resamples", type=count, default=default, help="bootstrap draws")


def _add_passes(parser: argparse.ArgumentParser, needed: bool, utterances: int) -> None:
    """Options of analyses that run the backbone."""
    parser.add_argument("--backbone", required=needed, help="folder, file or hub name")
    parser.add_argument("--context", default="variable", help="encoder input: variable or padded")
    parser.add_argument(
        "--data", nargs="+", required=needed, default=[], help="formatted data directories"
    )
    parser.add_argument(
        "--utterances", type=number, default=utterances, help="drawn of each language; 0 for all"
    )
    parser.add_argument("--batch_size", type=count, default=16, help="utterances at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 …")


def _subject(args: argparse.Namespace) -> tuple["Subject", dict[str, list["Utterance"]]]:
    """The backbone with experts, and utterances by language."""
    from espnet_moe.analysis.passes import draw_utterances, load_subject
    from espnet_moe.analysis.updates import parse_folders

    folders = parse_folders(args.experts)
    subject = load_subject(args.backbone, args.context, folders, args.device)
    seconds = subject.backbone.max_seconds
    return subject, draw_utterances(args.data, args.utterances, seconds, args.seed)


def _add_decoded(parser: argparse.ArgumentParser, needed: bool = True) -> None:
    """Options of analyses that read what systems have decoded."""
    parser.add_argument("--exp", type=Path, required=needed, help="experiment folder")
    parser.add_argument(
        "--data_root", type=Path, default=Path("dump/raw"), help="folder of the data dirs"
    )
    parser.add_argument("--inference_tag", required=needed, help="decode folder of each system")
    parser.add_argument(
        "--systems", nargs="+", default=[], help="folders in --exp; without, all of results.json"
    )
    parser.add_argument(
        "--test_sets", nargs="+", default=[], help="data dirs; without, those of one language"
    )


def _decoded(args: argparse.Namespace) -> "DecodedSets":
    from espnet_moe.analysis.decodings import DecodedSets

    return DecodedSets(
        args.exp, args.data_root, args.inference_tag, tuple(args.systems), tuple(args.test_sets)
    )


def _similarity_options(parser: argparse.ArgumentParser) -> None:
    _add_experts(parser)
    _add_passes(parser, needed=False, utterances=50)
    _add_families(parser)
    parser.add_argument("--max_frames", type=count, default=2000, help="of each language, for CKA")
    parser.add_argument(
        "--permutations", type=count, default=9999, help="of the correlation test, at most"
    )


def _similarity(args: argparse.Namespace) -> "Analysis":
    r"""How alike experts are: updates, subspaces; with a backbone, frames.

    Example:
      python -m espnet_moe.bin.analyze similarity --backbone whisper_mini \
        --experts hi=exp/expert_hi/expert it=exp/expert_it/expert --families conf/families.yaml \
        --data dump/raw/test_hi dump/raw/test_it --out exp/analysis
    """
    from espnet_moe.analysis.passes import make_batches, represent
    from espnet_moe.analysis.similarity import similarity
    from espnet_moe.analysis.updates import parse_folders, read_experts

    experts = read_experts(parse_folders(args.experts), at_least=2)
    representations = None
    if args.backbone and args.data:
        subject, drawn = _subject(args)
        representations = {
            language: represent(
                subject,
                make_batches(subject, utterances, args.batch_size),
                args.max_frames,
                args.seed,
            )
            for language, utterances in drawn.items()
        }
    return similarity(experts, _families(args), representations, args.permutations, args.seed)


def _spectrum_options(parser: argparse.ArgumentParser) -> None:
    _add_experts(parser)


def _spectrum(args: argparse.Namespace) -> "Analysis":
    r"""How many directions of each layer experts use.

    Example:
      python -m espnet_moe.bin.analyze spectrum --out exp/analysis \
        --experts hi=exp/expert_hi/expert it=exp/expert_it/expert
    """
    from espnet_moe.analysis.spectrum import spectrum
    from espnet_moe.analysis.updates import parse_folders, read_experts

    return spectrum(read_experts(parse_folders(args.experts)))


def _layers_options(parser: argparse.ArgumentParser) -> None:
    _add_experts(parser)
    _add_passes(parser, needed=True, utterances=40)
    _add_resamples(parser, 2000)
    parser.add_argument(
        "--wer", type=cli.boolean, default=False, help="decode with each layer off, too"
    )


def _layers(args: argparse.Namespace) -> "Analysis":
    r"""Which layers of experts matter: each switched off, and each alone.

    Example:
      python -m espnet_moe.bin.analyze layers --backbone whisper_mini --utterances 50 \
        --experts hi=exp/expert_hi/expert it=exp/expert_it/expert \
        --data dump/raw/test_hi dump/raw/test_it --out exp/analysis
    """
    from espnet_moe.analysis.layers import layers
    from espnet_moe.analysis.updates import parse_folders, read_experts

    languages = read_experts(parse_folders(args.experts)).languages
    subject, drawn = _subject(args)
    return layers(subject, drawn, languages, args.batch_size, args.wer, args.resamples, args.seed)


def _significance_options(parser: argparse.ArgumentParser) -> None:
    _add_decoded(parser)
    _add_resamples(parser, 10_000)


def _significance(args: argparse.Namespace) -> "Analysis":
    r"""Which differences between decoded systems are more than chance.

    Example:
      python -m espnet_moe.bin.analyze significance --exp exp/whisper_mini --data_root dump/raw \
        --inference_tag decode_greedy --out exp/whisper_mini/analysis
    """
    from espnet_moe.analysis.significance import significance

    return significance(_decoded(args), args.resamples, args.seed)


def _errors_options(parser: argparse.ArgumentParser) -> None:
    _add_decoded(parser)
    _add_resamples(parser, 1000)
    parser.add_argument(
        "--train",
        nargs="+",
        default=[],
        metavar="LANGUAGE=FOLDER",
        help="data dirs of the training texts, for words out of the vocabulary",
    )


def _errors(args: argparse.Namespace) -> "Analysis":
    r"""What kinds of errors systems make: by sound, vocabulary, number, script, in loops.

    Example:
      python -m espnet_moe.bin.analyze errors --exp exp/whisper_mini \
        --inference_tag decode_greedy --data_root dump/raw \
        --train hi=dump/raw/train_hi it=dump/raw/train_it --out exp/analysis
    """
    from espnet_moe.analysis.errors import errors, read_vocabularies

    return errors(_decoded(args), read_vocabularies(args.train), args.resamples, args.seed)


def _routing_options(parser: argparse.ArgumentParser) -> None:
    _add_decoded(parser)
    for what, text in (("sets", "data dirs in --data_root"), ("systems", "folders in --exp")):
        parser.add_argument(
            f"--codeswitch_{what}", nargs="+", default=[], help=f"{text}, to show in time"
        )
    parser.add_argument(
        "--examples", type=count, default=2, help="utterances shown of each code-switched set"
    )


def _routing(args: argparse.Namespace) -> "Analysis":
    r"""What routers decide: gates, usage, calibration, switches over a spectrogram.

    Example:
      python -m espnet_moe.bin.analyze routing --exp exp/whisper_mini \
        --inference_tag decode_greedy --data_root dump/raw \
        --codeswitch_sets test_cs_inter --codeswitch_systems frame segment \
        --out exp/analysis
    """
    from espnet_moe.analysis.routing import Switching, routing

    switching = Switching(
        tuple(args.codeswitch_systems), tuple(args.codeswitch_sets), args.examples
    )
    return routing(_decoded(args), switching, args.seed)


def _transfer_options(parser: argparse.ArgumentParser) -> None:
    _add_experts(parser, needed=False)
    _add_passes(parser, needed=False, utterances=40)
    _add_decoded(parser, needed=False)
    _add_families(parser)
    _add_resamples(parser, 2000)
    parser.add_argument("--wer", type=cli.boolean, default=True, help="decode, besides the loss")
    parser.add_argument(
        "--fixed", nargs="+", default=[], metavar="EXPERT=SYSTEM", help="folders in --exp"
    )
    parser.add_argument("--baseline", default="baseline", help="system of the base alone")
    parser.add_argument(
        "--curves",
        type=Path,
        help="learning curves: language, start, hours, wer (and low, high) between tabs",
    )


def _transfer(args: argparse.Namespace) -> "Analysis":
    r"""What experts do for other languages than their own.

    Each language is given to each expert here (--backbone, --experts, --data), or the decodings of
    fixed experts are read (--exp, --inference_tag, --fixed EXPERT=SYSTEM).

    Example:
      python -m espnet_moe.bin.analyze transfer --backbone whisper_mini --utterances 40 \
        --experts hi=exp/expert_hi/expert it=exp/expert_it/expert --families conf/families.yaml \
        --data dump/raw/test_hi dump/raw/test_it --out exp/analysis
      python -m espnet_moe.bin.analyze transfer --exp exp/whisper_mini \
        --inference_tag decode_greedy --fixed hi=fixed_hi it=fixed_it \
        --families conf/families.yaml --out exp/analysis
    """
    from espnet_moe.analysis.curves import read_curves
    from espnet_moe.analysis.transfer import read_all, run_all, transfer
    from espnet_moe.analysis.updates import parse_folders, read_experts

    curves = read_curves(args.curves) if args.curves else None
    missing: dict[str, str] = {}
    languages: Mapping[str, Sequence[str]]
    if args.fixed:
        if not args.exp or not args.inference_tag:
            raise UserError("--fixed needs --exp and --inference_tag: where the decodings are")
        fixed = parse_folders(args.fixed)
        cells, missing = read_all(_decoded(args), fixed, args.baseline)
        languages = {expert: (expert,) for expert in fixed}
        prompts = "of the expert, where it is one"
    else:
        if not args.backbone or not args.experts or not args.data:
            raise UserError("give --backbone, --experts and --data, or --exp and --fixed")
        languages = read_experts(parse_folders(args.experts)).languages
        subject, drawn = _subject(args)
        cells = run_all(subject, drawn, args.batch_size, args.wer)
        prompts = "that is spoken"
    return transfer(
        *(cells, languages, _families(args), curves, prompts, missing),
        *(args.resamples, args.seed),
    )


def _probing_options(parser: argparse.ArgumentParser) -> None:
    _add_experts(parser)
    _add_passes(parser, needed=True, utterances=120)
    _add_resamples(parser, 1000)
    parser.add_argument("--classes", type=count, default=20, help="words told apart")
    parser.add_argument(
        "--max_tokens", type=count, default=3000, help="words or frames of each language, at most"
    )
    for what in ("words", "phones"):
        parser.add_argument(
            f"--{what}",
            nargs="+",
            type=Path,
            default=[],
            help=f"their times, in place of those in --data: CTM files, or folders of TextGrids "
            f"called by utterance ids, with a tier '{what}'",
        )
    parser.add_argument(
        "--features", type=Path, help="of phones that are not in IPA: phone, feature … between tabs"
    )


def _probing(args: argparse.Namespace) -> "Analysis":
    r"""What linear probes read from encoder layers, with and without the expert.

    The data need times of words (words.ctm, or --words) or of phones in IPA (phones.ctm, or
    --phones), by which frames are probed. All times are those of the formatted audio.

    Example:
      python -m espnet_moe.bin.analyze probing --backbone whisper_mini --utterances 120 \
        --experts hi=exp/expert_hi/expert it=exp/expert_it/expert \
        --data dump/raw/test_hi dump/raw/test_it --out exp/analysis
      python -m espnet_moe.bin.analyze probing --backbone whisper_mini --data dump/raw/test_en \
        --experts en=exp/expert_en/expert --words aligned --phones aligned \
        --features arpabet.tsv --out exp/analysis
    """
    from espnet_moe.analysis.phones import read_features
    from espnet_moe.analysis.probing import probing, read_timings
    from espnet_moe.analysis.timings import read_given
    from espnet_moe.analysis.updates import parse_folders, read_experts
    from espnet_moe.data.datadir import load_datadir

    languages = read_experts(parse_folders(args.experts)).languages
    words, phones = read_timings(args.data)
    table = read_features(args.features) if args.features else None
    ids = {utt.utt_id for folder in args.data for utt in load_datadir(folder).utterances}
    # Never both: two aligners' symbols and borders would be one task's labels.
    if args.words:
        words = read_given(args.words, ("words", "word"), ids)
    if args.phones:
        phones = read_given(args.phones, ("phones", "phone"), ids)
    subject, drawn = _subject(args)
    return probing(
        *(subject, drawn, languages, words, phones, args.classes, args.max_tokens),
        *(args.batch_size, args.resamples, args.seed, table),
    )


_COMMANDS = {
    "similarity": _Command(_similarity_options, _similarity),
    "spectrum": _Command(_spectrum_options, _spectrum),
    "layers": _Command(_layers_options, _layers),
    "significance": _Command(_significance_options, _significance),
    "errors": _Command(_errors_options, _errors),
    "routing": _Command(_routing_options, _routing),
    "transfer": _Command(_transfer_options, _transfer),
    "probing": _Command(_probing_options, _probing),
}


if __name__ == "__main__":
    cli.run(main)
