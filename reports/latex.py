r"""Tables as LaTeX: one file per table for `\input`, with booktabs rules, and a document of all tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from reports.results import plain
from reports.tables import DAGGER, EXPLODED_SIGN, Group, Table

ROWS_PER_PAGE = 45
MINUS = "\u2212"
_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "|": "$|$",
    "`": r"\textasciigrave{}", "±": r"$\pm$", "–": r"\textendash{}",
    "·": r"$\cdot$", "×": r"$\times$", "∞": r"$\infty$", "²": "$^2$", "≤": r"$\le$",
    "≥": r"$\ge$", "→": r"$\to$", "…": r"\dots{}", MINUS: "$-$", DAGGER: r"$^\dagger$", EXPLODED_SIGN: r"$^\ddagger$",
}  # fmt: skip
ACCENTS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327"
"""Accents over or under a Latin letter that LaTeX's own font encoding has."""
_RAISED = {"<super>": "^", "<sub>": "_"}
_GREEK = re.compile(
    r"alpha|beta|[gG]amma|[dD]elta|epsilon|zeta|eta|[tT]heta|iota|kappa|[lL]ambda|mu|nu|[xX]i|[pP]i|rho|[sS]igma|tau|"
    r"[uU]psilon|[pP]hi|chi|[pP]si|[oO]mega"
)
_FIT = (
    r"\providecommand{\fitted}[1]{\sbox0{#1}"
    r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi}"
)


def escape(text: str, mark: str = "") -> str:
    """Escape text for LaTeX, bold or underlined by `mark`. A hyphen before a digit is a minus, except after a word."""
    escaped = re.sub(
        r"([-'])(?=\1)", r"\1{}", "".join(map(_sign, plain(text)))
    )  # "--" must not be a dash, nor "''" a quote
    escaped = re.sub(r"(?<![\w.}])-(?=\d)", "$-$", escaped)
    return rf"\textbf{{{escaped}}}" if mark == "best" else rf"\underline{{{escaped}}}" if mark == "second" else escaped


def _sign(character: str) -> str:
    """Return LaTeX code for a character. If pdfLaTeX cannot set it, the code shows its number."""
    letter, accent = unicodedata.normalize("NFD", character)[0], unicodedata.normalize("NFD", character)[1:]
    if character in _SIGNS or character.isascii() or (letter.isascii() and accent and accent in ACCENTS):
        return _SIGNS.get(character, character)
    tag, _, codes = unicodedata.decomposition(character).partition(" ")
    if tag in _RAISED and len(codes) == 4:
        return f"${_RAISED[tag]}{{{chr(int(codes, 16)).replace(MINUS, '-')}}}$"
    greek = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, ""))
    if greek:
        name = greek[2].lower().replace("lamda", "lambda")
        macro = name if greek[1] == "SMALL" else name.title()
        if _GREEK.fullmatch(macro):
            return rf"$\{macro}$"
    return rf"\texttt{{U+{ord(character):04X}}}"


def latex(table: Table) -> str:
    r"""Return a table for `\input`, not wider than the line. It needs the packages booktabs and graphicx.

    Groups with the same columns share a tabular. A long table has one float per group, since a float cannot break.
    """
    long = sum(len(group.rows) for group in table.groups) > ROWS_PER_PAGE
    parts = [[group] for group in table.groups] if long else [list(table.groups)]
    floats = []
    for number, groups in enumerate(parts, start=1):
        rest = f" ({groups[0].title})" if long and groups[0].title else ""
        label = f"tab:{table.key}" + (f":{number}" if long else "")
        notes = escape(" ".join(table.notes)) if number == len(parts) else ""
        floats += [
            r"\begin{table}[htbp]",
            r"\centering\small",
            rf"\caption{{{escape(table.title + rest)}}}\label{{{label}}}",
            *_tabulars(groups, titled=not long),
            *([rf"\par\smallskip\footnotesize {notes}"] if notes else []),
            r"\end{table}",
        ]
    return "\n".join([f"% {table.key}: needs booktabs and graphicx", _FIT, *floats, ""])


def _tabulars(groups: Sequence[Group], titled: bool) -> list[str]:
    lines: list[str] = []
    shape: tuple[str, ...] = ()
    for group in groups:
        if (group.corner, *group.columns) != shape:
            lines += [*_END, r"\par\medskip"] if lines else []
            shape = (group.corner, *group.columns)
            head = " & ".join(escape(cell) for cell in shape)
            lines += [rf"\fitted{{\begin{{tabular}}{{l{'r' * len(group.columns)}}}", r"\toprule", rf"{head} \\"]
        lines.append(r"\midrule")
        if titled and group.title:
            lines.append(rf"\multicolumn{{{len(shape)}}}{{l}}{{\emph{{{escape(group.title)}}}}} \\")
        for row in group.rows:
            cells = [escape(row.title), *(escape(entry.text, entry.mark) for entry in row.entries)]
            lines.append(" & ".join(cells) + r" \\")
    return [*lines, *_END] if lines else []


_END = (r"\bottomrule", r"\end{tabular}}")


def document(names: Sequence[str], title: str) -> str:
    """Return a document that inputs tables by their file names. `pdflatex` compiles it in its folder."""
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[a4paper,margin=2cm]{geometry}",
            r"\usepackage{booktabs,graphicx}",
            rf"\title{{{escape(title)}}}\author{{}}\date{{}}",
            r"\begin{document}",
            r"\maketitle",
            *(rf"\input{{{name}}}\clearpage" for name in names),
            r"\end{document}",
            "",
        ]
    )
