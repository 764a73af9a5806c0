"""Where a response takes back what it said: a correction, or an announcement that is doubted."""

from __future__ import annotations

import re

_IS = r"(?:['’]s|\s+is|\s+was|\s+should\s+be|\s+must\s+be)"
_WRONG = (
    r"(?:wrong|incorrect|not\s+(?:right|correct|true|it)|n['’]t\s+(?:right|correct|true)|false|impossible"
    r"|an?\s+(?:mistake|error))\b"
)
_AT = r"(?: (?<=[.!?;:,)\]}$*>\n—–(-]) | (?<=[.!?;:,)\]}$*>\n—–(-]\s) | (?<=\n\n) | (?<=\bbut\s) ) \s{0,4}"
_REVISION = re.compile(
    rf"""{_AT}
    (?: (?:(?:actually|oh|ah|hmm+|no|hold\s+on),?\s+){{0,3}} (?:no,?\s+)? wait\b (?!\s+(?:for|until)\b)
      | actually,?\s+ (?: no\b | (?:it|the\s+(?:final\s+|correct\s+)?answer){_IS} | I\s+meant? )
      | (?: hmm+ | w?h?oops | on\s+second\s+thoughts? | (?:scratch|strike|make)\s+that | or\s+rather )\b
      | (?:correction|corrected|edit)\s*[:,;.—–-] | (?:my\s+)?(?:sorry|apologies|bad|mistake)\b\s*[:,;.—–-]
      | sorry\s+(?=I\b|it\b|the\b)
      | I\s+(?: meant? | was\s+(?:wrong|mistaken) | made\s+an?\s+(?:\w+\s+)?(?:mistake|error|slip) | misread | miscalculated
          | take\s+(?:that|it)\s+back | (?:need|have)\s+to\s+correct )\b
      | let\s+me\s+(?:re-?check|redo|reconsider|re-?calculate|re-?compute|correct|fix)\b
      | (?:that|this|the\s+above){_IS}\s+{_WRONG}
      | (?:that|it|this)\s+(?:isn|wasn|can)['’]t\s+(?:be\s+)?(?:right|correct|true)\b
      | no(?:pe)?,?\s+(?:it|that|the\s+answer) (?: {_IS} | \s+isn['’]t )
      | not\s+(?:quite|right|correct)\b
    ) [\s,:;.—–-]*""",
    re.VERBOSE | re.IGNORECASE,
)
_DOUBT = re.compile(
    r"""(?: \b(?: doubt(?:s|ed|ful)? | impossible | unlikely | improbable | false | untrue | wrong | incorrect | mistaken
      | den(?:y|ies|ied) | disagrees? | whether | if | unless | rejects?
      | no\s+(?:way|chance) )
      | (?:\b(?:not|cannot|never)|n['’]t) \s+ (?:the\s+case|think|believe|say|sure|true|certain|clear|claim|possible|likely) )
    (?:\s+to\s+(?:say|think|claim|believe))? (?:,?\s+that)? (?:\s+(?:the|my|our|its|final|correct|right))* \s* $""",
    re.VERBOSE | re.IGNORECASE,
)
_WINDOW = 120


def revised(text: str, stated: re.Pattern[str]) -> str:
    """What follows the last correction of an answer that was stated; the text where there is none."""
    first = stated.search(text)
    marks = list(_REVISION.finditer(text, first.end())) if first else []
    return text[marks[-1].end() :] if marks else text


def is_doubted(text: str, start: int) -> bool:
    """Whether the announcement that begins here is one that is not made: "I doubt that the answer is"."""
    return bool(_DOUBT.search(text[max(0, start - _WINDOW) : start]))
