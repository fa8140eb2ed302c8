"""Write espnet_moe/analysis/uriel.tsv: how far languages are apart, by URIEL.

  pip download lang2vec==1.1.2 --no-deps
  python tools/uriel_distances.py lang2vec-1.1.2-py3-none-any.whl >espnet_moe/analysis/uriel.tsv

The package holds URIEL's tables (CC BY-SA 4.0). A language more is a code more in CODES.
"""

import io
import itertools
import sys
import zipfile

import numpy as np

CODES = {  # ISO 639-1 → ISO 639-3, as URIEL has them
    **{"as": "asm", "bn": "ben", "gu": "guj", "hi": "hin", "kn": "kan", "ml": "mal", "mr": "mar"},
    **{"ne": "nep", "or": "ori", "pa": "pan", "ta": "tam", "te": "tel", "ur": "urd"},
    **{"de": "deu", "en": "eng", "es": "spa", "fr": "fra", "it": "ita", "nl": "nld", "pl": "pol"},
    **{"pt": "por"},
}
KINDS = {  # table of the package and how the features' names begin
    "genetic": ("family_features", "F_"),
    "syntactic": ("feature_predictions", "S_"),
    "inventory": ("feature_predictions", "INV_"),
}
HEADER = """\
# How far languages are apart: 1 less the cosine of their vectors in URIEL.
#   genetic        branches of Glottolog's family trees that a language is in
#   syntactic      features of word order and grammar, of WALS, SSWL and Ethnologue
#   inventory      sounds, of PHOIBLE
# Of the syntactic features those that no source tells (up to 53 % of a language's) are URIEL's
# predictions from its nearest neighbours. Features of phonology are left out: of Italian, Punjabi
# and others all of them would be predictions.
# Source: Littell et al., URIEL and lang2vec, EACL 2017, https://aclanthology.org/E17-2002; version
# 1.1.2 on PyPI. Licence of this file, as of its source: CC BY-SA 4.0,
# https://creativecommons.org/licenses/by-sa/4.0/. Made by tools/uriel_distances.py.
"""


def main(wheel: str) -> None:
    """Write the table to standard output."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with zipfile.ZipFile(wheel) as package:
        for kind, (name, prefix) in KINDS.items():
            table = np.load(io.BytesIO(package.read(f"lang2vec/data/{name}.npz")))
            known = [str(code) for code in table["langs"]]
            columns = [str(feat).startswith(prefix) for feat in table["feats"]]
            data = table["data"][..., 0]
            found[kind] = {c: data[known.index(long)][columns] for c, long in CODES.items()}
    sys.stdout.write(HEADER)
    print("first", "second", *KINDS, sep="\t")
    for first, second in itertools.combinations(sorted(CODES), 2):
        values = (distance(own[first], own[second]) for own in found.values())
        print(first, second, *(f"{value:.3f}" for value in values), sep="\t")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return 1 less the cosine of two vectors."""
    return max(0.0, 1.0 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b)))


if __name__ == "__main__":
    main(sys.argv[1])
