r"""Transcribe with a mixture of experts, and handle packed models and experts.

Example:
  espnet-moe transcribe meeting.wav --model model.zip
  espnet-moe transcribe *.mp3 --model model.zip --allowed hi,pa --format srt --out subtitles
  espnet-moe COMMAND --help
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from espnet_moe.bin import cli
from espnet_moe.bin import pack as packing
from espnet_moe.errors import UserError

FORMATS = ("txt", "json", "srt", "vtt", "stm", "ctm")


def transcribe(args: argparse.Namespace) -> int:
    """Transcribe files; 1 where some could not be read, which are named on stderr."""
    from tqdm import tqdm

    from espnet_moe.inference.formats import FORMATS as WRITERS
    from espnet_moe.inference.speech2text import Speech2Text

    if args.out is None and args.format in ("srt", "vtt") and len(args.files) > 1:
        raise UserError(f"{args.format} of several files are several files: give --out FOLDER")
    names = {Path(file).stem for file in args.files}
    if args.out is not None and len(names) < len(args.files):
        raise UserError("two of the files have one name: their transcripts would be one in --out")
    model = Speech2Text.from_pretrained(args.model, args.device)
    failed: list[Path] = []

    def note(path: Path, error: UserError) -> None:
        failed.append(path)
        tqdm.write(f"espnet-moe: {error}", file=sys.stderr)

    with tqdm(unit=" s of audio", unit_scale=True, disable=None) as bar:
        found = model.stream(
            args.files,
            language=None if args.language == "auto" else args.language,
            languages=None if args.allowed is None else args.allowed.split(","),
            strategy=args.strategy,
            beam_size=args.beam_size,
            expert=args.expert,
            on_error=note,
            progress=bar.update,
        )
        for path, result in found:
            name = str(path) if args.format == "json" else path.stem
            text = WRITERS[args.format](name, result)
            if args.out is not None:
                _write(args.out / f"{path.stem}.{args.format}", text)
                continue
            several = args.format == "txt" and len(args.files) > 1
            tqdm.write(f"{path}\t{text}" if several else text, file=sys.stdout, end="")
            sys.stdout.flush()
    if failed:
        print(f"espnet-moe: {len(failed)} of {len(args.files)} files failed", file=sys.stderr)
    return 1 if failed else 0


def _write(path: Path, text: str) -> None:
    from espnet_moe.files import atomic

    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def info(args: argparse.Namespace) -> int:
    """Tell what a packed model is made of."""
    from espnet_moe.experts.expert_files import read_manifest
    from espnet_moe.inference.model_files import find_model
    from espnet_moe.routing.router_files import read_router_manifest

    files = find_model(args.model)
    said = files.description
    print(f"folder: {files.folder}")
    print(f"base: {said.base_digest} (context {said.context})")
    if files.router is None:
        print("router: none")
    else:
        router = read_router_manifest(files.router)
        print(
            f"router: {router['network']} on encoder layer {router['layer']}, strategy "
            f"{said.strategy or 'hard'}, languages {' '.join(router['languages'])}"
        )
    print(f"decoding: batch_size {files.options.batch_size}, beam_size {files.options.beam_size}")
    print("experts:")
    for name, folder in files.experts.items():
        print(f"  {_expert_line(name, read_manifest(folder))}")
    return 0


def experts(args: argparse.Namespace) -> int:
    """List a packed model's experts, or the given folders and archives of experts."""
    from espnet_moe.experts.expert_files import MANIFEST, read_manifest
    from espnet_moe.inference.model_files import find_expert, find_model

    for source in args.sources:
        if (Path(source) / MANIFEST).is_file():
            found = {Path(source).name: find_expert(source)}
        else:
            found = find_model(source).experts
        for name, folder in found.items():
            print(_expert_line(name, read_manifest(folder)))
    return 0


def _expert_line(name: str, manifest: dict) -> str:
    options, metrics = manifest["options"], manifest.get("metrics", {})
    size = f"rank {options['rank']}" if "rank" in options else manifest["kind"]
    line = (
        f"{name}\tlanguages {' '.join(manifest.get('languages', ())) or 'unknown'}\t"
        f"{size}\t{' '.join(options['targets'])} ({options['where']})\t"
        f"base {manifest['base_digest'][:12]}"
    )
    return line + (f"\tvalidation WER {metrics['wer']:.1f} %" if "wer" in metrics else "")


def merge(args: argparse.Namespace) -> int:
    """Write the base with one expert in its weights."""
    from espnet_moe.inference.speech2text import Speech2Text

    model = Speech2Text.from_pretrained(args.model, "cpu")
    print(f"written: {model.merge(args.name, args.out)}")
    return 0


def convert(args: argparse.Namespace) -> int:
    """Make an expert of an adapter of PEFT or ESPnet."""
    from espnet_moe.converting.convert import convert as make

    name, languages = args.name, args.languages.split(",") if args.languages else []
    make(args.source, args.backbone, args.out, name, languages, args.context, args.config)
    print(f"written: {args.out}")
    return 0


def pack(args: argparse.Namespace) -> int:
    """Pack a trained mixture."""
    packing.pack(args)
    return 0


def get_parser() -> argparse.ArgumentParser:
    """Options of all commands."""
    parser = cli.parser(__doc__, "main")
    parser.prog = "espnet-moe"
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], help: str, doc: str) -> (
        argparse.ArgumentParser
    ):  # fmt: skip
        own = commands.add_parser(
            name,
            help=help,
            description=doc,
            formatter_class=parser.formatter_class,
            allow_abbrev=False,
        )
        own.set_defaults(run=run)
        return own

    own = add("transcribe", transcribe, "recordings to text", _TRANSCRIBE)
    own.add_argument("files", nargs="+", help="recordings of any length and common format")
    own.add_argument("--model", required=True, help="packed .zip, its folder, or a hub name")
    own.add_argument("--language", default="auto", help="what is spoken; auto: the router decides")
    own.add_argument("--allowed", help="languages that auto may choose among, e.g. hi,pa")
    own.add_argument("--strategy", help="hard, soft, threshold …; the model's own if not given")
    own.add_argument("--expert", help="use this expert for everything")
    own.add_argument("--beam_size", type=int, help="1 is greedy; the model's own if not given")
    own.add_argument("--format", choices=FORMATS, default="txt", help="of the output")
    own.add_argument("--out", type=Path, help="folder for a file each; stdout if not given")
    own.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:0 …")
    own = add("info", info, "what a packed model is made of", _INFO)
    own.add_argument("model", help="packed .zip, its folder, or a hub name")
    own = add("experts", experts, "list experts", _EXPERTS)
    own.add_argument("sources", nargs="+", help="packed models, or folders of experts")
    own = add("merge", merge, "write the base with an expert in its weights", _MERGE)
    own.add_argument("model", help="packed .zip, its folder, or a hub name")
    own.add_argument("--name", required=True, help="the expert")
    own.add_argument("--out", type=Path, required=True, help="a new folder")
    own = add("convert", convert, "an adapter of PEFT or ESPnet to an expert", _CONVERT)
    own.add_argument("source", help="PEFT's folder, or a .pth of an ESPnet LoRA training")
    own.add_argument("--backbone", required=True, help="what it was trained on")
    own.add_argument("--name", required=True, help="what the expert is called, e.g. hi")
    own.add_argument("--languages", default="", help="of its training data, e.g. hi,ur")
    own.add_argument("--context", default="padded", help="how speech was heard: padded, variable")
    own.add_argument("--config", default="", help="config.yaml of an ESPnet training")
    own.add_argument("--out", type=Path, required=True, help="a new folder")
    doc = (packing.__doc__ or "").replace("python -m espnet_moe.bin.pack", "espnet-moe pack")
    packing.add_options(add("pack", pack, "pack a trained mixture", doc))
    return parser


_TRANSCRIBE = """\
Transcribe recordings of any length, in batches over all files; each window of a long one is routed
on its own. Without --out the transcripts go to stdout: txt has a line a file (behind its path and a
tab where there are several), json an object a line. Times inside of a stretch that was decoded in
one piece are estimates. Exit code 1: some files could not be read.

Example:
  espnet-moe transcribe a.wav b.m4a --model model.zip --allowed hi,pa --format json
"""
_INFO = """\
Tell what a packed model is made of.

Example:
  espnet-moe info model.zip
"""
_EXPERTS = """\
List experts: name, languages, rank, layers, base, word error rate on the validation set.

Example:
  espnet-moe experts model.zip exp/whisper_mini/expert_hi/expert
"""
_MERGE = """\
Write the base with one expert in its weights, in single precision: a transformers folder of a
Whisper, an ESPnet folder of an OWSM. It decodes as the expert does, and knows of none.

Example:
  espnet-moe merge model.zip --name hi --out whisper_hi
"""
_CONVERT = """\
Make an expert of a LoRA adapter that PEFT has saved for a transformers Whisper, or that ESPnet has
trained (adapter: lora). The other way needs nothing: PEFT reads an expert's folder.

Example:
  espnet-moe convert peft_adapter --backbone openai/whisper-small --name hi --out experts/hi
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command."""
    args = get_parser().parse_args(argv)
    if not sys.stderr.isatty():
        # Bars of the libraries, too, are for those who watch; read when tqdm is imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # transcripts of any script, paths of any bytes
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    if code := args.run(args):
        raise SystemExit(code)


def run() -> NoReturn:
    """The console script."""
    cli.run(main, logging.WARNING)


if __name__ == "__main__":
    run()
